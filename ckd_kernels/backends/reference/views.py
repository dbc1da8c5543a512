"""Tensors as the kernels see them, by strides alone."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from ...ops.layout import Layout


def steps(layout: Layout, t: Tensor) -> Tensor:
    """``[outer, steps, rows, channels, inner]`` of x, its spikes or their gradients."""
    size = (layout.outer, layout.steps, layout.rows, layout.channels, layout.inner)
    inside = (layout.channels * layout.inner, layout.inner, 1)
    one_frame = t.numel() != layout.steps * layout.outer * layout.frame
    along_time = (layout.frame, 0) if one_frame else (layout.steps * layout.frame, layout.frame)
    return torch.as_strided(t, size, (*along_time, *inside), t.storage_offset())


def frames(layout: Layout, t: Tensor) -> Tensor:
    """``[outer, rows, channels, inner]`` of a membrane potential."""
    size = (layout.outer, layout.rows, layout.channels, layout.inner)
    return torch.as_strided(
        t, size, (layout.frame, layout.channels * layout.inner, layout.inner, 1), t.storage_offset()
    )


def location_sums(layout: Layout, t: Tensor) -> Tensor:
    """``[outer, rows, inner]`` of a spike activation map."""
    size = (layout.outer, layout.rows, layout.inner)
    return torch.as_strided(t, size, (layout.rows * layout.inner, layout.inner, 1), t.storage_offset())


@overload
def expand_channels(layout: Layout, values: Tensor) -> Tensor: ...
@overload
def expand_channels(layout: Layout, values: None) -> None: ...
def expand_channels(layout: Layout, values: Tensor | None) -> Tensor | None:
    """One value, or one a channel, ready to broadcast over frames."""
    return values if values is None or values.numel() == 1 else values.reshape(layout.channels, 1)


def channel_sums(layout: Layout, elementwise: Tensor, out: Tensor) -> None:
    """Sums ``[outer, rows, channels, inner]`` into one value or one a channel, in double precision."""
    wide = elementwise.double()
    out.copy_((wide.sum() if out.numel() == 1 else wide.sum((0, 1, 3))).reshape(out.shape))
