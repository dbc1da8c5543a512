"""`bn_lif` on a GPU in one launch a direction: the bits of several launches, captured or not, on two streams."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from ckd_kernels import Neuron, bn_lif, build_info, surrogate, use_backend

pytestmark = pytest.mark.skipif(build_info()["backends"]["cuda"] != "available", reason="no GPU, or no kernels for it")

NEURONS = {
    "paper": Neuron.paper(),
    "paper, other constants": dataclasses.replace(Neuron.paper(), decay=0.9, surrogate=surrogate.Triangle(0.7)),
    "spikingjelly, atan": dataclasses.replace(Neuron.spikingjelly_lif(), surrogate=surrogate.ATan(), detach_reset=True),
    "spikingjelly, sigmoid": Neuron.spikingjelly_lif(),
}
SHAPES = [(4, 2, 64, 8, 8), (1, 3, 128, 6, 6), (4, 128, 512, 8, 8), (1, 128, 128, 32, 32), (4, 5, 72, 4, 4)]


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype, last: bool, residual: bool, seed: int = 0
) -> list[Tensor | None]:
    generator = torch.Generator("cuda").manual_seed(seed)

    def fresh() -> Tensor:
        x = torch.randn(shape, generator=generator, device="cuda").to(dtype)
        return x.movedim(2, -1).contiguous().movedim(-1, 2) if last else x

    y, grad, more = fresh(), fresh(), fresh()
    channels = shape[2]
    weight = 0.5 + torch.rand(channels, generator=generator, device="cuda")
    bias = torch.rand(channels, generator=generator, device="cuda")
    return [y, grad, weight, bias, more if residual else None]


def run(given: list[Tensor | None], neuron: Neuron) -> list[Tensor]:
    y, grad, weight, bias, residual = given
    channels = y.shape[2]
    running = torch.zeros(channels, device="cuda"), torch.ones(channels, device="cuda")
    leaves = [t.detach().requires_grad_() for t in (y, weight, bias, residual) if t is not None]
    more = {"residual": leaves[3]} if residual is not None else {}
    with use_backend("cuda"):
        spikes = bn_lif(*leaves[:3], *running, neuron, **more)
        return [spikes.detach(), *running, *torch.autograd.grad(spikes, leaves, grad)]


def assert_same_bits(got: list[Tensor], want: list[Tensor]) -> None:
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(a, b), f"tensor {i} differs in {(a != b).sum().item()} of {a.numel()} places"


@pytest.fixture(params=["one", "several"])
def launches(request, monkeypatch):
    monkeypatch.setenv("CKD_BN_LAUNCHES", request.param)


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("neuron", NEURONS)
def test_one_launch_has_the_bits_of_several(neuron, shape, dtype, last, residual, monkeypatch):
    given = inputs(shape, dtype, last, residual)
    monkeypatch.setenv("CKD_BN_LAUNCHES", "several")
    want = run(given, NEURONS[neuron])
    monkeypatch.setenv("CKD_BN_LAUNCHES", "one")
    for _ in range(3):
        assert_same_bits(run(given, NEURONS[neuron]), want)


@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_general_kernels_agree(dtype, last, monkeypatch):
    """A neuron's constants choose its kernel; spikes and gradients do not tell which one it was."""
    given = inputs((4, 8, 64, 8, 8), dtype, last, False)
    monkeypatch.setenv("CKD_BN_LAUNCHES", "one")
    spikes, *_, grad_y, grad_weight, grad_bias = run(given, Neuron.paper())
    with use_backend("reference"):
        leaves = [t.detach().requires_grad_() for t in given[:1] + given[2:4]]
        running = torch.zeros(64, device="cuda"), torch.ones(64, device="cuda")
        want = bn_lif(*leaves, *running, Neuron.paper())
        gradients = torch.autograd.grad(want, leaves, given[1])
    assert torch.equal(spikes, want)
    tolerance = {"rtol": 1e-2, "atol": 1e-3} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    for got, right in zip((grad_y, grad_weight, grad_bias), gradients, strict=True):
        torch.testing.assert_close(got.float(), right.float(), **tolerance)


def test_captured(launches):
    given = inputs((4, 16, 128, 8, 8), torch.bfloat16, True, True)
    want = run(given, Neuron.paper())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(given, Neuron.paper())
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(given, Neuron.paper())
    for _ in range(5):
        for t in out:
            t.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert_same_bits(out[:1] + out[3:], want[:1] + want[3:])


def test_two_streams_at_once(launches):
    """Grids that wait for all of their blocks must not wait for each other's."""
    streams = [torch.cuda.Stream() for _ in range(2)]
    given = [inputs((4, 32, 128, 16, 16), torch.bfloat16, True, False, seed) for seed in range(2)]
    want = [run(each, Neuron.paper()) for each in given]
    torch.cuda.synchronize()
    got = []
    for _ in range(20):
        for stream, each in zip(streams, given, strict=True):
            with torch.cuda.stream(stream):
                got.append(run(each, Neuron.paper()))
    torch.cuda.synchronize()
    for i, each in enumerate(got):
        assert_same_bits(each, want[i % 2])
