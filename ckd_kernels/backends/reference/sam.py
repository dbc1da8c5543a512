"""Spike activation map of spikes that exist already, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops.layout import Layout
from .views import location_sums, steps


def sam(layout: Layout, spikes: Tensor, out: Tensor) -> None:
    total = torch.full((), layout.steps * layout.channels, dtype=out.dtype, device=out.device)
    sums = steps(layout, spikes).to(out.dtype).sum((1, 3))
    location_sums(layout, out).copy_(torch.div(sums, total))
