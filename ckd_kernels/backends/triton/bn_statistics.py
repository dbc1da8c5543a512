"""Mean and variance of a channel in Triton, in one read."""

# mypy: allow-untyped-defs, no-check-untyped-defs, disable-error-code="assignment"
# ruff: noqa: RUF005 (no starred expressions in Triton's language)

import torch
import triton.language as tl
from torch import Tensor

from ...ops.layout import Layout
from .channel_sums import finish_sums, store_sums, strip_tile, strips, this_strip
from .tiles import Kernel, Variant, cut, mask_at

# Steps are tiles here: the loads of so many wait for memory together.
_VARIANTS = (Variant(aligned=True, elements=1024, steps=4), Variant(aligned=False, elements=256, steps=4))


def _statistics(
    y_ptr,
    sums_ptr,
    slabs: tl.int64,
    panels: tl.int32,
    height: tl.int64,
    width_units: tl.int64,
    down: tl.int32,
    across: tl.int32,
    length: tl.int32,
    parts: tl.int32,
    CHANNEL_AXIS: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_HEIGHT: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
):
    strip = this_strip(length, slabs, down, across, CHANNEL_AXIS)
    own = strip_tile(
        strip, strip.first, panels, height, width_units, down, across, CHANNEL_AXIS, UNIT, BLOCK_HEIGHT, BLOCK_WIDTH
    )
    # A channel's first element: deviations from a member of the data are as small as the data's spread, so that float64
    # loses nothing that matters in the difference of sums which the variance is.
    if CHANNEL_AXIS == 0:
        stored = tl.load(y_ptr + own.row * own.width, mask=own.row < height, other=0.0)
    else:
        stored = tl.load(y_ptr + own.column, mask=own.column < own.width, other=0.0)
    stored = tl.broadcast_to(stored, own.mask.shape)
    pivot = stored.to(tl.float32).to(tl.float64)
    first = tl.zeros((BLOCK_HEIGHT, BLOCK_WIDTH), tl.float64)
    second = tl.zeros((BLOCK_HEIGHT, BLOCK_WIDTH), tl.float64)
    for begin in range(strip.first, strip.end, STEPS):
        ys = ()
        for k in tl.static_range(STEPS):
            tile = strip_tile(
                strip,
                begin + k,
                panels,
                height,
                width_units,
                down,
                across,
                CHANNEL_AXIS,
                UNIT,
                BLOCK_HEIGHT,
                BLOCK_WIDTH,
            )
            # What does not exist is the pivot, which deviates by nothing.
            exists = mask_at(tile, begin + k, strip.end)
            ys = ys + (tl.load(y_ptr + tile.offset, mask=exists, other=stored),)
        for k in tl.static_range(STEPS):
            d = ys[k].to(tl.float32).to(tl.float64) - pivot
            first += d
            second += d * d
    store_sums(sums_ptr, first, second, own, strip, parts, height, CHANNEL_AXIS)


_KERNEL = Kernel(_statistics)


def bn_statistics(layout: Layout, y: Tensor, moments: Tensor) -> None:
    """Writes mean and biased variance of every channel, float64 ``[2, channels]``."""
    # Nothing here asks which time step a value is of.
    frames = layout.outer * (1 if layout.repeated else layout.steps)
    tiles = cut(layout._replace(outer=1, steps=1, rows=frames * layout.rows), (y,))
    variant = _VARIANTS[0 if tiles.aligned else 1]
    shared = strips(tiles, variant, multiple_of=variant.steps)
    with torch.cuda.device_of(y):
        sums = shared.empty_sums(layout.channels, y)
        _KERNEL.launch(tiles, _VARIANTS, variant, (y, sums), (shared.length, shared.parts), programs=shared.programs)
        finish_sums(sums, moments, pivots=y, inner=layout.inner, count=frames * layout.rows * layout.inner)
