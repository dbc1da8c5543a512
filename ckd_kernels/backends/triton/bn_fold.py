"""Vectors of one value a channel between the passes of batch normalisation, in Triton."""

# mypy: allow-untyped-defs, no-check-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...call import Fold
from .tiles import OPTIONS

_BLOCK = 128


@triton.jit
def _row(rows_ptr, row, channels, c, exists):
    return tl.load(rows_ptr + row * channels + c, mask=exists, other=1.0)


@triton.jit
def _values(count_ptr, values):
    if count_ptr is not None:
        values = values * tl.load(count_ptr)
    return values


# Rows of matrices start anywhere: one program for all alignments.
_VECTORS = ["moments_ptr", "weight_ptr", "bias_ptr", "running_mean_ptr", "running_var_ptr", "count_ptr", "folded_ptr"]
_SCALARS = ["channels", "values", "eps", "kept", "share"]


@triton.jit(do_not_specialize=_SCALARS, do_not_specialize_on_alignment=_VECTORS)
def _fold(
    moments_ptr,
    weight_ptr,
    bias_ptr,
    running_mean_ptr,
    running_var_ptr,
    count_ptr,
    folded_ptr,
    channels: tl.int32,
    values: tl.float64,
    eps: tl.float64,
    kept: tl.float32,
    share: tl.float32,
    BLOCK: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = c < channels
    mean = _row(moments_ptr, 0, channels, c, exists).to(tl.float32)
    var = _row(moments_ptr, 1, channels, c, exists)
    one = tl.full((BLOCK,), 1.0, tl.float64)
    invstd = (one / tl.sqrt(var + eps)).to(tl.float32)
    scale = invstd
    if weight_ptr is not None:
        scale = _row(weight_ptr, 0, channels, c, exists) * invstd
    centre = mean * scale
    if bias_ptr is not None:
        shift = _row(bias_ptr, 0, channels, c, exists) - centre
    else:
        shift = 0.0 - centre
    tl.store(folded_ptr + c, mean, mask=exists)
    tl.store(folded_ptr + channels + c, invstd, mask=exists)
    tl.store(folded_ptr + 2 * channels + c, scale, mask=exists)
    tl.store(folded_ptr + 3 * channels + c, shift, mask=exists)
    if running_mean_ptr is not None:
        total = _values(count_ptr, values)
        unbiased = (var * (total / (total - one))).to(tl.float32)
        next_mean = _row(running_mean_ptr, 0, channels, c, exists) * kept + mean * share
        next_var = _row(running_var_ptr, 0, channels, c, exists) * kept + unbiased * share
        tl.store(folded_ptr + 4 * channels + c, next_mean, mask=exists)
        tl.store(folded_ptr + 5 * channels + c, next_var, mask=exists)


_SUMS = ["sums_ptr", "invstd_ptr", "count_ptr", "coefficients_ptr"]


@triton.jit(do_not_specialize=["channels", "values"], do_not_specialize_on_alignment=_SUMS)
def _coefficients(
    sums_ptr, invstd_ptr, count_ptr, coefficients_ptr, channels: tl.int32, values: tl.float64, BLOCK: tl.constexpr
):
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = c < channels
    invstd = _row(invstd_ptr, 0, channels, c, exists).to(tl.float64)
    total = tl.zeros((BLOCK,), tl.float64) + _values(count_ptr, values)
    sum_g = _row(sums_ptr, 0, channels, c, exists)
    grad_weight = _row(sums_ptr, 1, channels, c, exists) * invstd
    tl.store(coefficients_ptr + c, (sum_g / total).to(tl.float32), mask=exists)
    tl.store(coefficients_ptr + channels + c, (grad_weight * invstd / total).to(tl.float32), mask=exists)
    tl.store(coefficients_ptr + 2 * channels + c, grad_weight.to(tl.float32), mask=exists)
    tl.store(coefficients_ptr + 3 * channels + c, sum_g.to(tl.float32), mask=exists)


def bn_fold(call: Fold, folded: Tensor) -> None:
    """Writes mean, invstd, scale, shift and, where given, the next running statistics."""
    *vectors, values, momentum, eps = call
    channels = call.moments.shape[1]
    with torch.cuda.device_of(call.moments):
        _fold[(triton.cdiv(channels, _BLOCK),)](
            *vectors, folded, channels, float(values), eps, 1.0 - momentum, momentum, BLOCK=_BLOCK, **OPTIONS
        )


def bn_coefficients(sums: Tensor, invstd: Tensor, total: Tensor | None, values: int, coefficients: Tensor) -> None:
    """Writes offset, slope, dL/dweight and dL/dbias."""
    channels = sums.shape[1]
    with torch.cuda.device_of(sums):
        _coefficients[(triton.cdiv(channels, _BLOCK),)](
            sums, invstd, total, coefficients, channels, float(values), BLOCK=_BLOCK, **OPTIONS
        )
