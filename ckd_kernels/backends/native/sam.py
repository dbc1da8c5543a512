"""Spike activation map on the compiled kernels."""

from __future__ import annotations

from torch import Tensor

from ...ops.layout import Layout
from .module import address, compiled, shape_struct, storage
from .run import run


def sam(layout: Layout, spikes: Tensor, out: Tensor) -> None:
    call = compiled().Sam(shape_struct(layout), storage(spikes), address(spikes), address(out))  # type: ignore[union-attr]
    run(call, spikes)
