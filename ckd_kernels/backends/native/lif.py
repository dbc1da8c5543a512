"""Multi-step neurons on the compiled kernels."""

from __future__ import annotations

from torch import Tensor

from ...neuron import Neuron
from ...ops.layout import Layout
from .module import address, compiled, neuron_struct, shape_struct, storage
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
    call = compiled().LifForward(  # type: ignore[union-attr]
        neuron_struct(neuron, x.dtype),
        shape_struct(layout),
        storage(x),
        address(x),
        address(v_init),
        address(leak),
        leak is not None and leak.dim() > 0,
        address(spikes),
        address(v_last),
        address(sam),
        address(checkpoints),
    )
    run(call, x)


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
    call = compiled().LifBackward(  # type: ignore[union-attr]
        neuron_struct(neuron, x.dtype),
        shape_struct(layout),
        storage(x),
        address(x),
        address(v_init),
        address(leak),
        leak is not None and leak.dim() > 0,
        address(checkpoints),
        address(grad_spikes),
        address(grad_v),
        address(grad_sam),
        address(grad_x),
        address(grad_v_init),
        address(grad_leak),
    )
    run(call, x)
