"""Batch normalisation and a multi-step neuron on the compiled kernels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...neuron import Neuron
from ...ops.layout import Layout
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
from .run import run


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
    affine = _affine(folded, residual)
    gradients = grad_y, grad_v_init, grad_leak
    call = lif_backward_struct(
        *(neuron, layout, y, v_init, leak, checkpoints, grad_spikes, grad_v, grad_sam, *gradients, affine),
        mean=0 if coefficients is None else row(folded, 0),
        offset=0 if coefficients is None else row(coefficients, 0),
        slope=0 if coefficients is None else row(coefficients, 1),
        grad_residual=address(grad_residual),
    )
    run(call, y)


def _affine(folded: Tensor, residual: Tensor | None) -> Any:
    return affine_struct(row(folded, 2), row(folded, 3), address(residual))
