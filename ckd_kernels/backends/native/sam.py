"""Spike activation map on the compiled kernels."""

from __future__ import annotations

from torch import Tensor

from ...ops.layout import Layout
from .module import address, compiled, run, shape_struct, storage


def sam(layout: Layout, spikes: Tensor, out: Tensor) -> None:
    run(compiled().Sam(shape_struct(layout), storage(spikes.dtype), address(spikes), address(out)), spikes.device)
