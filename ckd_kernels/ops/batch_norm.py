"""The ops that compute what batch normalisation has of a channel: statistics, and the vectors between its passes.

``bn_fold`` makes of statistics what the forward pass takes, ``bn_coefficients`` of the sums of the first backward pass
what the second one takes.  One small kernel each, where PyTorch would launch a dozen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backend import Backend, resolve
from ..call import Fold, state_dtype
from .layout import Layout, dense_layout_of
from .library import LIBRARY, TAGS, register

for _schema in (
    "bn_statistics(Tensor y, str backend, int time_dim, SymInt time_steps, int channel_dim) -> Tensor",
    "bn_fold(Tensor moments, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, Tensor? count,"
    " SymInt values, float momentum, float eps, ScalarType dtype, str backend) -> Tensor",
    "bn_coefficients(Tensor sums, Tensor invstd, Tensor? count, SymInt values, str backend) -> Tensor",
):
    LIBRARY.define(_schema, tags=TAGS)


def channel_pairs(y: Tensor, layout: Layout) -> Tensor:
    """Two numbers a channel, in double precision."""
    return torch.empty((2, layout.channels), dtype=torch.float64, device=y.device)


def statistics(layout: Layout, y: Tensor, backend: Backend) -> Tensor:
    """Mean and biased variance of every channel."""
    moments = channel_pairs(y, layout)
    if y.numel() > 0:
        backend.bn_statistics(layout, y, moments)
    else:
        moments.zero_()
    return moments


def fold(call: Fold, dtype: torch.dtype, backend: Backend) -> Tensor:
    """What statistics are folded into."""
    folded = _empty_rows(call.moments, call.rows, dtype)
    backend.bn_fold(call, folded)
    return folded


def coefficients(sums: Tensor, invstd: Tensor, total: Tensor | None, values: int, backend: str) -> Tensor:
    """Rows ``offset, slope, dL/dweight, dL/dbias``."""
    rows = _empty_rows(sums, 4, invstd.dtype)
    resolve(backend, "bn_lif", sums.device, invstd.dtype).bn_coefficients(sums, invstd, total, values, rows)
    return rows


def empty_folded(y: Tensor, layout: Layout, rows: int) -> Tensor:
    """What y's statistics will be folded into."""
    return torch.empty((rows, layout.channels), dtype=state_dtype(y.dtype), device=y.device)


def _empty_rows(like: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    return torch.empty((rows, like.shape[1]), dtype=dtype, device=like.device)


def _statistics(y: Tensor, backend: str, *dims: int) -> Tensor:
    layout = dense_layout_of(y, "y", "bn_lif", *dims)
    return statistics(layout, y, resolve(backend, "bn_lif", y.device, y.dtype))


def _fold(*flat: Any) -> Tensor:
    *call, dtype, backend = flat
    return fold(Fold(*call), dtype, resolve(backend, "bn_lif", call[0].device, dtype))


def _fold_fake(*flat: Any) -> Tensor:
    *call, dtype, _ = flat
    return _empty_rows(call[0], Fold(*call).rows, dtype)


bn_statistics = register(
    "bn_statistics",
    _statistics,
    lambda y, backend, *dims: channel_pairs(y, dense_layout_of(y, "y", "bn_lif", *dims)),
)
bn_fold = register("bn_fold", _fold, _fold_fake)
bn_coefficients = register("bn_coefficients", coefficients, lambda sums, invstd, *_: _empty_rows(sums, 4, invstd.dtype))
