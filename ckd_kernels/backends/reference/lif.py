"""Multi-step neurons, behind batch normalisation or not, forward and backward, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...call import CHECKPOINT_EVERY, Backward, Forward, state_dtype
from .neuron import Step
from .views import channel_sums, expand_channels, frames, location_sums, steps


def lif_forward(call: Forward) -> None:
    layout, current = call.layout, _current(call)
    ss = steps(layout, call.spikes)
    v = _start(call, current(0))
    step = Step(call.neuron, expand_channels(layout, call.leak), v)
    count = torch.zeros_like(v)
    for t in range(layout.steps):
        h = step.charge(v, current(t))
        ss[:, t] = step.fires(h).to(call.spikes.dtype)
        if call.sam is not None:
            count += step.fires(h)
        v = step.reset(h)
        if call.checkpoints is not None and (t + 1) % CHECKPOINT_EVERY == 0 and t + 1 < layout.steps:
            call.checkpoints[(t + 1) // CHECKPOINT_EVERY - 1] = v.reshape(layout.outer, layout.frame)
    if call.v_last is not None:
        frames(layout, call.v_last).copy_(v)
    if call.sam is not None:
        total = torch.full((), layout.steps * layout.channels, dtype=torch.float32, device=v.device)
        location_sums(layout, call.sam).copy_(torch.div(count.sum(2).to(torch.float32), total))


def lif_backward(call: Backward) -> None:
    layout, affine, through, dtype = call.layout, call.affine, call.coefficients, call.x.dtype
    xs = steps(layout, call.x)
    gxs = None if call.grad_x is None else steps(layout, call.grad_x)
    grs = None if call.grad_residual is None else steps(layout, call.grad_residual)
    sum_x = torch.zeros_like(xs[:, 0], dtype=state_dtype(dtype))
    sum_xy = torch.zeros_like(sum_x)
    mean: Any
    scale: Any
    offset: Any
    slope: Any
    mean, _, scale, *_ = [None] * 3 if affine is None else [expand_channels(layout, row) for row in affine.folded]
    offset, slope, *_ = [None] * 2 if through is None else [expand_channels(layout, row) for row in through]

    def through_normalisation(t: int, gx: Tensor) -> Tensor:
        if slope is not None:
            gx = gx - offset - (xs[:, t].to(gx.dtype) - mean) * slope
        return (gx if scale is None else gx * scale).to(dtype)

    def emit(t: int, gx: Tensor) -> None:
        if grs is not None:
            grs[:, t] = gx.to(dtype)
        if layout.repeated or call.sums is not None:
            sum_x.add_(gx)
        elif gxs is not None:
            gxs[:, t] = through_normalisation(t, gx)
        if call.sums is not None and not layout.repeated:
            sum_xy.add_(gx * (xs[:, t].to(gx.dtype) - mean))

    _fire_backward(call, emit)
    if layout.repeated and gxs is not None:
        gxs[:, 0] = through_normalisation(0, sum_x)
    if call.sums is not None:
        if layout.repeated:
            sum_xy = sum_x * (xs[:, 0].to(sum_x.dtype) - mean)
        channel_sums(layout, sum_x, call.sums[0])
        channel_sums(layout, sum_xy, call.sums[1])


def _fire_backward(call: Backward, emit: Callable[[int, Tensor], None]) -> None:
    """The backward pass; ``emit(t, gx)`` is given the gradient of each current, the last time step first."""
    neuron, layout, current = call.neuron, call.layout, _current(call)
    gss = None if call.grad_spikes is None else steps(layout, call.grad_spikes)
    v = _start(call, current(0))
    step = Step(neuron, expand_channels(layout, call.leak), v)
    # v[t-1] and h[t] again, from the current alone.
    before, potentials = [], []
    for t in range(layout.steps):
        before.append(v)
        h = step.charge(v, current(t))
        potentials.append(h)
        v = step.reset(h)
    from_sam = torch.zeros((), dtype=v.dtype, device=v.device)
    if call.grad_sam is not None:
        share = 1.0 / (layout.steps * layout.channels)
        from_sam = (location_sums(layout, call.grad_sam).to(v.dtype) * share).unsqueeze(2)
    gv = torch.zeros_like(v) if call.grad_v is None else frames(layout, call.grad_v).to(v.dtype)
    delayed: Tensor | None = None
    sum_leak = torch.zeros_like(v)
    for t in reversed(range(layout.steps)):
        gs = from_sam if gss is None else gss[:, t].to(v.dtype) + from_sam
        if delayed is not None:
            gs = gs - delayed
        gh = step.fire_backward(potentials[t], gs, gv)
        gx, gv, g_leak = step.charge_backward(gh, before[t], current(t))
        delayed = step.delayed_reset_gradient(gh)
        if g_leak is not None:
            sum_leak += g_leak
        emit(t, gx)
    if call.grad_v_init is not None:
        if delayed is not None:
            gv = gv - delayed * neuron.surrogate.derivative(before[0] - neuron.threshold)
        frames(layout, call.grad_v_init).copy_(gv)
    if call.grad_leak is not None:
        channel_sums(layout, sum_leak, call.grad_leak)


def _current(call: Forward | Backward) -> Callable[[int], Tensor]:
    """The input current of a time step, ``[outer, rows, channels, inner]`` in the dtype of the arithmetic."""
    layout, affine, dtype = call.layout, call.affine, state_dtype(call.x.dtype)
    xs = steps(layout, call.x)
    if affine is None:
        return lambda t: xs[:, t].to(dtype)
    rs = None if affine.residual is None else steps(layout, affine.residual)
    _, _, scale, shift, *_ = (expand_channels(layout, row) for row in affine.folded)

    def current(t: int) -> Tensor:
        x = xs[:, t].to(dtype) * scale + shift
        return x if rs is None else x + rs[:, t].to(dtype)

    return current


def _start(call: Forward | Backward, like: Tensor) -> Tensor:
    if call.v_init is None:
        return torch.full_like(like, call.neuron.rest)
    return frames(call.layout, call.v_init).to(like.dtype).clone()
