"""Batch normalisation and a multi-step neuron, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ...neuron import Neuron
from ...ops.layout import Layout
from .lif import Current, arithmetic, fire, fire_backward
from .views import channel_sums, expand_channels, steps


def bn_statistics(layout: Layout, y: Tensor, moments: Tensor) -> None:
    values = _frames_of(layout, y).double()
    dims = (0, 1, 2, 4)  # all but channels
    count = values.numel() // layout.channels
    mean = values.sum(dims) / count
    deviations = values - mean.reshape(layout.channels, 1)
    moments[0] = mean
    moments[1] = (deviations * deviations).sum(dims) / count


def bn_lif_forward(
    neuron: Neuron,
    layout: Layout,
    y: Tensor,
    folded: Tensor,
    residual: Tensor | None,
    v_init: Tensor | None,
    leak: Tensor | None,
    spikes: Tensor,
    v_last: Tensor | None,
    sam: Tensor | None,
    checkpoints: Tensor | None,
) -> None:
    current = _normalised(layout, y, folded, residual)
    fire(neuron, layout, current, v_init, leak, spikes, v_last, sam, checkpoints)


def bn_lif_reduce(
    neuron: Neuron,
    layout: Layout,
    y: Tensor,
    folded: Tensor,
    residual: Tensor | None,
    v_init: Tensor | None,
    leak: Tensor | None,
    checkpoints: Tensor | None,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    grad_sam: Tensor | None,
    sums: Tensor,
) -> None:
    ys = steps(layout, y)
    sum_g = torch.zeros_like(ys[:, 0], dtype=arithmetic(y.dtype))
    sum_gy = torch.zeros_like(sum_g)
    centre = expand_channels(layout, folded[0])

    def emit(t: int, gx: Tensor) -> None:
        sum_g.add_(gx)
        if not layout.repeated:
            sum_gy.add_(gx * (ys[:, t].to(gx.dtype) - centre))

    current = _normalised(layout, y, folded, residual)
    fire_backward(neuron, layout, current, v_init, leak, grad_spikes, grad_v, grad_sam, emit, None, None)
    if layout.repeated:
        sum_gy = sum_g * (ys[:, 0].to(sum_g.dtype) - centre)
    channel_sums(layout, sum_g, sums[0])
    channel_sums(layout, sum_gy, sums[1])


def bn_lif_backward(
    neuron: Neuron,
    layout: Layout,
    y: Tensor,
    folded: Tensor,
    residual: Tensor | None,
    v_init: Tensor | None,
    leak: Tensor | None,
    checkpoints: Tensor | None,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    grad_sam: Tensor | None,
    coefficients: Tensor | None,
    grad_y: Tensor,
    grad_residual: Tensor | None,
    grad_v_init: Tensor | None,
    grad_leak: Tensor | None,
) -> None:
    ys, gys = steps(layout, y), steps(layout, grad_y)
    grs = None if grad_residual is None else steps(layout, grad_residual)
    sum_g = torch.zeros_like(ys[:, 0], dtype=arithmetic(y.dtype))
    mean, _, scale, *_ = (expand_channels(layout, row) for row in folded)

    def through_normalisation(t: int, gx: Tensor) -> Tensor:
        if coefficients is not None:
            offset, slope, *_ = (expand_channels(layout, row) for row in coefficients)
            gx = gx - offset - (ys[:, t].to(gx.dtype) - mean) * slope
        return (gx * scale).to(y.dtype)

    def emit(t: int, gx: Tensor) -> None:
        if grs is not None:
            grs[:, t] = gx.to(y.dtype)
        if layout.repeated:
            sum_g.add_(gx)
        else:
            gys[:, t] = through_normalisation(t, gx)

    current = _normalised(layout, y, folded, residual)
    upstream = grad_spikes, grad_v, grad_sam
    fire_backward(neuron, layout, current, v_init, leak, *upstream, emit, grad_v_init, grad_leak)
    if layout.repeated:
        gys[:, 0] = through_normalisation(0, sum_g)


def _normalised(layout: Layout, y: Tensor, folded: Tensor, residual: Tensor | None) -> Current:
    """x[t] = y[t]*scale + shift (+ residual[t])."""
    ys = steps(layout, y)
    rs = None if residual is None else steps(layout, residual)
    dtype = arithmetic(y.dtype)
    _, _, scale, shift, *_ = (expand_channels(layout, row) for row in folded)

    def current(t: int) -> Tensor:
        x = ys[:, t].to(dtype) * scale + shift
        return x if rs is None else x + rs[:, t].to(dtype)

    return current


def _frames_of(layout: Layout, y: Tensor) -> Tensor:
    """What there is of y: a frame that is repeated over time once."""
    ys = steps(layout, y)
    return ys[:, :1] if layout.repeated else ys
