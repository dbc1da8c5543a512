"""How tensors are cut into tiles, one a program, and how kernels are launched on them.

What lies inside one time step of one outer index is seen as ``[panels, height, width]``, and a
program owns ``BLOCK_HEIGHT x BLOCK_WIDTH`` of one panel, at all time steps.  Channels are the
height (``[rows, channels, inner]``), the width (channels-last: ``[1, rows, channels]``) or not
told apart (``[1, 1, frame]``).  So one kernel serves every layout, and what it sums over
channels, or over all but channels, it sums over one axis of its tile.
"""

# mypy: allow-untyped-defs, no-check-untyped-defs

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...ops.layout import Layout

# Accesses are 16 bytes wide where rows are multiples of so many elements and every tensor starts at 16 bytes.
_UNIT = 16

# Pointers to vectors of one value a channel.
VECTORS = ("leak_ptr", "scale_ptr", "shift_ptr", "mean_ptr", "offset_ptr", "slope_ptr")

# No fused multiply-add, the numerics contract; loads are grouped by hand, so that Triton need not pipeline them.
# 128 threads, in warps of 32, or AMD's of 64.
OPTIONS = {"enable_fp_fusion": False, "num_warps": 2 if torch.version.hip else 4, "num_stages": 1}


class Variant(NamedTuple):
    """One of the ways in which a kernel is compiled; which of them serves a call is a matter of sizes alone."""

    aligned: bool
    elements: int  # of a tile
    steps: int  # time steps whose loads, and in backward whose potentials, are in registers together


