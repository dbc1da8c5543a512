"""Multi-step neurons, forward and backward, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...neuron import Neuron
from ...ops.layout import Layout
from .neuron import Step
from .views import channel_sums, expand_channels, frames, location_sums, steps

# The input current of a time step, [outer, rows, channels, inner] in the arithmetic's dtype.
Current = Callable[[int], Tensor]


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """The dtype of state and arithmetic for a storage dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def lif_forward(
    neuron: Neuron,
    layout: Layout,
    x: Tensor,
    v_init: Tensor | None,
    leak: Tensor | None,
    spikes: Tensor,
    v_last: Tensor | None,
    sam: Tensor | None,
    checkpoints: Tensor | None,
) -> None:
    fire(neuron, layout, stored(layout, x), v_init, leak, spikes, v_last, sam, checkpoints)


def lif_backward(
    neuron: Neuron,
    layout: Layout,
    x: Tensor,
    v_init: Tensor | None,
    leak: Tensor | None,
    checkpoints: Tensor | None,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    grad_sam: Tensor | None,
    grad_x: Tensor,
    grad_v_init: Tensor | None,
    grad_leak: Tensor | None,
) -> None:
    gxs = steps(layout, grad_x)
    sum_x = torch.zeros_like(gxs[:, 0], dtype=arithmetic(x.dtype))

    def emit(t: int, gx: Tensor) -> None:
        if layout.repeated:
            sum_x.add_(gx)
        else:
            gxs[:, t] = gx.to(x.dtype)

    upstream = grad_spikes, grad_v, grad_sam
    fire_backward(neuron, layout, stored(layout, x), v_init, leak, *upstream, emit, grad_v_init, grad_leak)
    if layout.repeated:
        gxs[:, 0] = sum_x.to(x.dtype)


def stored(layout: Layout, x: Tensor) -> Current:
    """x itself as the input current."""
    xs = steps(layout, x)
    return lambda t: xs[:, t].to(arithmetic(x.dtype))


def fire(
    neuron: Neuron,
    layout: Layout,
    current: Current,
    v_init: Tensor | None,
    leak: Tensor | None,
    spikes: Tensor,
    v_last: Tensor | None,
    sam: Tensor | None,
    checkpoints: Tensor | None,
) -> None:
    """A neuron over all time steps of its current."""
    ss = steps(layout, spikes)
    v = _start(neuron, layout, v_init, current(0))
    step = Step(neuron, expand_channels(layout, leak), v)
    count = torch.zeros_like(v)
    for t in range(layout.steps):
        h = step.charge(v, current(t))
        ss[:, t] = step.fires(h).to(spikes.dtype)
        if sam is not None:
            count += step.fires(h)
        v = step.reset(h)
        if checkpoints is not None and (t + 1) % 16 == 0 and t + 1 < layout.steps:
            checkpoints[(t + 1) // 16 - 1] = v.reshape(layout.outer, layout.frame)
    if v_last is not None:
        frames(layout, v_last).copy_(v)
    if sam is not None:
        total = torch.full((), layout.steps * layout.channels, dtype=torch.float32, device=v.device)
        sums = location_sums(layout, sam)
        sums.copy_(torch.div(count.sum(2).to(torch.float32), total))


def fire_backward(
    neuron: Neuron,
    layout: Layout,
    current: Current,
    v_init: Tensor | None,
    leak: Tensor | None,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    grad_sam: Tensor | None,
    emit: Callable[[int, Tensor], None],
    grad_v_init: Tensor | None,
    grad_leak: Tensor | None,
) -> None:
    """The way back; ``emit(t, gx)`` is given the gradient of each current, the last time step first."""
    gss = None if grad_spikes is None else steps(layout, grad_spikes)
    v = _start(neuron, layout, v_init, current(0))
    step = Step(neuron, expand_channels(layout, leak), v)
    # v[t-1] and h[t] again, from the current alone.
    before, potentials = [], []
    for t in range(layout.steps):
        before.append(v)
        h = step.charge(v, current(t))
        potentials.append(h)
        v = step.reset(h)
    from_sam = torch.zeros((), dtype=v.dtype, device=v.device)
    if grad_sam is not None:
        share = 1.0 / (layout.steps * layout.channels)
        from_sam = (location_sums(layout, grad_sam).to(v.dtype) * share).unsqueeze(2)
    gv = torch.zeros_like(v) if grad_v is None else frames(layout, grad_v).to(v.dtype)
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
    if grad_v_init is not None:
        if delayed is not None:
            gv = gv - delayed * neuron.surrogate.derivative(before[0] - neuron.threshold)
        frames(layout, grad_v_init).copy_(gv)
    if grad_leak is not None:
        channel_sums(layout, sum_leak, grad_leak)


def _start(neuron: Neuron, layout: Layout, v_init: Tensor | None, like: Tensor) -> Tensor:
    return torch.full_like(like, neuron.rest) if v_init is None else frames(layout, v_init).to(like.dtype).clone()
