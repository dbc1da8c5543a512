"""Batch normalisation and a neuron in one, on every backend."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bn_lif_checks import BNCase, check_bn_case, simple
from ckd_kernels import Neuron, bn_lif, lif, use_backend
from reference_cases import MEMORY, SURROGATES, TRANSCENDENTAL, arrange, make_neuron
from test_lif_grid import RESETS_AND_DETACH, skip_unless_served
from tolerances import assert_close, assert_same

CHARGES = ("decay", "leak", "leak_input", "integrate")
OPS = torch.ops.ckd_kernels


# --- statistics


def samples(kind: str, shape: tuple[int, ...]) -> torch.Tensor:
    torch.manual_seed(1)
    y = torch.randn(shape, dtype=torch.float64)
    if kind == "far from zero":
        y = y * 1e-2 + 300
    elif kind == "an outlier first":
        y[0, 0] = 3e4
    elif kind == "constant":
        y = torch.full(shape, 1.7, dtype=torch.float64)
    elif kind == "tiny":
        y = y * 1e-30
    else:
        assert kind == "normal"
    return y


def ulps(actual: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Distance in units of the last place of float32."""
    a, b = (t.float().view(torch.int32).long() for t in (actual, exact))
    return (a - b).abs()


@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "offset"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["normal", "far from zero", "an outlier first", "constant", "tiny"])
def test_statistics_are_within_two_ulp_of_float64(target, kind, dtype, memory):
    y = samples(kind, (4, 3, 5, 19, 23)).to(dtype)
    exact_mean = y.double().mean((0, 1, 3, 4))
    exact_var = y.double().var((0, 1, 3, 4), unbiased=False)
    moments = OPS.bn_statistics(arrange(y.to(target.device), memory), target.backend, 0, 4, 2).cpu()
    assert moments.dtype == torch.float64
    assert ulps(moments[0], exact_mean).max() <= 2
    assert ulps(moments[1], exact_var).max() <= 2


@pytest.mark.parametrize(
    "shape", [(1, 1, 300, 1, 1), (4, 2, 1, 40, 50), (3, 130, 7, 1, 1), (2, 1, 5, 130, 129)], ids=str
)
def test_statistics_of_odd_shapes(target, shape):
    y = samples("far from zero", shape).float()
    moments = OPS.bn_statistics(y.to(target.device), target.backend, 0, shape[0], 2).cpu()
    assert ulps(moments[0], y.double().mean((0, 1, 3, 4))).max() <= 2
    assert ulps(moments[1], y.double().var((0, 1, 3, 4), unbiased=False)).max() <= 2


def test_statistics_of_a_repeated_frame_are_the_frame_s(target):
    frame = samples("normal", (1, 3, 5, 7, 9)).float().to(target.device)
    assert_same(
        "moments",
        OPS.bn_statistics(frame, target.backend, 0, 8, 2),
        OPS.bn_statistics(frame, target.backend, 0, 1, 2),
    )


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_same_bits_with_any_number_of_threads_and_every_time(target, memory):
    y = arrange(samples("normal", (4, 6, 8, 33, 31)).float().to(target.device), memory)
    weight, bias = (torch.ones(8, device=target.device).requires_grad_() for _ in range(2))

    def run():
        leaf = y.clone().requires_grad_()
        with use_backend(target.backend):
            spikes = bn_lif(leaf, weight, bias, None, None, Neuron.paper())
            return spikes, *torch.autograd.grad((spikes * y).sum(), (leaf, weight, bias))

    before, expected = torch.get_num_threads(), run()
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            for a, b in zip(run(), expected, strict=True):
                assert_same("output or gradient", a, b)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("counted", [False, True], ids=["values", "count"])
@pytest.mark.parametrize("given", ["all", "weight", "nothing"])
def test_fold_and_coefficients_have_the_reference_s_bits(target, given, counted):
    """The vectors between the passes: the same on every backend, in float32 to the last bit."""
    generator = torch.Generator().manual_seed(0)
    weight, bias, mean, var = torch.randn(4, 300, generator=generator)
    moments = torch.stack([torch.randn(300, generator=generator).double(), var.double() ** 2])
    vectors = {"all": [weight, bias, mean, var], "weight": [weight, None, None, None], "nothing": [None] * 4}[given]
    count = torch.tensor(7.0, dtype=torch.float64) if counted else None
    results = []
    for device, backend in ((target.device, target.backend), ("cpu", "reference")):
        on = [None if t is None else t.to(device) for t in (moments, *vectors, count)]
        folded = OPS.bn_fold(*on, 11, 0.1, 1e-5, torch.float32, backend)
        coefficients = OPS.bn_coefficients(on[0], folded[1], on[-1], 11, backend)
        results.append((folded.cpu(), coefficients.cpu()))
    for name, actual, expected in zip(("folded", "coefficients"), *results, strict=True):
        assert_same(name, actual, expected)


