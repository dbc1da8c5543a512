"""The ops of batch normalisation and LIF in one; their autograd function is in bn_lif_autograd.py.

Forward: statistics of a channel (one read), then normalisation, residual, neuron and map in one pass.  Backward: a
first pass over y and the upstream gradient sums what the statistics' gradient needs, a second one writes dL/dy; both
recompute the current and the potential from y and the residual, which with vectors of one value a channel are all
that is kept.

What lies between the passes, arithmetic on such vectors, is in bn_fold.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import resolve
from ..neuron import Neuron
from .bn_fold import bn_coefficients, bn_fold
from .layout import Layout, layout_of
from .library import LIBRARY, register
from .lif import allocate, allocate_gradients, check_checkpoints, constant_neuron, nothing_fired, present, state_dtype

_PLACE = "str neuron, str backend, int time_dim, SymInt time_steps, int channel_dim"
_STATE = "Tensor? residual, Tensor? v_init, Tensor? leak"
_UPSTREAM = "Tensor? checkpoints, Tensor? grad_spikes, Tensor? grad_v, Tensor? grad_sam"
for _schema in (
    "bn_statistics(Tensor y, str backend, int time_dim, SymInt time_steps, int channel_dim) -> Tensor",
    "bn_lif_forward(Tensor y, Tensor? folded, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var,"
    f" float momentum, float eps, {_STATE}, {_PLACE}, bool return_v, bool return_sam, bool save_checkpoints)"
    " -> Tensor[]",
    f"bn_lif_reduce(Tensor y, Tensor folded, {_STATE}, {_UPSTREAM}, {_PLACE}) -> Tensor",
    f"bn_lif_backward(Tensor y, Tensor folded, {_STATE}, {_UPSTREAM}, Tensor? coefficients, bool by_batch, {_PLACE},"
    " bool need_y, bool need_affine, bool need_residual, bool need_v_init, bool need_leak) -> Tensor[]",
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
    folded: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
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
    """Spikes and what was asked for, behind what y's own statistics were folded into where ``folded`` is not given."""
    layout = _layout(y, time_dim, time_steps, channel_dim)
    made = []
    if folded is None:
        moments = _bn_statistics(y, backend, time_dim, time_steps, channel_dim)
        values = layout.outer * layout.steps * layout.rows * layout.inner
        affine = weight, bias, running_mean, running_var
        folded = bn_fold(moments, *affine, None, values, momentum, eps, state_dtype(y.dtype), backend)
        made.append(folded)
    out = allocate(y, layout, return_v, return_sam, save_checkpoints)
    if out[0].numel() > 0:
        residual, v_init = _aligned(layout, residual), _aligned(layout, v_init, time_dim)
        resolve(backend, "bn_lif", y.device, y.dtype, constant_neuron(neuron, leak)).bn_lif_forward(
            Neuron.from_spec(neuron), layout, y, folded, residual, v_init, leak, *out
        )
    else:
        nothing_fired(neuron, v_init, out)
    return made + present(out)


