"""Multi-step neurons on the compiled kernels."""

from __future__ import annotations

from torch import Tensor

from ...neuron import Neuron
from ...ops.layout import Layout
from .module import lif_backward_struct, lif_forward_struct
from .run import run


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
    run(lif_forward_struct(neuron, layout, x, v_init, leak, spikes, v_last, sam, checkpoints), x)


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
    upstream = grad_spikes, grad_v, grad_sam
    gradients = grad_x, grad_v_init, grad_leak
    run(lif_backward_struct(neuron, layout, x, v_init, leak, checkpoints, *upstream, *gradients), x)