# --- the whole


@pytest.mark.parametrize("training", [True, False], ids=["batch", "running"])
@pytest.mark.parametrize("memory", [*MEMORY, "repeated"])
@pytest.mark.parametrize("time_dim", [0, 1])
def test_layouts(target, time_dim, memory, training):
    shape = (5, 2, 3, 3, 5) if time_dim == 0 else (2, 5, 3, 3, 5)
    case = simple(shape=shape, time_dim=time_dim, memory=memory)
    check_bn_case(target, BNCase(case, residual=memory != "offset", training=training))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("reset", "detach"), RESETS_AND_DETACH)
@pytest.mark.parametrize("charge", CHARGES)
def test_neurons(target, charge, reset, detach, dtype):
    skip_unless_served(target, dtype)
    turn = CHARGES.index(charge) * 7 + RESETS_AND_DETACH.index((reset, detach))
    plain = turn % 2 == 0
    neuron = make_neuron(charge, reset, plain=plain, surrogate_=SURROGATES[turn % 9], detach_reset=detach)
    leak = None if charge == "integrate" else ("scalar", "channel", None)[turn % 3]
    case = simple(neuron, dtype=dtype, v_init=not plain, leak=leak, seed=turn)
    check_bn_case(target, BNCase(case, residual=turn % 2 == 1, training=turn % 4 < 3, affine=turn % 5 != 4))


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("image", [(19, 9), (8, 8), (12, 16)], ids=str)
@pytest.mark.parametrize(("reset", "detach"), RESETS_AND_DETACH)
def test_gradients_of_spikes_alone(target, reset, detach, image, residual, dtype, memory):
    """Kernels have shorter ways for calls that return spikes alone; a map whose gradient is zero takes the long one.

    Images of whole blocks of 64 elements take a way of their own again.
    """
    turn = RESETS_AND_DETACH.index((reset, detach))
    for steps, surrogate in ((4, SURROGATES[turn]), (7, SURROGATES[turn + 1]), (20, "triangle")):
        neuron = make_neuron("decay", reset, surrogate_=surrogate, detach_reset=detach)
        torch.manual_seed(turn)
        y, r, upstream = (arrange(torch.randn(steps, 2, 5, *image), memory).to(target.device, dtype) for _ in range(3))
        affine = [torch.linspace(*ends, 5).to(target.device).requires_grad_() for ends in ((0.8, 1.9), (1.6, 0.9))]
        leaves = [y.requires_grad_(), *affine]
        if residual:
            leaves.append(r.requires_grad_())
        options = {"residual": r} if residual else {}
        with use_backend(target.backend):
            spikes = bn_lif(*leaves[:3], None, None, neuron, **options)
            both = bn_lif(*leaves[:3], None, None, neuron, return_sam=True, **options)
        assert_same("spikes", spikes, both.spikes)
        short = torch.autograd.grad(spikes, leaves, upstream)
        long = torch.autograd.grad([both.spikes, both.sam], leaves, [upstream, torch.zeros_like(both.sam)])
        judge = assert_close if neuron.surrogate.name in TRANSCENDENTAL else assert_same
        for name, a, b in zip(("y", "weight", "bias", "residual"), short, long, strict=False):
            assert a.abs().sum() > 0
            judge(name, a, b)


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 3, 16, 8, 8), (4, 3, 16, 8, 8), (4, 2, 8, 32, 16), (16, 2, 5, 7, 3)], ids=str)
def test_wide_accesses(target, shape, dtype, memory):
    """Sizes that kernels serve with their widest accesses and their unrolled loops, and one that they do not."""
    check_bn_case(target, BNCase(simple(shape=shape, dtype=dtype, memory=memory), residual=True))


@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "repeated"])
@pytest.mark.parametrize("steps", [1, 2, 3, 17, 40])
def test_steps(target, steps, memory):
    neuron = make_neuron("decay", "hard", plain=False)
    case = simple(neuron, shape=(steps, 2, 4, 3, 5), memory=memory, v_init=True, leak="channel")
    check_bn_case(target, BNCase(case, residual=True))


