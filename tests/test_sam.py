"""Spike activation maps, beside the spikes and from spikes that exist already."""

from __future__ import annotations

import pytest
import torch

from ckd_kernels import Neuron, lif, sam, use_backend
from reference_cases import MEMORY, arrange, currents, make_neuron
from tolerances import assert_close, assert_same


def some_spikes(shape, dtype, seed=0):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3).to(dtype)


def exact_mean(spikes, time_dim, channel_dim):
    """The integer count, divided once."""
    count = spikes.double().sum((time_dim, channel_dim))
    total = spikes.shape[time_dim] * spikes.shape[channel_dim]
    return count / total if spikes.dtype == torch.float64 else (count / total).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize(
    ("shape", "time_dim", "channel_dim"),
    [
        ((4, 2, 3, 5, 7), 0, 2),
        ((2, 4, 3, 5, 7), 1, 2),
        ((4, 2, 3, 5, 7), 0, -1),
        ((4, 2, 3), 0, 2),
        ((4, 3), 0, 1),
        ((3, 4), 1, 0),
        ((3, 4, 2), 1, 0),
        ((1, 1, 151, 1, 1), 0, 2),
        ((5, 1, 300, 33), 0, 2),
        ((100, 2, 64, 3), 0, 2),
        ((2, 3, 1, 129), 0, 2),
    ],
    ids=str,
)
def test_map_is_the_exact_mean(target, shape, time_dim, channel_dim, memory, dtype):
    """Counts over 256 do not fit bfloat16, nor do 2048 float16: they are integers, not sums in the storage type."""
    if dtype == torch.float64 and target.backend in ("cuda", "triton"):
        pytest.skip("GPU kernels have no float64")
    spikes = arrange(some_spikes(shape, dtype).to(target.device), memory).requires_grad_()
    with use_backend(target.backend):
        out = sam(spikes, time_dim=time_dim, channel_dim=channel_dim)
    assert_same("sam", out.detach().cpu(), exact_mean(spikes.detach().cpu(), time_dim, channel_dim))
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out) * 100
    out.backward(upstream)
    wide = spikes.detach().cpu().double().requires_grad_()
    wide.mean((time_dim, channel_dim)).backward(upstream.cpu().double())
    assert_close("gradient", spikes.grad.cpu(), wide.grad)


@pytest.mark.parametrize("time_dim", [0, 1])
def test_repeated_frame(target, time_dim):
    """Spikes that one frame repeats by stride: the map is the frame's, its gradient one frame."""
    frame = some_spikes((2, 3, 5), torch.float32).to(target.device).requires_grad_()
    repeated = frame.unsqueeze(time_dim).expand((4, 2, 3, 5) if time_dim == 0 else (2, 4, 3, 5))
    with use_backend(target.backend):
        out = sam(repeated, time_dim=time_dim)
        out.sum().backward()
    assert_same("sam", out.detach().cpu(), exact_mean(repeated.detach().cpu(), time_dim, 2))
    assert_close("gradient", frame.grad.cpu(), torch.full((2, 3, 5), 1 / 3))


def test_of_values_that_are_no_spikes(target):
    """A mean of anything: real values are summed in float32."""
    values = currents((6, 2, 17, 5), torch.float32, 0)
    with use_backend(target.backend):
        out = sam(values.to(target.device)).cpu()
    torch.testing.assert_close(out.double(), values.double().mean((0, 2)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "time_dim"), [((5, 2, 300, 3, 4), 0), ((2, 5, 300, 7), 1), ((40, 2, 9, 5), 0)], ids=str
)
def test_beside_the_spikes_it_is_the_same_map(target, shape, time_dim, dtype, memory):
    """The map that `lif` returns is that of the spikes that it returns, and so is the gradient through it."""
    neuron = make_neuron("decay", "hard")
    x = arrange(currents(shape, dtype, 0).to(target.device), memory)
    upstream = torch.randn(shape[:2][1 - time_dim], *shape[3:]).to(target.device)
    gradients = []
    with use_backend(target.backend):
        for beside in (True, False):
            leaf = x.detach().requires_grad_()
            if beside:
                out = lif(leaf, neuron, time_dim=time_dim, return_sam=True)
                spikes, map_ = out.spikes, out.sam
            else:
                spikes = lif(leaf, neuron, time_dim=time_dim)
                map_ = sam(spikes, time_dim=time_dim)
            map_.backward(upstream)
            gradients.append((spikes, map_, leaf.grad))
    (spikes, map_, gradient), (plain_spikes, later_map, later_gradient) = gradients
    assert_same("spikes", spikes, plain_spikes)
    assert_same("sam", map_, later_map)
    # Apart, the gradient of the spikes is rounded to their dtype on its way.
    loose = 2e-2 if dtype == torch.bfloat16 else 1e-5
    scale = later_gradient.double().abs().max().item()
    torch.testing.assert_close(gradient.double(), later_gradient.double(), rtol=loose, atol=loose * scale)


def test_same_bits_with_any_number_of_threads(target):
    spikes = some_spikes((4, 3, 130, 17, 19), torch.bfloat16).to(target.device)
    before = torch.get_num_threads()
    try:
        maps = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with use_backend(target.backend):
                maps.append(sam(spikes))
    finally:
        torch.set_num_threads(before)
    assert_same("sam", maps[1], maps[0])
    assert_same("sam", maps[2], maps[0])


BAD = [
    (([1.0],), {}, TypeError, "spikes must be a torch.Tensor, got list"),
    ((torch.ones(4, 2, 3, dtype=torch.int64),), {}, TypeError, "spikes must be float32.*got torch.int64; convert it"),
    ((torch.ones(4, 2, 3, dtype=torch.bool),), {}, TypeError, "got torch.bool"),
    ((torch.ones(4, 2, 3).to_sparse(),), {}, TypeError, r"spikes must be a dense .*spikes.to_dense\(\)"),
    ((torch.ones(4, 2, 3),), {"time_dim": 2}, ValueError, "time_dim must be 0 or 1 .*got 2"),
    ((torch.ones(4, 2, 3),), {"time_dim": -1}, ValueError, "time_dim must be 0 or 1 .*got -1"),
    ((torch.ones(4),), {"time_dim": 1}, ValueError, "time_dim must be 0 or 1 .*got 1 for 1 dimensions"),
    ((torch.ones(4, 2, 3),), {"time_dim": "0"}, TypeError, "time_dim must be 0 or 1, got '0'"),
    ((torch.ones(4, 2, 3),), {"channel_dim": 3}, ValueError, "channel_dim 3 is out of range for 3 dimensions"),
    ((torch.ones(4, 2),), {}, ValueError, "channel_dim 2 is out of range for 2 dimensions"),
    ((torch.ones(4, 2, 3),), {"channel_dim": 0}, ValueError, "channel_dim and time_dim are both 0; they must differ"),
    ((torch.ones(4, 2, 3),), {"channel_dim": -3}, ValueError, "channel_dim and time_dim are both 0; they must differ"),
    ((torch.ones(4, 2, 3),), {"channel_dim": 1.0}, TypeError, "channel_dim must be an integer, got 1.0"),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD, ids=[message[:40] for *_, message in BAD])
def test_bad_input(arguments, options, error, message, no_launch):
    with pytest.raises(error, match=message):
        sam(*arguments, **options)


def test_a_neuron_that_never_fires_has_an_empty_map(target):
    with use_backend(target.backend):
        out = lif(torch.zeros(4, 2, 3, device=target.device), Neuron.paper(), return_sam=True)
    assert (out.sam == 0).all()
