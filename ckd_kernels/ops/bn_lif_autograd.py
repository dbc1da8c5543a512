"""The gradient of batch normalisation and LIF in one, over the ops of bn_lif.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import composed
from .bn_fold import bn_coefficients
from .bn_lif import bn_lif_backward, bn_lif_forward, bn_lif_reduce
from .library import beyond_kernels, register_autograd, requires_grad
from .lif import checkpoint_count


class BNLIFFunction(torch.autograd.Function):
    """Differentiable normalisation and LIF over the ops.

    ``statistics``: running mean and variance, momentum and eps; ``source``: whether y is normalised by the batch's own
    statistics, and the process group that shares them.  Returns what weight, bias and statistics were folded into (see
    bn_fold.py), spikes, then v and sam where asked for.
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
        folded: Tensor | None,
        count: Tensor | None,
        statistics: tuple[Tensor | None, Tensor | None, float, float],
        source: tuple[bool, Any],
        place: tuple[str, str, int, int, int],
        returned: tuple[bool, bool],
        save_checkpoints: bool,
    ) -> tuple[Tensor, ...]:
        out = bn_lif_forward(
            *(y, folded, weight, bias, *statistics, residual, v_init, leak, *place, *returned, save_checkpoints)
        )
        if folded is None:
            folded, *out = out
        checkpoints = out[-1] if save_checkpoints else None
        ctx.save_for_backward(y, folded, residual, v_init, leak, checkpoints, count, weight, bias)
        ctx.source, ctx.place, ctx.returned, ctx.eps = source, place, returned, statistics[-1]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(folded)
        return folded, *(out[:-1] if save_checkpoints else out)

    @staticmethod
    def backward(ctx: Any, _: None, *grads: Tensor | None) -> tuple:  # type: ignore[override]
        if all(grad is None for grad in grads):
            return (None,) * 13
        *saved, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad[:6]
        if not beyond_kernels(grads):
            return *_gradients(ctx, saved, grads, needs), *(None,) * 7
        (by_batch, group), eps, place, returned = ctx.source, ctx.eps, ctx.place, ctx.returned
        y, folded, residual, v_init, leak, *_ = saved
        if group is not None:
            raise RuntimeError(
                "second derivatives through bn_lif with a process_group are not supported;"
                " leave out create_graph or process_group"
            )

        def forward(y: Tensor, weight: Any, bias: Any, residual: Any, v_init: Any, leak: Any) -> tuple[Tensor, ...]:
            given = folded[0], folded[1]
            if by_batch:
                mean, _, invstd = composed.batch_statistics(y, place[-1], eps)
                given = mean, invstd
            return composed.bn_lif(y, weight, bias, residual, v_init, leak, given, place, returned)

        found = composed.backward(
            forward,
            lambda: _gradients(ctx, saved, grads, needs),
            *((y, weight, bias, residual, v_init, leak), grads, needs),
        )
        return *found, *(None,) * 7


def _gradients(
    ctx: Any, saved: list[Any], grads: tuple[Tensor | None, ...], needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of y, weight, bias, residual, v_init and leak where they are needed, by the kernels."""
    y, folded, residual, v_init, leak, checkpoints, count = saved
    return_v, return_sam = ctx.returned
    upstream = grads[0], grads[1] if return_v else None, grads[-1] if return_sam else None
    given = y, folded, residual, v_init, leak, checkpoints, *upstream
    need_y, need_weight, need_bias, need_residual, need_v_init, need_leak = needs
    need_affine = need_weight or need_bias
    by_batch, group = ctx.source
    own = coefficients = None
    if group is not None and by_batch and (need_affine or need_y):
        # Each process has its own part of dL/dweight and dL/dbias; dL/dy takes the sums of all.
        sums, backend = bn_lif_reduce(*given, *ctx.place), ctx.place[1]
        own = bn_coefficients(sums, folded[1], None, 1, backend)
        torch.distributed.all_reduce(sums, group=group)
        coefficients = bn_coefficients(sums, folded[1], count, 1, backend)
    wanted = need_y, need_affine, need_residual, need_v_init, need_leak
    out = bn_lif_backward(*given, coefficients, by_batch, *ctx.place, *wanted)
    at = 0
    if own is None and (need_affine or (by_batch and need_y)):
        own, at = out[0], 1
    return (
        out[at] if need_y else None,
        own[2] if need_weight and own is not None else None,
        own[3] if need_bias and own is not None else None,
        out[at + 1] if need_residual else None,
        out[at + 1 + need_residual] if need_v_init else None,
        out[-1] if need_leak else None,
    )


def _bn_lif_differentiable(
    below_autograd: Any,
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
    statistics, state = (running_mean, running_var, momentum, eps), (residual, v_init, leak)
    place, returned = (neuron, backend, time_dim, time_steps, channel_dim), (return_v, return_sam)
    if save_checkpoints or not requires_grad(y, weight, bias, *state):
        return below_autograd(
            *(y, folded, weight, bias, *statistics, *state, *place, *returned, save_checkpoints),
        )
    source = folded is None, None
    made, *out = BNLIFFunction.apply(
        *(y, weight, bias, *state, folded, None, statistics, source, place, returned),
        checkpoint_count(time_steps) > 0,
    )
    return [made, *out] if folded is None else out


register_autograd("bn_lif_forward", _bn_lif_differentiable)