@pytest.mark.parametrize("shape", [(4, 6, 3), (4, 2, 3, 8), (3, 2, 4, 2, 2, 3)], ids=str)
def test_any_number_of_dimensions(target, shape):
    check_bn_case(target, BNCase(simple(shape=shape)))


@pytest.mark.parametrize("channel_dim", [1, 3, 4])
def test_channels_anywhere(target, channel_dim):
    check_bn_case(target, BNCase(simple(shape=(4, 2, 3, 3, 5), channel_dim=channel_dim), residual=True))


def test_not_a_number_stays_in_its_channel(target):
    y = samples("normal", (4, 2, 3, 4, 4)).float()
    y[1, 0, 1, 2, 2] = float("nan")
    with use_backend(target.backend):
        spikes = bn_lif(y.to(target.device), None, None, None, None, Neuron.paper()).cpu()
    assert spikes[:, :, 1].sum() == 0
    assert spikes[:, :, 0].sum() > 0


@pytest.mark.parametrize("image", [(8, 8), (3, 3)], ids=str)
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_nan_of_any_payload_stays_nan(target, image, memory):
    """Uninitialised memory may hold any; rounding one to a short type must not make a number of it."""
    y = arrange(samples("normal", (4, 2, 3, *image)).bfloat16(), memory).to(target.device).requires_grad_()
    weight = torch.tensor([0, -1, 2**31 - 1], dtype=torch.int32).view(torch.float32).to(target.device)
    with use_backend(target.backend):
        bn_lif(y, weight, None, None, None, Neuron.paper()).sum().backward()
    assert not y.grad[:, :, 0].isnan().any()
    assert y.grad[:, :, 1:].isnan().all()


def test_empty(target):
    for shape in ((0, 2, 3, 4, 4), (4, 0, 3, 4, 4), (4, 2, 3, 0, 4)):
        y = torch.zeros(shape, device=target.device, requires_grad=True)
        weight = torch.ones(3, device=target.device, requires_grad=True)
        mean, var = torch.zeros(3, device=target.device), torch.ones(3, device=target.device)
        with use_backend(target.backend):
            out = bn_lif(y, weight, None, mean, var, Neuron.paper(), return_v=True, return_sam=True)
        (out.spikes.sum() + out.v.sum() + out.sam.sum()).backward()
        assert out.spikes.shape == shape
        assert y.grad.shape == shape
        assert weight.grad.abs().sum() == 0
        assert mean.abs().sum() == 0


# --- as nn.BatchNorm2d has it


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_running_statistics(target, dtype, memory, repeated):
    norm = nn.BatchNorm2d(5).to(target.device)
    mean, var = torch.zeros(5, device=target.device), torch.ones(5, device=target.device)
    for step in range(3):
        torch.manual_seed(step)
        y = arrange((torch.randn(4, 3, 5, 6, 7, device=target.device) + 2).to(dtype), memory)
        if repeated:
            y = y[:1].expand(4, -1, -1, -1, -1)
        with use_backend(target.backend):
            bn_lif(y, norm.weight, norm.bias, mean, var, Neuron.paper())
        norm(y.flatten(0, 1).float())
    assert_close("running_mean", mean, norm.running_mean)
    assert_close("running_var", var, norm.running_var)


def test_gradients_are_those_of_the_pair(target):
    """nn.BatchNorm2d, the residual and our own LIF one after the other."""
    torch.manual_seed(0)
    y, r, upstream = (torch.randn(4, 3, 5, 6, 7, device=target.device) for _ in range(3))
    norm = nn.BatchNorm2d(5).to(target.device)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    leaves = [y.clone().requires_grad_(), r.clone().requires_grad_(), norm.weight, norm.bias]
    with use_backend(target.backend):
        one = bn_lif(leaves[0], *leaves[2:], None, None, Neuron.paper(), residual=leaves[1])
        normalised = norm(leaves[0].flatten(0, 1)).unflatten(0, (4, 3))
        pair = lif(normalised + leaves[1], Neuron.paper())
    # The pair's statistics differ in the last bits, so an input at the threshold could fire in one of the two alone.
    assert (one != pair).sum() == 0
    for a, b in zip(
        torch.autograd.grad(one, leaves, upstream), torch.autograd.grad(pair, leaves, upstream), strict=True
    ):
        assert_close("gradient", a, b)
