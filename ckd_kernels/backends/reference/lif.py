"""Multi-step neurons, forward and backward, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ...neuron import Neuron
from ...ops.layout import Layout
from .neuron import Step
from .views import channel_sums, expand_leak, frames, location_sums, steps


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
    xs, ss = steps(layout, x), steps(layout, spikes)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    v = _start(neuron, layout, v_init, xs[:, 0].to(dtype))
    step = Step(neuron, expand_leak(layout, leak), v)
    count = torch.zeros_like(v)
    for t in range(layout.steps):
        h = step.charge(v, xs[:, t].to(dtype))
        ss[:, t] = step.fires(h).to(spikes.dtype)
        if sam is not None:
            count += step.fires(h)
        v = step.reset(h)
        if checkpoints is not None and (t + 1) % 16 == 0 and t + 1 < layout.steps:
            checkpoints[(t + 1) // 16 - 1] = v.reshape(layout.outer, layout.frame)
    if v_last is not None:
        frames(layout, v_last).copy_(v)
    if sam is not None:
        total = torch.full((), layout.steps * layout.channels, dtype=torch.float32, device=x.device)
        sums = location_sums(layout, sam)
        sums.copy_(torch.div(count.sum(2).to(torch.float32), total))


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
    xs, gxs = steps(layout, x), steps(layout, grad_x)
    gss = None if grad_spikes is None else steps(layout, grad_spikes)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    v = _start(neuron, layout, v_init, xs[:, 0].to(dtype))
    step = Step(neuron, expand_leak(layout, leak), v)
    # v[t-1] and h[t] again, from x alone.
    before, potentials = [], []
    for t in range(layout.steps):
        before.append(v)
        h = step.charge(v, xs[:, t].to(dtype))
        potentials.append(h)
        v = step.reset(h)
    from_sam = torch.zeros((), dtype=dtype, device=x.device)
    if grad_sam is not None:
        share = 1.0 / (layout.steps * layout.channels)
        from_sam = (location_sums(layout, grad_sam).to(dtype) * share).unsqueeze(2)
    gv = torch.zeros_like(v) if grad_v is None else frames(layout, grad_v).to(dtype)
    delayed: Tensor | None = None
    sum_x = torch.zeros_like(v)
    sum_leak = torch.zeros_like(v)
    for t in reversed(range(layout.steps)):
        gs = from_sam if gss is None else gss[:, t].to(dtype) + from_sam
        if delayed is not None:
            gs = gs - delayed
        gh = step.fire_backward(potentials[t], gs, gv)
        gx, gv, g_leak = step.charge_backward(gh, before[t], xs[:, t].to(dtype))
        delayed = step.delayed_reset_gradient(gh)
        if g_leak is not None:
            sum_leak += g_leak
        if layout.repeated:
            sum_x += gx
        else:
            gxs[:, t] = gx.to(x.dtype)
    if layout.repeated:
        gxs[:, 0] = sum_x.to(x.dtype)
    if grad_v_init is not None:
        if delayed is not None:
            gv = gv - delayed * neuron.surrogate.derivative(before[0] - neuron.threshold)
        frames(layout, grad_v_init).copy_(gv)
    if grad_leak is not None:
        channel_sums(layout, sum_leak, grad_leak)


def _start(neuron: Neuron, layout: Layout, v_init: Tensor | None, like: Tensor) -> Tensor:
    return torch.full_like(like, neuron.rest) if v_init is None else frames(layout, v_init).to(like.dtype).clone()
