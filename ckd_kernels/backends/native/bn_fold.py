"""Vectors of one value a channel between the passes of batch normalisation, on the compiled kernels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .module import address, compiled, storage
from .run import run


def bn_fold(
    moments: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    count: Tensor | None,
    values: int,
    momentum: float,
    eps: float,
    folded: Tensor,
) -> None:
    module: Any = compiled()
    call = module.BatchFold(
        moments.shape[1],
        storage(folded),
        address(moments),
        address(weight),
        address(bias),
        address(running_mean),
        address(running_var),
        address(count),
        values,
        momentum,
        eps,
        address(folded),
    )
    run(call, moments)


def bn_coefficients(sums: Tensor, invstd: Tensor, count: Tensor | None, values: int, coefficients: Tensor) -> None:
    module: Any = compiled()
    call = module.BatchCoefficients(
        sums.shape[1],
        storage(coefficients),
        address(sums),
        address(invstd),
        address(count),
        values,
        address(coefficients),
    )
    run(call, sums)
