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
    given = weight, bias, running_mean, running_var, count
    run(fold_struct(moments, *given, values, momentum, eps, folded), moments)


def fold_struct(
    moments: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    count: Tensor | None,
    values: int,
    momentum: float,
    eps: float,
    folded: Tensor,
) -> Any:
    """What is folded into what; without moments, those of a call that finds them itself."""
    module: Any = compiled()
    return module.BatchFold(
        folded.shape[1],
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


def bn_coefficients(sums: Tensor, invstd: Tensor, count: Tensor | None, values: int, coefficients: Tensor) -> None:
    run(coefficients_struct(sums, address(invstd), count, values, coefficients), sums)


def coefficients_struct(
    sums: Tensor | None, invstd: int, count: Tensor | None, values: int, coefficients: Tensor
) -> Any:
    """What sums come to, with invstd by its address; without sums, those of a call that finds them itself."""
    module: Any = compiled()
    return module.BatchCoefficients(
        coefficients.shape[1],
        storage(coefficients),
        address(sums),
        invstd,
        address(count),
        values,
        address(coefficients),
    )
