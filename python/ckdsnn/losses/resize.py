"""Bring a teacher's maps to the size of the student's."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .precision import full_precision, outside_autocast


def resize_to(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps [B, h, w] or features [B, C, h, w] resized to ``size`` = (H, W), bilinear and antialiased.

    Unchanged where they fit already; else float32 (float64 for float64).

    Example:
        >>> import torch
        >>> from ckdsnn.losses.resize import resize_to
        >>> resize_to(torch.tensor([[[0.0, 1.0]]]), (1, 4))
        tensor([[[0.0000, 0.2500, 0.7500, 1.0000]]])
    """
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    channels = maps if maps.dim() == 4 else maps[:, None]
    with outside_autocast(maps):
        resized = F.interpolate(full_precision(channels), list(size), mode="bilinear", antialias=True)
    return resized if maps.dim() == 4 else resized[:, 0]
