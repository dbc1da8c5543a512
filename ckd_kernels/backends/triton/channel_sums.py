"""Sums over all but channels in Triton: two float64 sums a channel, always in the same order.

Programs share the tiles; each adds up a run of tiles that have the same channels and keeps two sums for each of these.
Then one program a channel adds up what the programs kept.
"""

# mypy: allow-untyped-defs, no-check-untyped-defs

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import OPTIONS, Tiles, Variant, tile_at

# Programs among which tiles are shared: some thirty for each processor of a large GPU, so that none waits long for the
# last one, and few enough that their sums are soon added up.  A constant, not what this GPU has, so that the order of
# summation is a matter of sizes alone.
_PROGRAMS = 4096
_FINISH_BLOCK = 1024


class Strips(NamedTuple):
    """How tiles are shared."""

    length: int  # tiles of a program
    parts: int  # programs that have the same channels
    programs: int

    def empty_sums(self, channels: int, like: Tensor) -> Tensor:
        """``[2, channels, parts]``: what `store_sums` fills and `finish_sums` reads."""
        return like.new_empty((2, channels, self.parts), dtype=torch.float64)


def strips(tiles: Tiles, variant: Variant, *, multiple_of: int = 1) -> Strips:
    """Shares the tiles; each program's number is a multiple of ``multiple_of``, the last one's aside."""
    down, across = tiles.grid(variant)
    slabs = tiles.outer * tiles.panels
    shared, lines = (down, slabs * across) if tiles.channel_axis == 0 else (across, slabs * down)
    length = multiple_of * -(-shared * lines // (multiple_of * _PROGRAMS))
    parts = -(-lines // length)
    return Strips(length, parts, shared * parts)


class Strip(NamedTuple):
    """This program's tiles, in a kernel: numbers ``first`` to ``end`` of those with the same channels."""

    channels: Any  # which tile along the channels
    part: Any  # which of the programs with these channels
    first: Any
    end: Any


@triton.jit
def this_strip(length, slabs, down, across, CHANNEL_AXIS: tl.constexpr):
    """The tiles of this program."""
    if CHANNEL_AXIS == 0:
        shared, lines = down, slabs * across
    else:
        shared, lines = across, slabs * down
    part = tl.program_id(0) // shared
    first = part * length
    return Strip(tl.program_id(0) % shared, part, first, tl.minimum(first + length, lines.to(tl.int32)))


@triton.jit
def strip_tile(
    strip,
    number,
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
    """One of the tiles that have the strip's channels, numbered as they lie in memory."""
    width = width_units * UNIT
    if CHANNEL_AXIS == 0:
        return tile_at(
            number // across, strip.channels, number % across, panels, height, width, BLOCK_HEIGHT, BLOCK_WIDTH
        )
    else:
        return tile_at(number // down, number % down, strip.channels, panels, height, width, BLOCK_HEIGHT, BLOCK_WIDTH)


@triton.jit
def store_sums(sums_ptr, first, second, tile, strip, parts, height, CHANNEL_AXIS: tl.constexpr):
    """Sums two tiles' elements over all but channels."""
    if CHANNEL_AXIS == 0:
        at, exists, channels = tile.row * parts + strip.part, tile.row < height, height
        first, second = tl.sum(first, axis=1)[:, None], tl.sum(second, axis=1)[:, None]
    else:
        at, exists, channels = tile.column * parts + strip.part, tile.column < tile.width, tile.width
        first, second = tl.sum(first, axis=0)[None, :], tl.sum(second, axis=0)[None, :]
    tl.store(sums_ptr + at, first, mask=exists)
    tl.store(sums_ptr + channels * parts + at, second, mask=exists)


@triton.jit(
    do_not_specialize=["channels", "parts", "inner", "count"],
    do_not_specialize_on_alignment=["sums_ptr", "pivots_ptr", "out_ptr"],
)
def _finish(
    sums_ptr,
    pivots_ptr,
    out_ptr,
    channels: tl.int64,
    parts: tl.int32,
    inner: tl.int64,
    count: tl.int64,
    BLOCK: tl.constexpr,
):
    channel = tl.program_id(0).to(tl.int64)
    first = tl.zeros((BLOCK,), tl.float64)
    second = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, parts, BLOCK):
        part = begin + tl.arange(0, BLOCK)
        at = sums_ptr + channel * parts + part
        first += tl.load(at, mask=part < parts, other=0.0)
        second += tl.load(at + channels * parts, mask=part < parts, other=0.0)
    a, b = tl.sum(first), tl.sum(second)
    if pivots_ptr is not None:
        n = count.to(tl.float64)
        pivot = tl.load(pivots_ptr + channel * inner).to(tl.float32).to(tl.float64)
        b = (b - a * a / n) / n
        b = tl.where(b < 0.0, 0.0, b)  # NaN stays
        a = pivot + a / n
    tl.store(out_ptr + channel, a)
    tl.store(out_ptr + channels + channel, b)


def finish_sums(sums: Tensor, out: Tensor, *, pivots: Tensor | None = None, inner: int = 1, count: int = 1) -> None:
    """Adds up the programs' sums into ``out``, ``[2, channels]``.

    Where they are of deviations from a channel's pivot and of their squares, ``pivots`` holds a pivot every ``inner``
    elements, and ``out`` is mean and biased variance of ``count`` values.
    """
    _, channels, parts = sums.shape
    _finish[(channels,)](sums, pivots, out, channels, parts, inner, count, BLOCK=_FINISH_BLOCK, **OPTIONS)
