"""Runs one call of `bn_lif` on a backend and judges what comes back: the plain loop on a current that is normalised by
the written-out formula, and float64 autograd through both.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ckd_kernels import Neuron, bn_lif, use_backend
from ckd_kernels.arguments import dense
from lif_checks import Target
from reference_cases import (
    TRANSCENDENTAL,
    Case,
    arithmetic_dtype,
    arrange,
    currents,
    exact_gradients,
    plain_loop,
)
from tolerances import assert_close, assert_same

EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class BNCase:
    """One call of `bn_lif`; what `Case` says of neuron, shape, memory and leak holds for y."""

    lif: Case
    residual: bool = False
    training: bool = True
    affine: bool = True

    @property
    def channels(self) -> int:
        assert self.lif.channel_dim is not None
        return self.lif.shape[self.lif.channel_dim]

    def per_channel(self, values: Tensor) -> Tensor:
        """One value a channel, ready to broadcast over y."""
        return values.reshape([-1 if d == self.lif.channel_dim else 1 for d in range(len(self.lif.shape))])

    def make_y(self) -> Tensor:
        """Channels of means and spreads of their own, off zero."""
        c = torch.arange(self.channels, dtype=torch.float64)
        y = self.lif.make_x().double() * self.per_channel(1 + c / self.channels) + self.per_channel(c - 1.5)
        return y.to(self.lif.dtype)

    def make_residual(self) -> Tensor | None:
        return currents(self.lif.shape, self.lif.dtype, self.lif.seed + 3) if self.residual else None

    def make_affine(self) -> tuple[Tensor | None, Tensor | None]:
        if not self.affine:
            return None, None
        real = arithmetic_dtype(self.lif.dtype)
        c = torch.arange(self.channels, dtype=real)
        return 0.7 + c / self.channels, 0.3 - c / (2 * self.channels)

    def make_running(self) -> tuple[Tensor, Tensor]:
        real = arithmetic_dtype(self.lif.dtype)
        c = torch.arange(self.channels, dtype=real)
        return c - 1.25, 0.6 + c / self.channels


class BNResult(NamedTuple):
    """Outputs and gradients, on the CPU."""

    spikes: Tensor
    v: Tensor
    sam: Tensor
    folded: Tensor
    gradients: dict[str, Tensor]


def run_bn_case(target: Target, case: BNCase) -> BNResult:
    lif, dim = case.lif, case.lif.time_dim
    if lif.memory == "repeated":
        y_leaf = case.make_y().select(dim, 0).to(target.device).clone().requires_grad_()
        y = y_leaf.unsqueeze(dim).expand(lif.shape)
    else:
        y_leaf = y = arrange(case.make_y().to(target.device), lif.memory).requires_grad_()
    leaves: dict[str, Tensor] = {"y": y_leaf}
    named = {"residual": case.make_residual(), "v_init": lif.make_v_init(), lif.neuron.leak_name or "": lif.make_leak()}
    named |= dict(zip(("weight", "bias"), case.make_affine(), strict=True))
    leaves |= {n: t.to(target.device).requires_grad_() for n, t in named.items() if t is not None}
    given: dict[str, Any] = {n: t for n, t in leaves.items() if n not in ("y", "weight", "bias")}
    running = [t.to(target.device) for t in case.make_running()]
    with use_backend(target.backend):
        dense_y, _ = dense(y.detach(), y.shape, dim, lif.channel_dim)
        moments = torch.ops.ckd_kernels.bn_statistics(dense_y, target.backend, dim, lif.shape[dim], lif.channel_dim)
        if not case.training:
            moments = torch.stack(running).double()
        affine = [None if t is None else t.to(target.device) for t in case.make_affine()]
        real = arithmetic_dtype(lif.dtype)
        folded = torch.ops.ckd_kernels.bn_fold(moments, *affine, None, None, None, 1, 0.0, EPS, real, target.backend)
        out = bn_lif(
            y,
            leaves.get("weight"),
            leaves.get("bias"),
            *running,
            lif.neuron,
            training=case.training,
            eps=EPS,
            time_dim=dim,
            channel_dim=lif.channel_dim,
            return_v=True,
            return_sam=True,
            **given,
        )
    upstream = [t.to(target.device) for t in lif.make_upstream() if t is not None]
    gradients = torch.autograd.grad(list(out), list(leaves.values()), upstream)
    on_cpu = {n: g.cpu() for n, g in zip(leaves, gradients, strict=True)}
    return BNResult(*(t.detach().cpu() for t in out), folded.cpu(), on_cpu)


def normalised(case: BNCase, folded: Tensor) -> tuple[Tensor, Tensor]:
    """y as the neuron gets it, and its scale: each operation rounded once, given mean and invstd, which are checked."""
    mean, invstd, scale, shift = folded
    y, real = case.make_y().double(), folded.dtype
    dims = [d for d in range(y.dim()) if d != case.lif.channel_dim]
    moments = (y.mean(dims), y.var(dims, unbiased=False)) if case.training else case.make_running()
    assert_close("mean", mean, moments[0], scale=y.abs().max().item())
    assert_close("invstd", invstd, (moments[1].double() + EPS) ** -0.5)
    weight, bias = case.make_affine()
    assert_same("scale", scale, invstd if weight is None else weight * invstd)
    assert_same("shift", shift, 0.0 - mean * scale if bias is None else bias - mean * scale)
    current = y.to(real) * case.per_channel(scale) + case.per_channel(shift)
    residual = case.make_residual()
    return current if residual is None else current + residual.to(real), scale


def check_bn_case(target: Target, case: BNCase) -> None:
    """Everything of one call: spikes, v and sam bit by bit, gradients bit by bit where they are defined so."""
    result = run_bn_case(target, case)
    current, scale = normalised(case, result.folded)
    lif = case.lif
    leak = lif.make_leak()
    options: dict[str, Any] = {"time_dim": lif.time_dim, "leak": leak, "channel_dim": lif.channel_dim}
    loop = plain_loop(current, lif.neuron, v_init=lif.make_v_init(), **options)
    assert_same("spikes", result.spikes, loop.spikes.to(lif.dtype))
    assert_same("v", result.v, loop.v)
    assert loop.sam is not None
    assert_same("sam", result.sam, loop.sam.float())

    grad_spikes, grad_v, grad_sam = lif.make_upstream()
    exact = exact_gradients(
        current,
        lif.neuron,
        grad_spikes=grad_spikes,
        grad_v=grad_v,
        grad_sam=grad_sam,
        v_init=lif.make_v_init(),
        **options,
    )
    judge = assert_close if lif.neuron.surrogate.name in TRANSCENDENTAL else assert_same
    if case.residual:
        judge("grad_residual", result.gradients["residual"], exact.x.to(lif.dtype))
    if not case.training:
        # Normalised by constants, dL/dy is dL/dx times the scale; of a repeated frame, of the sum over time.
        gx = exact.x
        if lif.memory == "repeated":
            gx = torch.zeros_like(gx.select(lif.time_dim, 0))
            for t in reversed(range(lif.shape[lif.time_dim])):
                gx = gx + exact.x.select(lif.time_dim, t)
            gx = gx.unsqueeze(lif.time_dim)
        gy = (gx * case.per_channel(scale)).to(lif.dtype)
        judge("grad_y", result.gradients["y"], gy.squeeze(lif.time_dim) if lif.memory == "repeated" else gy)
    check_against_autograd(case, result, loop, exact.leak_scale, exact.x.abs().sum().item())


def check_against_autograd(case: BNCase, result: BNResult, followed: Any, leak_scale: float, scale: float) -> None:
    """Every gradient against float64 autograd through batch normalisation and the loop."""
    lif = case.lif
    dims = [d for d in range(len(lif.shape)) if d != lif.channel_dim]
    wide: dict[str, Tensor] = {"residual": case.make_residual(), "v_init": lif.make_v_init(), "leak": lif.make_leak()}
    wide |= dict(zip(("weight", "bias"), case.make_affine(), strict=True))
    wide = {n: t.double().requires_grad_() for n, t in wide.items() if t is not None}
    y = case.make_y().double()
    if lif.memory == "repeated":
        leaf = y.select(lif.time_dim, 0).clone().requires_grad_()
        y = leaf.unsqueeze(lif.time_dim).expand(lif.shape)
    else:
        leaf = y.requires_grad_()
    mean, var = y.mean(dims, keepdim=True), y.var(dims, unbiased=False, keepdim=True)
    if not case.training:
        mean, var = (case.per_channel(t.double()) for t in case.make_running())
    current = (y - mean) / torch.sqrt(var + EPS)
    if case.affine:
        current = current * case.per_channel(wide["weight"]) + case.per_channel(wide["bias"])
    if case.residual:
        current = current + wide["residual"]
    loop = plain_loop(
        current,
        lif.neuron,
        time_dim=lif.time_dim,
        v_init=wide.get("v_init"),
        leak=wide.get("leak"),
        channel_dim=lif.channel_dim,
        follow=followed,
    )
    upstream = [t.double() for t in lif.make_upstream() if t is not None]
    leaves = {"y": leaf, **wide}
    expected = torch.autograd.grad([loop.spikes, loop.v, loop.sam], list(leaves.values()), upstream, allow_unused=True)
    for (name, t), g in zip(leaves.items(), expected, strict=True):
        actual = result.gradients[lif.neuron.leak_name if name == "leak" else name]
        # Sums over many terms are as exact as their terms are large.
        of_sum = {"weight": 4 * scale, "bias": scale, "leak": leak_scale}.get(name)
        assert_close(f"grad of {name}", actual, torch.zeros_like(t) if g is None else g, scale=of_sum)


def simple(neuron: Neuron | None = None, **options: Any) -> Case:
    """A `Case` of the paper's neuron unless another one is given."""
    return Case(neuron or Neuron.paper(), **options)