class Tiles(NamedTuple):
    """What the tensors of a call are cut into."""

    outer: int
    panels: int
    height: int
    width: int
    channel_axis: int | None  # of a tile
    aligned: bool

    def block(self, variant: Variant) -> tuple[int, int]:
        """Height and width of a tile."""
        if self.channel_axis is None:
            return 1, variant.elements
        width = 64 if variant.aligned else 16
        return variant.elements // width, width

    def grid(self, variant: Variant) -> tuple[int, int]:
        """Tiles down and across a panel."""
        height, width = self.block(variant)
        return -(-self.height // height), -(-self.width // width)


def cut(layout: Layout, tensors: Sequence[Tensor | None], vectors: Sequence[Tensor | None] = ()) -> Tiles:
    """The tiles of a call that reads and writes these tensors, and these vectors of one value a channel."""
    channel_axis: int | None
    if layout.channel_dim < 0:
        channel_axis, shape = None, (1, 1, layout.frame)
    elif layout.inner > 1:
        channel_axis, shape = 0, (layout.rows, layout.channels, layout.inner)
    else:
        channel_axis, shape = 1, (1, layout.rows, layout.channels)
    if channel_axis == 1:
        tensors = (*tensors, *vectors)  # as wide as the tile; else they are read one value a row, wherever it lies
    aligned = shape[2] % _UNIT == 0 and all(t is None or t.data_ptr() % 16 == 0 for t in tensors)
    return Tiles(layout.outer, *shape, channel_axis, aligned)


class Kernel:
    """A function in Triton's language, compiled when a configuration (types, options) is first called.

    All variants of the configuration are compiled then, so that another size compiles nothing.  The function takes
    tensors named ``*_ptr``, among them `VECTORS`; ``slabs, panels, height, width_units, down, across``; further
    scalars; and constants, among them ``CHANNEL_AXIS, UNIT, BLOCK_HEIGHT, BLOCK_WIDTH, STEPS``.  Every scalar's type
    is annotated: Triton then specialises on no value.
    """

    def __init__(self, function: Callable) -> None:
        names = [n for n, p in inspect.signature(function).parameters.items() if p.annotation is not tl.constexpr]
        pointers = [n for n in names if n.endswith("_ptr")]
        scalars = [n for n in names if n not in pointers]
        vectors = [n for n in pointers if n in VECTORS]
        # What need not start at 16 bytes, by whether the tiles do and whether the vectors lie along their rows.
        anywhere = {(True, True): [], (True, False): vectors, (False, True): pointers, (False, False): pointers}
        self._jit = {
            key: triton.jit(function, do_not_specialize=scalars, do_not_specialize_on_alignment=names)
            for key, names in anywhere.items()
        }
        self._complete: set[Any] = set()

    def launch(
        self,
        tiles: Tiles,
        variants: Sequence[Variant],
        chosen: Variant,
        tensors: Sequence[Tensor | None],
        scalars: Sequence[int | float],
        programs: int | None = None,
        **constants: Any,
    ) -> None:
        """Runs the ``chosen`` one of ``variants`` on the current device and stream, by default one program a tile."""

        def arguments(variant: Variant) -> tuple[tuple, dict[str, Any]]:
            unit, block = _UNIT if variant.aligned else 1, tiles.block(variant)
            sizes = (tiles.outer * tiles.panels, tiles.panels, tiles.height, tiles.width // unit, *tiles.grid(variant))
            named = {
                "CHANNEL_AXIS": tiles.channel_axis,
                "UNIT": unit,
                "BLOCK_HEIGHT": block[0],
                "BLOCK_WIDTH": block[1],
                "STEPS": variant.steps,
            }
            return (*sizes, *scalars), named | constants | OPTIONS

        wide = tiles.channel_axis == 1
        down, across = tiles.grid(chosen)
        grid = (programs or tiles.outer * tiles.panels * down * across,)
        plain, named = arguments(chosen)
        compiled = self._jit[chosen.aligned, wide][grid](*tensors, *plain, **named)
        if compiled in self._complete:
            return
        self._complete.add(compiled)
        for other in variants:
            if other != chosen:
                plain, named = arguments(other)
                dtypes = [None if t is None else t.dtype for t in tensors]  # each stands for an aligned tensor
                self._jit[other.aligned, wide].warmup(*dtypes, *plain, grid=grid, **named)


class Tile(NamedTuple):
    """This program's tile, in a kernel."""

    width: Any  # of the whole
    frame: Any  # elements of one time step of one outer index
    outer: Any  # which outer index
    slab: Any  # which panel of which outer index
    down: Any  # which tile of the panel
    across: Any
    row: Any  # [H, 1]
    column: Any  # [1, W]
    offset: Any  # [H, W], index into [outer, frame]
    mask: Any  # [H, W], whether it exists


@triton.jit
def this_tile(
    panels,
    height,
    width_units,
    down,
    across,
    CHANNEL_AXIS: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_HEIGHT: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """The tile of this program."""
    width = width_units * UNIT
    slab = tl.program_id(0)
    j = slab % across
    slab = slab // across
    if CHANNEL_AXIS is None:
        slab = slab.to(tl.int64)
        column = j.to(tl.int64) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)[None, :]
        row = tl.zeros((1, 1), tl.int64)
        return Tile(width, width, slab, slab, 0, j, row, column, slab * width + column, column < width)
    else:
        return tile_at(slab // down, slab % down, j, panels, height, width, BLOCK_HEIGHT, BLOCK_WIDTH)


@triton.jit
def tile_at(slab, i, j, panels, height, width, BLOCK_HEIGHT: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """A tile of panels that tell channels apart."""
    outer = (slab // panels).to(tl.int64)
    slab = slab.to(tl.int64)
    row = i.to(tl.int64) * BLOCK_HEIGHT + tl.arange(0, BLOCK_HEIGHT)[:, None]
    column = j.to(tl.int64) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)[None, :]
    offset = (slab * height + row) * width + column
    mask = (row < height) & (column < width)
    return Tile(width, panels * height * width, outer, slab, i, j, row, column, offset, mask)


@triton.jit
def mask_at(tile, t, time_steps):
    """The tile's mask if there is a time step ``t``, else nothing."""
    # Not `tile.mask & (t < time_steps)`: Triton's interpreter cannot combine a block and a scalar that way.
    return tile.mask & (tile.column < tl.where(t < time_steps, tile.width, 0))


@triton.jit
def channel_values(values_ptr, tile, height, CHANNEL_AXIS: tl.constexpr):
    """What a vector of one value a channel holds for the tile's channels, ready to broadcast; None without a vector."""
    if values_ptr is not None:
        if CHANNEL_AXIS == 0:
            return tl.load(values_ptr + tile.row, mask=tile.row < height, other=1.0)
        else:
            return tl.load(values_ptr + tile.column, mask=tile.column < tile.width, other=1.0)
