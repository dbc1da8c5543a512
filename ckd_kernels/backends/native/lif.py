"""Multi-step neurons, behind batch normalisation or not, on the compiled kernels."""

from __future__ import annotations

from typing import Any

from ...call import Affine, Backward, Forward
from .module import address, compiled, neuron_struct, no_affine, row, run, shape_struct, storage


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
    affine, leak, coefficients = call.affine, call.leak, call.coefficients
    centred = affine is not None and (coefficients is not None or call.sums is not None)
    struct = compiled().LifBackward(
        neuron_struct(call.neuron, call.x.dtype),
        shape_struct(call.layout),
        storage(call.x.dtype),
        call.x.data_ptr(),
        address(call.v_init),
        address(leak),
        leak is not None and leak.dim() > 0,
        address(call.checkpoints),
        address(call.grad_spikes),
        address(call.grad_v),
        address(call.grad_sam),
        address(call.grad_x),
        address(call.grad_v_init),
        address(call.grad_leak),
        no_affine() if affine is None else _affine_struct(affine),
        row(affine.folded, 0) if affine is not None and centred else 0,
        0 if coefficients is None else row(coefficients, 0),
        0 if coefficients is None else row(coefficients, 1),
        address(call.grad_residual),
        address(call.sums),
    )
    run(struct, call.x.device)


def _affine_struct(affine: Affine) -> Any:
    return compiled().Affine(row(affine.folded, 2), row(affine.folded, 3), address(affine.residual))
