"""Runs a `Case` on a backend and judges what comes back against the plain loop."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ckd_kernels import lif, use_backend
from reference_cases import (
    TRANSCENDENTAL,
    Case,
    LoopGradients,
    LoopOutput,
    arrange,
    exact_gradients,
    plain_loop,
)
from tolerances import assert_close, assert_same


class Target(NamedTuple):
    """A backend and the device that it runs on."""

    backend: str
    device: str

    def __str__(self) -> str:
        return self.backend if self.backend != "reference" else f"reference-{self.device}"


class Result(NamedTuple):
    """Outputs and gradients, on the CPU; ``x`` is the very input, for its strides."""

    x: Tensor
    spikes: Tensor
    v: Tensor | None = None
    sam: Tensor | None = None
    grad_x: Tensor | None = None
    grad_v_init: Tensor | None = None
    grad_leak: Tensor | None = None
    strides: tuple[tuple[int, ...], ...] = ()


def run_case(target: Target, case: Case, *, backward: bool) -> Result:
    """Everything that `lif` can return for a case, on a backend."""
    values = case.make_x().to(target.device)
    if case.memory == "repeated":
        leaf = values.select(case.time_dim, 0).clone().requires_grad_(backward)
        x = leaf.unsqueeze(case.time_dim).expand(case.shape)
    else:
        leaf = x = arrange(values, case.memory).requires_grad_(backward)
    v_init, leak = case.make_v_init(), case.make_leak()
    options = {}
    if v_init is not None:
        v_init = options["v_init"] = v_init.to(target.device).requires_grad_(backward)
    if leak is not None:
        assert case.neuron.leak_name is not None
        leak = options[case.neuron.leak_name] = leak.to(target.device).requires_grad_(backward)
    wants_map = case.channel_dim is not None and not case.spikes_only
    if wants_map or case.leak == "channel":
        options["channel_dim"] = case.channel_dim
    with use_backend(target.backend):
        if case.spikes_only:
            outputs = [lif(x, case.neuron, time_dim=case.time_dim, **options)]
        else:
            out = lif(x, case.neuron, time_dim=case.time_dim, return_v=True, return_sam=wants_map, **options)
            assert (out.sam is not None) == wants_map
            outputs = [t for t in out if t is not None]
    on_cpu = dict(zip(("spikes", "v", "sam"), (t.detach().cpu() for t in outputs), strict=False))
    strides = (outputs[0].stride(),)
    if not backward:
        return Result(x, **on_cpu, strides=strides)
    upstream = [t.to(target.device) for t in case.make_upstream() if t is not None]
    wanted = {"grad_x": leaf, "grad_v_init": v_init, "grad_leak": leak}
    wanted = {name: t for name, t in wanted.items() if t is not None}
    gradients = torch.autograd.grad(outputs, list(wanted.values()), upstream)
    strides = (*strides, gradients[0].stride())
    return Result(x, **on_cpu, **{n: g.cpu() for n, g in zip(wanted, gradients, strict=True)}, strides=strides)


def check_forward(target: Target, case: Case, result: Result | None = None) -> None:
    """Spikes, last potential and activation map are the plain loop's, bit for bit."""
    if result is None:
        result = run_case(target, case, backward=False)
    loop = expected_outputs(case)
    assert_same("spikes", result.spikes, loop.spikes)
    if result.v is not None:
        assert_same("v", result.v, loop.v)
    if result.sam is not None:
        assert loop.sam is not None
        assert_same("sam", result.sam, loop.sam.float())
    if _read_in_place(case, result.x):
        expected = [stride for stride, n in zip(result.x.stride(), case.shape, strict=True) if n > 1]
        for strides in result.strides:
            assert [s for s, n in zip(strides, case.shape, strict=True) if n > 1] == expected, "memory format lost"


def _read_in_place(case: Case, x: Tensor) -> bool:
    """Whether x is dense, and time not within the channels where those are told apart."""
    if case.memory in ("sliced", "repeated"):
        return False
    channels = case.channel_dim
    if channels is not None and case.shape[case.time_dim] == 1 and case.memory == "reversed":
        return False
    return channels is None or case.shape[channels] == 1 or x.stride(channels) < x.stride(case.time_dim)


def check_gradients(target: Target, case: Case) -> None:
    """Forward as `check_forward`, and every gradient against float64 autograd and the exact order of operations."""
    result = run_case(target, case, backward=True)
    check_forward(target, case, result)
    check_against_autograd(case, result)
    check_bits(case, result)


def check_against_autograd(case: Case, result: Result) -> None:
    """Gradients against autograd in float64 through the plain loop that fires as the narrower pass did."""
    expected = autograd_gradients(case)
    for name, g in expected.items():
        actual = getattr(result, name)
        scale = expected_gradients(case).leak_scale if name == "grad_leak" else None
        assert_close(name, actual, g, scale=scale)


def check_bits(case: Case, result: Result) -> None:
    """Gradients as the numerics contract has them: bit by bit, a few ulp where sg has a transcendental."""
    expected = expected_gradients(case)
    judge = assert_close if case.neuron.surrogate.name in TRANSCENDENTAL else assert_same
    assert result.grad_x is not None
    judge("grad_x", result.grad_x, expected.x)
    if result.grad_v_init is not None:
        judge("grad_v_init", result.grad_v_init, expected.v_init)
    if result.grad_leak is not None:
        # Rounded in float32 or better, in any order of summation.
        assert_close("grad_leak", result.grad_leak, expected.leak, scale=expected.leak_scale)


# What a case should give is the same for every backend, so it is computed once.


@functools.cache
def expected_outputs(case: Case) -> LoopOutput:
    return plain_loop(
        case.make_x(),
        case.neuron,
        time_dim=case.time_dim,
        v_init=case.make_v_init(),
        leak=case.make_leak(),
        channel_dim=case.channel_dim,
    )


@functools.cache
def autograd_gradients(case: Case) -> dict[str, Tensor]:
    x, v_init, leak = case.make_x(), case.make_v_init(), case.make_leak()
    leaf = wide = x.double()
    if case.memory == "repeated":
        leaf = wide.select(case.time_dim, 0).clone().requires_grad_()
        wide = leaf.unsqueeze(case.time_dim).expand(case.shape)
    else:
        leaf.requires_grad_()
    if v_init is not None:
        v_init = v_init.double().requires_grad_()
    if leak is not None:
        leak = leak.double().requires_grad_()
    loop = plain_loop(
        wide,
        case.neuron,
        time_dim=case.time_dim,
        v_init=v_init,
        leak=leak,
        channel_dim=case.channel_dim,
        follow=expected_outputs(case),
    )
    upstream = [t.double() for t in case.make_upstream() if t is not None]
    outputs = [loop.spikes, loop.v, loop.sam][: len(upstream)]
    wanted = {"grad_x": leaf, "grad_v_init": v_init, "grad_leak": leak}
    wanted = {name: t for name, t in wanted.items() if t is not None}
    gradients = torch.autograd.grad(outputs, list(wanted.values()), upstream, allow_unused=True)
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(wanted.items(), gradients, strict=True)}


@functools.cache
def expected_gradients(case: Case) -> LoopGradients:
    grad_spikes, grad_v, grad_sam = case.make_upstream()
    return exact_gradients(
        case.make_x(),
        case.neuron,
        grad_spikes=grad_spikes,
        grad_v=grad_v,
        grad_sam=grad_sam,
        time_dim=case.time_dim,
        v_init=case.make_v_init(),
        leak=case.make_leak(),
        channel_dim=case.channel_dim,
        sum_over_time=case.memory == "repeated",
    )