def _bn_lif_forward_fake(
    y: Tensor,
    folded: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
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
    made = [] if folded is not None else [empty_rows(y, layout, 4 if running_mean is None else 6)]
    return made + present(allocate(y, layout, return_v, return_sam, save_checkpoints))


def empty_rows(y: Tensor, layout: Layout, rows: int) -> Tensor:
    """Vectors of one value a channel, in the dtype of the arithmetic."""
    return torch.empty((rows, layout.channels), dtype=state_dtype(y.dtype), device=y.device)


def _bn_lif_reduce(
    y: Tensor,
    folded: Tensor,
    residual: Tensor | None,
    v_init: Tensor | None,
    leak: Tensor | None,
    checkpoints: Tensor | None,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    grad_sam: Tensor | None,
    neuron: str,
    backend: str,
    time_dim: int,
    time_steps: int,
    channel_dim: int,
) -> Tensor:
    layout = _layout(y, time_dim, time_steps, channel_dim)
    upstream = _aligned_upstream(layout, grad_spikes, grad_v, grad_sam)
    if y.numel() > 0:
        check_checkpoints(checkpoints, layout, y.dtype)
    state = _aligned(layout, residual), _aligned(layout, v_init, time_dim), leak, checkpoints
    return _sums(neuron, backend, layout, y, folded, state, upstream)


def _bn_lif_reduce_fake(
    y: Tensor,
    folded: Tensor,
    residual: Tensor | None,
    v_init: Tensor | None,
    leak: Tensor | None,
    checkpoints: Tensor | None,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    grad_sam: Tensor | None,
    neuron: str,
    backend: str,
    time_dim: int,
    time_steps: int,
    channel_dim: int,
) -> Tensor:
    return _channel_pairs(y, _layout(y, time_dim, time_steps, channel_dim))


def _sums(
    neuron: str,
    backend: str,
    layout: Layout,
    y: Tensor,
    folded: Tensor,
    state: tuple[Tensor | None, ...],
    upstream: tuple[Tensor | None, ...],
) -> Tensor:
    """The first backward pass: gradients of the current, and their products with y - mean, summed a channel."""
    sums = _channel_pairs(y, layout)
    _, _, leak, _ = state
    if y.numel() > 0:
        resolve(backend, "bn_lif", y.device, y.dtype, constant_neuron(neuron, leak)).bn_lif_reduce(
            Neuron.from_spec(neuron), layout, y, folded, *state, *upstream, sums
        )
    else:
        sums.zero_()
    return sums


def _allocate_backward(
    y: Tensor, leak: Tensor | None, layout: Layout, need_residual: bool, need_v_init: bool, need_leak: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    grad_y, grad_v_init, grad_leak = allocate_gradients(y, leak, layout, need_v_init, need_leak)
    return grad_y, layout.output(y) if need_residual else None, grad_v_init, grad_leak


def _bn_lif_backward(
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
    by_batch: bool,
    neuron: str,
    backend: str,
    time_dim: int,
    time_steps: int,
    channel_dim: int,
    need_y: bool,
    need_affine: bool,
    need_residual: bool,
    need_v_init: bool,
    need_leak: bool,
) -> list[Tensor]:
    """What is needed of the rows that `bn_coefficients` gives (unless given), grad_y, grad_residual, grad_v_init and
    grad_leak; ``by_batch``: y was normalised by statistics of its own.
    """
    layout = _layout(y, time_dim, time_steps, channel_dim)
    upstream = _aligned_upstream(layout, grad_spikes, grad_v, grad_sam)
    if y.numel() > 0:
        check_checkpoints(checkpoints, layout, y.dtype)
    state = _aligned(layout, residual), _aligned(layout, v_init, time_dim), leak, checkpoints
    made = []
    if coefficients is None and (need_affine or (by_batch and need_y)):
        sums = _sums(neuron, backend, layout, y, folded, state, upstream)
        coefficients = bn_coefficients(sums, folded[1], None, max(y.numel() // max(layout.channels, 1), 1), backend)
        made.append(coefficients)
    if not (need_y or need_residual or need_v_init or need_leak):
        return made
    out = _allocate_backward(y, leak, layout, need_residual, need_v_init, need_leak)
    if y.numel() > 0:
        through = coefficients if by_batch else None
        resolve(backend, "bn_lif", y.device, y.dtype, constant_neuron(neuron, leak)).bn_lif_backward(
            Neuron.from_spec(neuron), layout, y, folded, *state, *upstream, through, *out
        )
    else:
        for gradient in present(out):
            gradient.zero_()
        if out[2] is not None and grad_v is not None:
            out[2].copy_(grad_v)  # no time step changed the potential
    return made + present(out)


def _bn_lif_backward_fake(
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
    by_batch: bool,
    neuron: str,
    backend: str,
    time_dim: int,
    time_steps: int,
    channel_dim: int,
    need_y: bool,
    need_affine: bool,
    need_residual: bool,
    need_v_init: bool,
    need_leak: bool,
) -> list[Tensor]:
    layout = _layout(y, time_dim, time_steps, channel_dim)
    made = []
    if coefficients is None and (need_affine or (by_batch and need_y)):
        made.append(empty_rows(y, layout, 4))
    if not (need_y or need_residual or need_v_init or need_leak):
        return made
    return made + present(_allocate_backward(y, leak, layout, need_residual, need_v_init, need_leak))


def _aligned(layout: Layout, t: Tensor | None, *without: int) -> Tensor | None:
    return None if t is None else layout.aligned(t, without=without)


def _aligned_upstream(
    layout: Layout, grad_spikes: Tensor | None, grad_v: Tensor | None, grad_sam: Tensor | None
) -> tuple[Tensor | None, ...]:
    return (
        _aligned(layout, grad_spikes),
        _aligned(layout, grad_v, layout.time_dim),
        _aligned(layout, grad_sam, layout.time_dim, layout.channel_dim),
    )


bn_statistics = register("bn_statistics", _bn_statistics, _bn_statistics_fake)


bn_lif_forward = register("bn_lif_forward", _bn_lif_forward, _bn_lif_forward_fake, autograd=True)
bn_lif_reduce = register("bn_lif_reduce", _bn_lif_reduce, _bn_lif_reduce_fake)
bn_lif_backward = register("bn_lif_backward", _bn_lif_backward, _bn_lif_backward_fake)
