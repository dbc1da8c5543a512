"""Batch normalisation and a multi-step neuron on the compiled kernels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...neuron import Neuron
from ...ops.layout import Layout
from .bn_fold import coefficients_struct, fold_struct
from .module import (
    address,
    affine_struct,
    compiled,
    lif_backward_struct,
    lif_forward_struct,
    row,
    shape_struct,
    storage,
)
from .run import run, run_on_gpu


def bn_statistics(layout: Layout, y: Tensor, moments: Tensor) -> None:
    module: Any = compiled()
    run(module.BatchStatistics(shape_struct(layout), storage(y), address(y), address(moments)), y)


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
    affine = _affine(folded, residual)
    run(lif_forward_struct(neuron, layout, y, v_init, leak, spikes, v_last, sam, checkpoints, affine), y)


def bn_lif_forward_by_batch(
    neuron: Neuron,
    layout: Layout,
    y: Tensor,
    folded: Tensor,
    normalisation: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, float, float],
    residual: Tensor | None,
    *others: Tensor | None,
) -> None:
    """`bn_statistics`, `bn_fold` and `bn_lif_forward` on a GPU; `folded` is written, the rest is what these take."""
    module: Any = compiled()
    *vectors, momentum, eps = normalisation
    values = layout.outer * layout.steps * layout.rows * layout.inner
    calls = (
        module.BatchStatistics(shape_struct(layout), storage(y), address(y), 0),
        fold_struct(None, *vectors, None, values, momentum, eps, folded),
        lif_forward_struct(neuron, layout, y, *others, _affine(folded, residual)),
    )
    run_on_gpu(calls, y)


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
    affine = _affine(folded, residual)
    call = lif_backward_struct(
        *(neuron, layout, y, v_init, leak, checkpoints, grad_spikes, grad_v, grad_sam, None, None, None, affine),
        mean=row(folded, 0),
        sums=address(sums),
    )
    run(call, y)


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
    upstream = grad_spikes, grad_v, grad_sam
    gradients = grad_y, grad_residual, grad_v_init, grad_leak
    given = neuron, layout, y, folded, residual, v_init, leak, checkpoints
    run(_backward_struct(*given, *upstream, coefficients, *gradients), y)


def bn_lif_backward_by_batch(
    neuron: Neuron,
    layout: Layout,
    y: Tensor,
    folded: Tensor,
    *others: Tensor | None,
    coefficients: Tensor,
    gradients: tuple[Tensor | None, ...],
) -> None:
    """`bn_lif_reduce`, `bn_coefficients` and `bn_lif_backward` on a GPU, through y's own statistics; `coefficients`
    and the gradients are written.
    """
    values = max(y.numel() // max(layout.channels, 1), 1)
    calls = (
        coefficients_struct(None, row(folded, 1), None, values, coefficients),
        _backward_struct(neuron, layout, y, folded, *others, coefficients, *gradients),
    )
    run_on_gpu(calls, y)


def _backward_struct(
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
) -> Any:
    affine = _affine(folded, residual)
    gradients = grad_y, grad_v_init, grad_leak
    return lif_backward_struct(
        *(neuron, layout, y, v_init, leak, checkpoints, grad_spikes, grad_v, grad_sam, *gradients, affine),
        mean=0 if coefficients is None else row(folded, 0),
        offset=0 if coefficients is None else row(coefficients, 0),
        slope=0 if coefficients is None else row(coefficients, 1),
        grad_residual=address(grad_residual),
    )


def _affine(folded: Tensor, residual: Tensor | None) -> Any:
    return affine_struct(row(folded, 2), row(folded, 3), address(residual))
