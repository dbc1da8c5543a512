"""Tensors larger than one tile, one vector and one thread's share, at sizes that divide none of them."""

from __future__ import annotations

import pytest
import torch

from ckd_kernels import Neuron, bn_lif, lif, use_backend
from lif_checks import check_gradients
from reference_cases import Case, make_neuron
from tolerances import assert_close

NEURONS = {
    "paper": Neuron.paper(),
    "spikingjelly": Neuron.spikingjelly_lif(),
    "integrate": make_neuron("integrate", "soft", surrogate_="atan"),
    "snntorch": Neuron.snntorch_leaky(beta=0.9),
    "delayed": make_neuron("leak", "soft_delayed", plain=False, surrogate_="fast_sigmoid"),
}
# Elements of a frame: 2 x 9 x 61 x 67 = 73,566 and so on, over the 32,768 from which threads are started.
SHAPES = [(1, 2, 9, 61, 67), (2, 3, 5, 29, 83), (4, 3, 7, 31, 33), (5, 1, 3, 2731), (19, 2, 5, 331), (35, 1, 7, 149)]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NEURONS)
def test_many_tiles(target, name, shape, dtype, threads):
    """Everything that can be asked for, and spikes alone, which kernels may serve on a path of their own."""
    neuron = NEURONS[name]
    leak = None if neuron.leak_name is None else "channel"
    check_gradients(target, Case(neuron, shape, dtype=dtype, v_init=True, leak=leak))
    check_gradients(target, Case(neuron, shape, dtype=dtype, spikes_only=True))


@pytest.mark.parametrize("memory", ["channels_last", "transposed", "offset", "repeated", "sliced"])
@pytest.mark.parametrize("shape", [(4, 3, 37, 19, 23), (1, 3, 70, 20, 21), (2, 3, 300, 7, 9)], ids=str)
def test_many_tiles_elsewhere_in_memory(target, shape, memory, threads):
    """Channels that end within a tile or fill several, in every layout that is read in place."""
    neuron = NEURONS["delayed"]
    check_gradients(target, Case(neuron, shape, memory=memory, leak="channel"))
    check_gradients(target, Case(neuron, (shape[1], shape[0], *shape[2:]), 1, memory=memory, leak="channel"))
    check_gradients(target, Case(NEURONS["paper"], shape, memory=memory, spikes_only=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_outputs_larger_than_caches(target, dtype):
    """Tens of megabytes, whose rows begin and end within lines of the cache; the paper's surrogate is exact."""
    if target.backend == "reference":
        pytest.skip("it is what the others are compared with")
    if dtype == torch.float64 and target.backend != "cpu":
        pytest.skip("GPU kernels have no float64")
    frame = 69_000_000 // (3 * dtype.itemsize) | 1
    values = torch.randn(3 * frame + 1, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = values[1:].view(3, frame).to(target.device).requires_grad_()
    upstream = values[:-1].view(3, frame).to(target.device)
    results = []
    for backend in (target.backend, "reference"):
        with use_backend(backend):
            spikes = lif(x, NEURONS["paper"])
        results.append((spikes, *torch.autograd.grad(spikes, x, upstream)))
    for actual, expected in zip(*results, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(4, 3, 7, 31, 33), (2, 3, 5, 29, 83), (1, 1, 9, 61, 67)], ids=str)
def test_whole_sequences_with_a_map(target, shape, dtype, threads):
    """From rest, with nothing carried: a path of its own, whose frames here have an odd number of elements."""
    if target.backend == "reference":
        pytest.skip("it is what the others are compared with")
    generator = torch.Generator().manual_seed(0)
    # Near the threshold, where no surrogate is 0: what reaches the last element of a frame is seen, too.
    x = (0.5 + 0.2 * torch.rand(shape, generator=generator)).to(target.device, dtype)
    upstream = torch.randn(shape, generator=generator).to(target.device, dtype)
    of_map = torch.randn((shape[1], *shape[3:]), generator=generator).to(target.device)
    x.requires_grad_()
    results = []
    for backend in (target.backend, "reference"):
        with use_backend(backend):
            out = lif(x, NEURONS["paper"], return_sam=True)
        gradient = torch.autograd.grad((out.spikes, out.sam), x, (upstream, of_map))
        results.append((out.spikes, out.sam, *gradient))
    for actual, expected in zip(*results, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("image", "training"), [((64, 64), True), ((61, 67), False)], ids=str)
def test_outputs_of_a_normalisation_larger_than_caches(target, image, dtype, training):
    """Channels that are a number of whole blocks, and such that are not; a residual, whose gradient is as large."""
    if target.backend == "reference":
        pytest.skip("it is what the others are compared with")
    if training and target.backend != "cpu":
        pytest.skip("GPU kernels add up statistics in another order")
    channels = 3
    batch = 69_000_000 // (4 * channels * image[0] * image[1] * dtype.itemsize) + 1
    shape = (4, batch, channels, *image)
    generator = torch.Generator().manual_seed(0)
    y, residual, upstream = (torch.randn(shape, generator=generator, dtype=dtype).to(target.device) for _ in range(3))
    weight, bias = (torch.tensor(v, device=target.device) for v in ([0.8, -1.2, 0.5], [0.4, 0.1, 0.7]))
    leaves = [t.requires_grad_() for t in (y, residual, weight, bias)]
    results = []
    for backend in (target.backend, "reference"):
        running = torch.full((channels,), 0.1, device=target.device), torch.full((channels,), 1.5, device=target.device)
        with use_backend(backend):
            spikes = bn_lif(y, weight, bias, *running, NEURONS["paper"], residual=residual, training=training)
        results.append((spikes, *torch.autograd.grad(spikes, leaves, upstream)))
    names = ("spikes", "grad_y", "grad_residual", "grad_weight", "grad_bias")
    for name, actual, expected in zip(names, *results, strict=True):
        if name == "spikes" or (not training and name in ("grad_y", "grad_residual")):
            assert torch.equal(actual, expected), name
        else:
            assert_close(name, actual, expected, scale=expected.abs().max().item())
