"""Multi-step neurons, behind batch normalisation or not, on the compiled kernels."""

from __future__ import annotations

from typing import Any

from ...call import Affine, Backward, Forward
from .module import address, compiled, neuron_struct, no_affine, rows, run, shape_struct, storage


def lif_forward(call: Forward) -> None:
    neuron, layout, x, v_init, leak, affine, spikes, v_last, sam, checkpoints = call
    struct = compiled().LifForward(
        neuron_struct(neuron, x.dtype),
        shape_struct(layout),
        storage(x.dtype),
        x.data_ptr(),
        address(v_init),
        address(leak),
        leak is not None and leak.dim() > 0,
        spikes.data_ptr(),
        address(v_last),
        address(sam),
        address(checkpoints),
        no_affine() if affine is None else _affine_struct(affine),
    )
    run(struct, x.device)


def lif_backward(call: Backward) -> None:
    neuron, layout, x, v_init, leak, affine, checkpoints, grad_spikes, grad_v, grad_sam = call[:10]
    coefficients, grad_x, grad_residual, grad_v_init, grad_leak, sums = call[10:]
    mean = offset = slope = 0
    if affine is not None and (coefficients is not None or sums is not None):
        mean = affine.folded.data_ptr()
    if coefficients is not None:
        offset, slope = rows(coefficients, 0)
    struct = compiled().LifBackward(
        neuron_struct(neuron, x.dtype),
        shape_struct(layout),
        storage(x.dtype),
        x.data_ptr(),
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
        no_affine() if affine is None else _affine_struct(affine),
        *(mean, offset, slope, address(grad_residual), address(sums)),
    )
    run(struct, x.device)


def _affine_struct(affine: Affine) -> Any:
    return compiled().Affine(*rows(affine.folded, 2), address(affine.residual))
