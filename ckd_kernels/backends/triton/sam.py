"""Spike activation maps in Triton: sums of tiles, then their totals, always in the same order."""

# mypy: allow-untyped-defs, no-check-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...ops.layout import Layout
from .tiles import OPTIONS, Kernel, Tiles, Variant, cut, mask_at, this_tile

_VARIANTS = (Variant(aligned=True, elements=1024, steps=4), Variant(aligned=False, elements=256, steps=4))
_FINISH_BLOCK = 64


def empty_sums(layout: Layout, tiles: Tiles, variant: Variant, like: Tensor, dtype: torch.dtype) -> Tensor:
    """``[tiles along the channels, locations]``: what `store_sum` fills and `finish_sam` reads."""
    assert tiles.channel_axis is not None
    along = tiles.grid(variant)[tiles.channel_axis]
    return like.new_empty((along, layout.outer * layout.rows * layout.inner), dtype=dtype)


@triton.jit
def store_sum(sums_ptr, elements, tile, slabs, height, CHANNEL_AXIS: tl.constexpr):
    """Sums a tile's elements over its channels."""
    if CHANNEL_AXIS == 0:
        offset = (tile.down * slabs + tile.slab) * tile.width + tile.column
        tl.store(sums_ptr + offset, tl.sum(elements, axis=0)[None, :], mask=tile.column < tile.width)
    else:
        offset = (tile.across * slabs + tile.slab) * height + tile.row
        tl.store(sums_ptr + offset, tl.sum(elements, axis=1)[:, None], mask=tile.row < height)


@triton.jit(do_not_specialize=["parts", "locations", "total"])
def _finish(
    sums_ptr,
    sam_ptr,
    parts: tl.int32,
    locations: tl.int64,
    total: tl.float32,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    location = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    part = tl.arange(0, PARTS)[:, None]
    summed = tl.zeros((BLOCK,), sums_ptr.dtype.element_ty)
    for first in range(0, parts, PARTS):
        mask = (first + part < parts) & (location < locations)[None, :]
        summed += tl.sum(tl.load(sums_ptr + (first + part) * locations + location[None, :], mask=mask, other=0), axis=0)
    tl.store(sam_ptr + location, tl.div_rn(summed.to(tl.float32), total), mask=location < locations)


def finish_sam(sums: Tensor, sam: Tensor, total: int) -> None:
    """Adds up the sums of the tiles and divides by ``total``, into ``sam``, a float32 a location."""
    parts, locations = sums.shape
    grid = (triton.cdiv(locations, _FINISH_BLOCK),)
    _finish[grid](sums, sam, parts, locations, float(total), PARTS=16, BLOCK=_FINISH_BLOCK, **OPTIONS)


def _sam(
    spikes_ptr,
    sums_ptr,
    slabs: tl.int64,
    panels: tl.int32,
    height: tl.int64,
    width_units: tl.int64,
    down: tl.int32,
    across: tl.int32,
    time_steps: tl.int32,
    CHANNEL_AXIS: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_HEIGHT: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
):
    tile = this_tile(panels, height, width_units, down, across, CHANNEL_AXIS, UNIT, BLOCK_HEIGHT, BLOCK_WIDTH)
    spikes_ptr += tile.outer * (time_steps - 1) * tile.frame
    total = tl.zeros((BLOCK_HEIGHT, BLOCK_WIDTH), tl.float32)
    for t0 in range(0, time_steps, STEPS):
        for k in tl.static_range(STEPS):
            at = spikes_ptr + (t0 + k) * tile.frame + tile.offset
            total += tl.load(at, mask=mask_at(tile, t0 + k, time_steps), other=0.0).to(tl.float32)
    store_sum(sums_ptr, total, tile, slabs, height, CHANNEL_AXIS)


_KERNEL = Kernel(_sam)


def sam(layout: Layout, spikes: Tensor, out: Tensor) -> None:
    """Mean of spikes over time and channels; sums of binary spikes are exact."""
    tiles = cut(layout, (spikes,))
    variant = _VARIANTS[0 if tiles.aligned else 1]
    steps = 1 if layout.repeated else layout.steps
    with torch.cuda.device_of(spikes):
        sums = empty_sums(layout, tiles, variant, spikes, torch.float32)
        _KERNEL.launch(tiles, _VARIANTS, variant, (spikes, sums), (steps,))
        finish_sam(sums, out, steps * layout.channels)
