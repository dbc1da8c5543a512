"""Batch normalisation and a multi-step neuron on the compiled kernels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...neuron import Neuron
from ...ops.layout import Layout
from .module import address, affine_struct, compiled, lif_backward_struct, lif_forward_struct, shape_struct, storage
from .run import run


def bn_statistics(layout: Layout, y: Tensor, moments: Tensor) -> None:
    module: Any = compiled()
    run(module.BatchStatistics(shape_struct(layout), storage(y), address(y), address(moments)), y)


def bn_lif_forward(
    neuron: Neuron,
    layout: Layout,
    y: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    v_init: Tensor | None,
    leak: Tensor | None,
    spikes: Tensor,
    v_last: Tensor | None,
    sam: Tensor | None,
    checkpoints: Tensor | None,
) -> None:
    affine = affine_struct(scale, shift, residual)
    run(lif_forward_struct(neuron, layout, y, v_init, leak, spikes, v_last, sam, checkpoints, affine), y)


def bn_lif_reduce(
    neuron: Neuron,
    layout: Layout,
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
    sums: Tensor,
) -> None:
    affine = affine_struct(scale, shift, residual)
    call = lif_backward_struct(
        *(neuron, layout, y, v_init, leak, checkpoints, grad_spikes, grad_v, grad_sam, None, None, None, affine),
        mean=mean,
        sums=sums,
    )
    run(call, y)


def bn_lif_backward(
    neuron: Neuron,
    layout: Layout,
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
    grad_y: Tensor,
    grad_residual: Tensor | None,
    grad_v_init: Tensor | None,
    grad_leak: Tensor | None,
) -> None:
    affine = affine_struct(scale, shift, residual)
    gradients = grad_y, grad_v_init, grad_leak
    call = lif_backward_struct(
        *(neuron, layout, y, v_init, leak, checkpoints, grad_spikes, grad_v, grad_sam, *gradients, affine),
        mean=mean,
        offset=offset,
        slope=slope,
        grad_residual=grad_residual,
    )
    run(call, y)
