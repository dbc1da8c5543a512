"""The ops between the passes of batch normalisation, on vectors of one value a channel.

``bn_fold`` makes of statistics what the forward pass takes, ``bn_coefficients`` of the sums of the first backward pass
what the second one takes.  One small kernel each, where PyTorch would launch a dozen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import resolve
from .library import LIBRARY, register

LIBRARY.define(
    "bn_fold(Tensor moments, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, Tensor? count,"
    " SymInt values, float momentum, float eps, ScalarType dtype, str backend) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "bn_coefficients(Tensor sums, Tensor invstd, Tensor? count, SymInt values, str backend) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _bn_fold(
    moments: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    count: Tensor | None,
    values: int,
    momentum: float,
    eps: float,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """Rows ``mean, invstd, scale, shift`` and, with running statistics, the next ``running_mean, running_var``.

    ``values``, times ``count`` where given, is how many values a channel there were.
    """
    folded = _empty_rows(moments, 4 if running_mean is None else 6, dtype)
    resolve(backend, "bn_lif", moments.device, dtype).bn_fold(
        moments, weight, bias, running_mean, running_var, count, values, momentum, eps, folded
    )
    return folded


def _bn_fold_fake(
    moments: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    count: Tensor | None,
    values: int,
    momentum: float,
    eps: float,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    return _empty_rows(moments, 4 if running_mean is None else 6, dtype)


def _bn_coefficients(sums: Tensor, invstd: Tensor, count: Tensor | None, values: int, backend: str) -> Tensor:
    """Rows ``offset, slope, dL/dweight, dL/dbias``."""
    coefficients = _empty_rows(sums, 4, invstd.dtype)
    resolve(backend, "bn_lif", sums.device, invstd.dtype).bn_coefficients(sums, invstd, count, values, coefficients)
    return coefficients


def _bn_coefficients_fake(sums: Tensor, invstd: Tensor, count: Tensor | None, values: int, backend: str) -> Tensor:
    return _empty_rows(sums, 4, invstd.dtype)


def _empty_rows(like: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    return torch.empty((rows, like.shape[1]), dtype=dtype, device=like.device)


bn_fold = register("bn_fold", _bn_fold, _bn_fold_fake)
bn_coefficients = register("bn_coefficients", _bn_coefficients, _bn_coefficients_fake)
