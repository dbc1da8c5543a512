"""The ops of batch normalisation and LIF in one, and their autograd function.

Forward: statistics of a channel (one read), then normalisation, residual, neuron and map in one pass.  Backward: a
first pass over y and the upstream gradient sums what the statistics' gradient needs, a second one writes dL/dy; both
recompute the current and the potential from y and the residual, which with vectors of one value a channel are all
that is kept.

What lies between the passes, arithmetic on such vectors, is in bn_fold.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..backend import resolve
from ..neuron import Neuron
from .layout import Layout, layout_of
from .library import LIBRARY, register
from .lif import allocate, allocate_gradients, nothing_fired, present

_PLACE = "str neuron, str backend, int time_dim, SymInt time_steps, int channel_dim"
_INPUT = "Tensor y, Tensor scale, Tensor shift, Tensor? residual, Tensor? v_init, Tensor? leak"
_UPSTREAM = "Tensor? checkpoints, Tensor? grad_spikes, Tensor? grad_v, Tensor? grad_sam"
for _schema in (
    "bn_statistics(Tensor y, str backend, int time_dim, SymInt time_steps, int channel_dim) -> Tensor",
    f"bn_lif_forward({_INPUT}, {_PLACE}, bool return_v, bool return_sam, bool save_checkpoints) -> Tensor[]",
    f"bn_lif_reduce({_INPUT}, {_UPSTREAM}, Tensor mean, {_PLACE}) -> Tensor",
    f"bn_lif_backward({_INPUT}, {_UPSTREAM}, Tensor? mean, Tensor? offset, Tensor? slope, {_PLACE},"
    " bool need_residual, bool need_v_init, bool need_leak) -> Tensor[]",
):
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


def _layout(y: Tensor, time_dim: int, time_steps: int, channel_dim: int) -> Layout:
    layout = layout_of(y, time_dim=time_dim, time_steps=time_steps, channel_dim=channel_dim)
    if layout is None:
        raise RuntimeError(
            f"y of shape {tuple(y.shape)} and strides {y.stride()} is not dense;"
            " call ckd_kernels.bn_lif, which copies it"
        )
    return layout


def _channel_pairs(y: Tensor, layout: Layout) -> Tensor:
    return torch.empty((2, layout.channels), dtype=torch.float64, device=y.device)


def _bn_statistics(y: Tensor, backend: str, time_dim: int, time_steps: int, channel_dim: int) -> Tensor:
    layout = _layout(y, time_dim, time_steps, channel_dim)
    moments = _channel_pairs(y, layout)
    if y.numel() > 0:
        resolve(backend, "bn_lif", y.device, y.dtype).bn_statistics(layout, y, moments)
    else:
        moments.zero_()
    return moments


def _bn_statistics_fake(y: Tensor, backend: str, time_dim: int, time_steps: int, channel_dim: int) -> Tensor:
    return _channel_pairs(y, _layout(y, time_dim, time_steps, channel_dim))


def _bn_lif_forward(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    v_init: Tensor | None,
    leak: Tensor | None,
    neuron: str,
    backend: str,
    time_dim: int,
    time_steps: int,
    channel_dim: int,
    return_v: bool,
    return_sam: bool,
    save_checkpoints: bool,
) -> list[Tensor]:
    layout = _layout(y, time_dim, time_steps, channel_dim)
    out = allocate(y, layout, return_v, return_sam, save_checkpoints)
    if out[0].numel() > 0:
        residual, v_init = _aligned(layout, residual), _aligned(layout, v_init, time_dim)
        resolve(backend, "bn_lif", y.device, y.dtype).bn_lif_forward(
            Neuron.from_spec(neuron), layout, y, scale, shift, residual, v_init, leak, *out
        )
    else:
        nothing_fired(neuron, v_init, out)
    return present(out)


def _bn_lif_forward_fake(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    v_init: Tensor | None,
    leak: Tensor | None,
    neuron: str,
    backend: str,
    time_dim: int,
    time_steps: int,
    channel_dim: int,
    return_v: bool,
    return_sam: bool,
    save_checkpoints: bool,
) -> list[Tensor]:
    layout = _layout(y, time_dim, time_steps, channel_dim)
    return present(allocate(y, layout, return_v, return_sam, save_checkpoints))


def _bn_lif_reduce(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    v_init: Tensor | None,
    leak: Tensor | None,
    checkpoints: Tensor | None,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    grad_sam: Tensor | None,
    mean: Tensor,
    neuron: str,
    backend: str,
    time_dim: int,
    time_steps: int,
    channel_dim: int,
) -> Tensor:
    layout = _layout(y, time_dim, time_steps, channel_dim)
    sums = _channel_pairs(y, layout)
    if y.numel() > 0:
        resolve(backend, "bn_lif", y.device, y.dtype).bn_lif_reduce(
            Neuron.from_spec(neuron),
            layout,
            y,
            scale,
            shift,
            _aligned(layout, residual),
            _aligned(layout, v_init, time_dim),
            leak,
            checkpoints,
            _aligned(layout, grad_spikes),
            _aligned(layout, grad_v, time_dim),
            _aligned(layout, grad_sam, time_dim, channel_dim),
            mean,
            sums,
        )
    else:
        sums.zero_()
    return sums


def _bn_lif_reduce_fake(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    v_init: Tensor | None,
    leak: Tensor | None,
    checkpoints: Tensor | None,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    grad_sam: Tensor | None,
    mean: Tensor,
    neuron: str,
    backend: str,
    time_dim: int,
    time_steps: int,
    channel_dim: int,
) -> Tensor:
    return _channel_pairs(y, _layout(y, time_dim, time_steps, channel_dim))


def _allocate_backward(
    y: Tensor, leak: Tensor | None, layout: Layout, need_residual: bool, need_v_init: bool, need_leak: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    grad_y, grad_v_init, grad_leak = allocate_gradients(y, leak, layout, need_v_init, need_leak)
    return grad_y, layout.empty(y) if need_residual else None, grad_v_init, grad_leak


def _bn_lif_backward(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    v_init: Tensor | None,
    leak: Tensor | None,
    checkpoints: Tensor | None,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    grad_sam: Tensor | None,
    mean: Tensor | None,
    offset: Tensor | None,
    slope: Tensor | None,
    neuron: str,
    backend: str,
    time_dim: int,
    time_steps: int,
    channel_dim: int,
    need_residual: bool,
    need_v_init: bool,
    need_leak: bool,
) -> list[Tensor]:
    layout = _layout(y, time_dim, time_steps, channel_dim)
    out = _allocate_backward(y, leak, layout, need_residual, need_v_init, need_leak)
    if y.numel() > 0:
        resolve(backend, "bn_lif", y.device, y.dtype).bn_lif_backward(
            Neuron.from_spec(neuron),
            layout,
            y,
            scale,
            shift,
            _aligned(layout, residual),
            _aligned(layout, v_init, time_dim),
            leak,
            checkpoints,
            _aligned(layout, grad_spikes),
            _aligned(layout, grad_v, time_dim),
            _aligned(layout, grad_sam, time_dim, channel_dim),
            mean,
            offset,
            slope,
            *out,
        )
    else:
        for gradient in present(out):
            gradient.zero_()
        if out[2] is not None and grad_v is not None:
            out[2].copy_(grad_v)  # no time step changed the potential
    return present(out)


def _bn_lif_backward_fake(
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    v_init: Tensor | None,
    leak: Tensor | None,
    checkpoints: Tensor | None,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    grad_sam: Tensor | None,
    mean: Tensor | None,
    offset: Tensor | None,
    slope: Tensor | None,
    neuron: str,
    backend: str,
    time_dim: int,
    time_steps: int,
    channel_dim: int,
    need_residual: bool,
    need_v_init: bool,
    need_leak: bool,
) -> list[Tensor]:
    layout = _layout(y, time_dim, time_steps, channel_dim)
    return present(_allocate_backward(y, leak, layout, need_residual, need_v_init, need_leak))


def _aligned(layout: Layout, t: Tensor | None, *without: int) -> Tensor | None:
    return None if t is None else layout.aligned(t, without=without)


register("bn_statistics", _bn_statistics, _bn_statistics_fake)
register("bn_lif_forward", _bn_lif_forward, _bn_lif_forward_fake)
register("bn_lif_reduce", _bn_lif_reduce, _bn_lif_reduce_fake)
register("bn_lif_backward", _bn_lif_backward, _bn_lif_backward_fake)


class BNLIFFunction(torch.autograd.Function):
    """Differentiable normalisation and LIF over the ops: spikes, then v and sam where asked for.

    ``folded`` is what `bn_fold` made of weight, bias and the statistics, which are given for their gradients alone.
    ``values`` is the number of y's values a channel that the statistics were taken of, so that dL/dy goes through
    them, or None where they do not depend on y; ``count`` that of all processes of ``group`` where they share them.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        y: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        v_init: Tensor | None,
        leak: Tensor | None,
        folded: Tensor,
        values: int | None,
        count: Tensor | None,
        group: Any,
        neuron: str,
        backend: str,
        time_dim: int,
        time_steps: int,
        channel_dim: int,
        return_v: bool,
        return_sam: bool,
        save_checkpoints: bool,
    ) -> tuple[Tensor, ...]:
        place = neuron, backend, time_dim, time_steps, channel_dim
        out = torch.ops.ckd_kernels.bn_lif_forward(
            y, folded[2], folded[3], residual, v_init, leak, *place, return_v, return_sam, save_checkpoints
        )
        checkpoints = out[-1] if save_checkpoints else None
        ctx.save_for_backward(y, folded, residual, v_init, leak, checkpoints, count)
        ctx.statistics, ctx.place, ctx.returned = (values, group), place, (return_v, return_sam)
        ctx.set_materialize_grads(False)
        return tuple(out[:-1] if save_checkpoints else out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:  # type: ignore[override]
        if all(grad is None for grad in grads):
            return (None,) * 18
        y, folded, residual, v_init, leak, checkpoints, count = ctx.saved_tensors
        mean, invstd, scale, shift = folded
        return_v, return_sam = ctx.returned
        upstream = grads[0], grads[1] if return_v else None, grads[-1] if return_sam else None
        given = y, scale, shift, residual, v_init, leak, checkpoints, *upstream
        need_y, need_weight, need_bias, *others = ctx.needs_input_grad[:6]
        values, group = ctx.statistics
        grad_weight = grad_bias = grad_y = grad_residual = grad_v_init = grad_leak = None
        through = None, None, None
        if need_weight or need_bias or (values is not None and need_y):
            ops, backend = torch.ops.ckd_kernels, ctx.place[1]
            sums = ops.bn_lif_reduce(*given, mean, *ctx.place)
            offset, slope, grad_weight, grad_bias = ops.bn_coefficients(
                sums, invstd, None, max(values or 0, 1), backend
            )
            if group is not None and values is not None:
                torch.distributed.all_reduce(sums, group=group)
                offset, slope, *_ = ops.bn_coefficients(sums, invstd, count, 1, backend)
            if values is not None:
                through = mean, offset, slope
        if need_y or any(others):
            out = torch.ops.ckd_kernels.bn_lif_backward(*given, *through, *ctx.place, *others)
            grad_y, *rest = out
            grad_residual, grad_v_init, grad_leak = (rest.pop(0) if need else None for need in others)
        return (
            grad_y if need_y else None,
            grad_weight if need_weight else None,
            grad_bias if need_bias else None,
            *(grad_residual, grad_v_init, grad_leak),
            *(None,) * 12,
        )
