"""What batch normalisation computes a channel: statistics, and the vectors between its passes; compiled."""

from __future__ import annotations

from torch import Tensor

from ...call import Fold
from ...ops.layout import Layout
from .module import address, compiled, run, shape_struct, storage


def bn_statistics(layout: Layout, y: Tensor, moments: Tensor) -> None:
    run(compiled().BatchStatistics(shape_struct(layout), storage(y.dtype), y.data_ptr(), moments.data_ptr()), y.device)


def bn_fold(call: Fold, folded: Tensor) -> None:
    moments, weight, bias, running_mean, running_var, total, values, momentum, eps = call
    struct = compiled().BatchFold(
        moments.shape[1],
        storage(folded.dtype),
        address(moments),
        address(weight),
        address(bias),
        address(running_mean),
        address(running_var),
        address(total),
        values,
        momentum,
        eps,
        address(folded),
    )
    run(struct, moments.device)


def bn_coefficients(sums: Tensor, invstd: Tensor, total: Tensor | None, values: int, coefficients: Tensor) -> None:
    struct = compiled().BatchCoefficients(
        *(sums.shape[1], storage(coefficients.dtype), address(sums), address(invstd), address(total), values),
        address(coefficients),
    )
    run(struct, sums.device)
