"""A plain PyTorch loop over time, and the inputs that every backend is compared on.

The loop is written from the neurons' equations and shares no code with the package's own reference
backend; of the package it knows only `Neuron`, as the record of options that it is.  It runs on the CPU.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ckd_kernels import Neuron, surrogate

SURROGATES = (
    "sigmoid",
    "atan",
    "triangle",
    "rectangle",
    "piecewise_exp",
    "soft_sign",
    "fast_sigmoid",
    "super_spike",
    "erf",
)
TRANSCENDENTAL = ("sigmoid", "piecewise_exp", "erf")  # their last bits may differ between backends

# sg(u) as the literature writes it; accurate only in float64.
DERIVATIVES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "sigmoid": lambda u, a: a * torch.sigmoid(a * u) * torch.sigmoid(-a * u),
    "atan": lambda u, a: (a / 2) / (1 + (math.pi / 2 * a * u) ** 2),
    "triangle": lambda u, a: (a - a**2 * u.abs()).clamp(min=0),
    "rectangle": lambda u, a: a * (u.abs() < 0.5 / a).to(u.dtype),
    "piecewise_exp": lambda u, a: a / 2 * torch.exp(-a * u.abs()),
    "soft_sign": lambda u, a: 1 / (2 * a * (1 / a + u.abs()) ** 2),
    "fast_sigmoid": lambda u, a: 1 / (a * u.abs() + 1) ** 2,
    "super_spike": lambda u, a: a / (1 + u.abs()) ** 2,
    "erf": lambda u, a: a / math.sqrt(math.pi) * torch.exp(-((a * u) ** 2)),
}


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class _Fire(torch.autograd.Function):
    """A spike where ``fired``; backward, the surrogate derivative at ``u``."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, u: Tensor, fired: Tensor, surrogate_: surrogate.Surrogate) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate_
        return fired.to(h.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (u,) = ctx.saved_tensors
        return grad * DERIVATIVES[ctx.surrogate.name](u, ctx.surrogate.alpha), None, None, None


class _HardReset(torch.autograd.Function):
    """``v_reset if s else h``, with the gradient of ``h + s*(v_reset - h)``."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, s: Tensor, v_reset: float) -> Tensor:
        ctx.save_for_backward(h, s)
        ctx.v_reset = v_reset
        return torch.where(s > 0, v_reset, h)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, s = ctx.saved_tensors
        return grad * (1 - s), grad * (ctx.v_reset - h), None


class LoopOutput(NamedTuple):
    spikes: Tensor  # x's shape and dtype
    v: Tensor
    sam: Tensor | None
    h: Tensor  # membrane potential before the reset; time is dimension 0
    u: Tensor  # h - threshold; time is dimension 0 and starts with v_init's


def _constants(
    neuron: Neuron, leak: Tensor | None, dtype: torch.dtype, per_frame: Sequence[int]
) -> tuple[Tensor, float]:
    """Decay or tau ready to broadcast over a frame, and what stands for v_reset in the charge."""
    if leak is None:
        leak = torch.tensor(1.0 if neuron.leak_name is None else getattr(neuron, neuron.leak_name), dtype=dtype)
    else:
        leak = leak.to(dtype).reshape(per_frame if leak.numel() > 1 else ())
    return leak, neuron.v_reset if neuron.reset == "hard" else 0.0  # type: ignore[return-value]


def _charge(neuron: Neuron, v: Tensor, x: Tensor, leak: Tensor, v_reset: float) -> Tensor:
    if neuron.charge == "decay":
        return v * leak + x
    if neuron.charge == "leak":
        return v - (v - v_reset) / leak + x
    if neuron.charge == "leak_input":
        return v + (x - (v - v_reset)) / leak
    assert neuron.charge == "integrate"
    return v + x


def _fires(neuron: Neuron, h: Tensor) -> Tensor:
    return h > neuron.threshold if neuron.strict else h >= neuron.threshold


def _channel_shape(x: Tensor, time_dim: int, channel_dim: int | None) -> list[int]:
    """A shape that spreads one value a channel over a frame."""
    shape = [n if d == channel_dim else 1 for d, n in enumerate(x.shape)]
    return shape[:time_dim] + shape[time_dim + 1 :]


def plain_loop(
    x: Tensor,
    neuron: Neuron,
    *,
    time_dim: int = 0,
    v_init: Tensor | None = None,
    leak: Tensor | None = None,
    channel_dim: int | None = None,
    follow: LoopOutput | None = None,
) -> LoopOutput:
    """The neuron one step after the other, differentiable by autograd.

    A float64 pass can ``follow`` a float32 one: it fires where that fired, and takes surrogate derivatives where
    that took them, so that rounding does not put the two on different sides of a jump.  The activation map is
    returned where ``channel_dim`` is given.
    """
    dtype = arithmetic_dtype(x.dtype)
    leak, v_reset = _constants(neuron, leak, dtype, _channel_shape(x, time_dim, channel_dim))
    frames = x.to(dtype).unbind(time_dim)
    frame_shape = x.shape[:time_dim] + x.shape[time_dim + 1 :]
    v = torch.full(frame_shape, v_reset, dtype=dtype) if v_init is None else v_init.to(dtype)
    spikes, potentials, us = [], [], []

    def fire(h: Tensor) -> Tensor:
        u = h.detach() - neuron.threshold if follow is None else follow.u[len(us)].to(dtype)
        if follow is None or not us:
            fired = _fires(neuron, h)
        else:
            fired = follow.spikes.select(time_dim, len(us) - 1) > 0
        us.append(u)
        return _Fire.apply(h, u, fired, neuron.surrogate)

    s = fire(v)  # a delayed reset is due from the start where v_init is over the threshold
    for frame in frames:
        h = _charge(neuron, v, frame, leak, v_reset)
        if neuron.reset == "soft_delayed":
            h = h - (s.detach() if neuron.detach_reset else s) * neuron.threshold
        s = fire(h)
        s_reset = s.detach() if neuron.detach_reset else s
        if neuron.reset == "hard":
            v = _HardReset.apply(h, s_reset, v_reset)
        elif neuron.reset == "soft":
            v = h - s_reset * neuron.threshold
        else:
            assert neuron.reset in ("soft_delayed", "none")
            v = h
        spikes.append(s)
        potentials.append(h)
    if not spikes:
        empty = x.to(dtype)
        sam = None if channel_dim is None else empty.sum((time_dim, channel_dim))
        return LoopOutput(x.clone(), v, sam, empty.movedim(time_dim, 0), torch.stack(us))
    stacked = torch.stack(spikes, time_dim)
    sam = None
    if channel_dim is not None:
        sam = stacked.sum((time_dim, channel_dim)) / max(x.shape[time_dim] * x.shape[channel_dim], 1)
    return LoopOutput(stacked.to(x.dtype), v, sam, torch.stack(potentials), torch.stack(us))


class LoopGradients(NamedTuple):
    x: Tensor
    v_init: Tensor
    leak: Tensor  # float64 sum of the terms
    leak_scale: float  # sum of the terms' magnitudes


def exact_gradients(
    x: Tensor,
    neuron: Neuron,
    *,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None = None,
    grad_sam: Tensor | None = None,
    time_dim: int = 0,
    v_init: Tensor | None = None,
    leak: Tensor | None = None,
    channel_dim: int | None = None,
    sum_over_time: bool = False,
) -> LoopGradients:
    """The backward pass in the order of operations that the numerics contract fixes, each rounded once.

    ``sum_over_time`` gives the gradient of one frame that is repeated at every step, last step first.
    """
    dtype = arithmetic_dtype(x.dtype)
    steps = x.shape[time_dim]
    thr, sg_of = neuron.threshold, neuron.surrogate.derivative
    per_channel = _channel_shape(x, time_dim, channel_dim)
    forward = plain_loop(x, neuron, time_dim=time_dim, v_init=v_init, leak=leak, channel_dim=channel_dim)
    constant, v_reset = _constants(neuron, leak, dtype, per_channel)
    hs, spikes = forward.h, forward.spikes.to(dtype).unbind(time_dim)
    start = torch.full_like(hs[0], v_reset) if v_init is None else v_init.to(dtype)
    # v[t-1] for every t
    before = [start]
    for h, s in zip(hs[:-1], spikes[:-1], strict=True):
        if neuron.reset == "hard":
            h = torch.where(s > 0, v_reset, h)
        elif neuron.reset == "soft":
            h = h - s * thr
        before.append(h)
    gs_sam = torch.zeros((), dtype=dtype)
    if grad_sam is not None:
        assert channel_dim is not None
        at = channel_dim - (channel_dim > time_dim)
        gs_sam = (grad_sam.to(dtype) * (1.0 / (steps * x.shape[channel_dim]))).unsqueeze(at)
    gv = torch.zeros_like(start) if grad_v is None else grad_v.to(dtype)
    later: Tensor | None = None  # what a delayed reset passes back to s[t] from h[t+1]
    gxs: list[Tensor] = []
    terms = torch.zeros_like(start, dtype=torch.float64)
    magnitudes = torch.zeros_like(terms)
    one = torch.ones((), dtype=dtype)
    for t in reversed(range(steps)):
        gs = gs_sam if grad_spikes is None else grad_spikes.select(time_dim, t).to(dtype) + gs_sam
        if later is not None:
            gs = gs - later
        sg = sg_of(hs[t] - thr)
        r = one
        if neuron.reset == "hard":
            r = 1 - spikes[t]
            if not neuron.detach_reset:
                r = r + (v_reset - hs[t]) * sg
        elif neuron.reset == "soft" and not neuron.detach_reset:
            r = 1 - sg * thr
        gh = gs * sg + gv * r
        if neuron.reset == "soft_delayed" and not neuron.detach_reset:
            later = gh * thr
        xt, vt = x.select(time_dim, t).to(dtype), before[t]
        gx, term = gh, torch.zeros_like(gh)
        if neuron.charge == "decay":
            gv, term = gh * constant, gh * vt
        elif neuron.charge == "leak":
            gv, term = gh * (1 - one / constant), gh * ((vt - v_reset) / (constant * constant))
        elif neuron.charge == "leak_input":
            gv, term = gh * (1 - one / constant), gh * (((vt - v_reset) - xt) / (constant * constant))
            gx = gh / constant
        else:
            gv = gh
        terms += term.double()
        magnitudes += term.double().abs()
        gxs.append(gx.expand_as(start))
    if later is not None:
        gv = gv - later * sg_of(start - thr)
    gx = torch.stack(gxs[::-1], time_dim)
    if sum_over_time:
        gx = torch.zeros_like(start)
        for g in gxs:
            gx = gx + g
    total, scale = terms.sum(), magnitudes.sum()
    if leak is not None and leak.dim() == 1:
        others = [d for d, n in enumerate(per_channel) if n == 1]
        if others:
            terms, magnitudes = terms.sum(others), magnitudes.sum(others)
        total, scale = terms.reshape(leak.shape), magnitudes.max()
    return LoopGradients(gx.to(x.dtype), gv, total, scale.item())


def surrogate_of(name: str, *, plain: bool = True) -> surrogate.Surrogate:
    """The surrogate of a name with its usual sharpness, or one that no binary number represents."""
    usual = surrogate.BY_NAME[name]()
    return usual if plain else type(usual)(alpha=usual.alpha * 1.1)


def make_neuron(charge: str, reset: str, *, plain: bool = True, surrogate_: str = "triangle", **options: Any) -> Neuron:
    """A neuron with round constants, or with ones that no binary number represents."""
    if charge == "decay":
        options.setdefault("decay", 0.5 if plain else 0.9)
    elif charge != "integrate":
        options.setdefault("tau", 2.0 if plain else 3.3)
    if reset == "hard":
        options.setdefault("v_reset", 0.0 if plain else -0.15)
    options.setdefault("threshold", 1.0 if plain else 0.7)
    return Neuron(charge=charge, reset=reset, surrogate=surrogate_of(surrogate_, plain=plain), **options)


def currents(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    """Inputs that fire every few steps; a third are multiples of 1/4, so that potentials hit thresholds exactly."""
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.randn(shape, generator=generator, dtype=torch.float64) + 0.4
    coarse = torch.randint(-4, 9, tuple(shape), generator=generator) / 4.0
    return torch.where(torch.rand(shape, generator=generator) < 0.33, coarse, smooth).to(dtype)


MEMORY = ("contiguous", "channels_last", "transposed", "sliced", "offset", "reversed")


def arrange(values: Tensor, memory: str) -> Tensor:
    """The same values, elsewhere in memory.

    ``channels_last`` puts dimension 2 innermost; ``transposed`` swaps the first two dimensions; ``sliced`` is a window
    of a larger tensor (not dense); ``offset`` starts one element off any alignment; ``reversed`` has the first
    dimension innermost.
    """
    last = values.dim() - 1
    if memory == "channels_last":
        channels = min(2, last)
        return values.movedim(channels, last).contiguous().movedim(last, channels)
    if memory == "transposed" and last > 0:
        return values.transpose(0, 1).contiguous().transpose(0, 1)
    if memory == "reversed":
        return values.movedim(0, last).contiguous().movedim(last, 0)
    if memory == "sliced":
        room = torch.full([n + 3 for n in values.shape], math.nan, dtype=values.dtype, device=values.device)
        window = room[tuple(slice(1, n + 1) for n in values.shape)]
        return window.copy_(values)
    if memory == "offset":
        room = torch.full((values.numel() + 1,), math.nan, dtype=values.dtype, device=values.device)
        return room[1:].view(values.shape).copy_(values)
    return values.contiguous()


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of `lif` with everything it is given; ``memory="repeated"`` is one frame expanded over time."""

    neuron: Neuron
    shape: tuple[int, ...] = (5, 2, 3, 3, 5)
    time_dim: int = 0
    dtype: torch.dtype = torch.float32
    memory: str = "contiguous"
    v_init: bool = False
    leak: str | None = None  # None, "scalar" or "channel"
    channel_dim: int | None = 2  # None: no activation map is asked for
    spikes_only: bool = False  # neither the last potential nor an activation map is asked for
    seed: int = 0

    @property
    def frame_shape(self) -> tuple[int, ...]:
        return self.shape[: self.time_dim] + self.shape[self.time_dim + 1 :]

    def make_x(self) -> Tensor:
        """The values of x, contiguous, on the CPU."""
        if self.memory == "repeated":
            frame = currents(self.frame_shape, self.dtype, self.seed).unsqueeze(self.time_dim)
            return frame.expand(self.shape).contiguous()
        return currents(self.shape, self.dtype, self.seed)

    def make_v_init(self) -> Tensor | None:
        if not self.v_init:
            return None
        return currents(self.frame_shape, arithmetic_dtype(self.dtype), self.seed + 1)

    def make_leak(self) -> Tensor | None:
        if self.leak is None:
            return None
        assert self.neuron.leak_name is not None
        constant = getattr(self.neuron, self.neuron.leak_name)
        if self.leak == "scalar":
            return torch.tensor(constant, dtype=arithmetic_dtype(self.dtype))
        assert self.channel_dim is not None
        channels = self.shape[self.channel_dim]
        return constant * (1 - torch.arange(channels, dtype=arithmetic_dtype(self.dtype)) / (8 * channels))

    def make_upstream(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Random gradients of spikes, last potential and activation map, where they are asked for."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        dtype = arithmetic_dtype(self.dtype)
        grad_spikes = torch.randn(self.shape, generator=generator).to(self.dtype)
        if self.spikes_only:
            return grad_spikes, None, None
        grad_v = torch.randn(self.frame_shape, generator=generator).to(dtype)
        if self.channel_dim is None:
            return grad_spikes, grad_v, None
        dims = [n for d, n in enumerate(self.shape) if d not in (self.time_dim, self.channel_dim)]
        return grad_spikes, grad_v, torch.randn(dims, generator=generator) * self.shape[self.channel_dim]
