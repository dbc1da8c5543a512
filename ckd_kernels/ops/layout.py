"""How a tensor lies in memory, as the kernels see it.

Every kernel sees ``[outer, steps, rows, channels, inner]``: what lies outside time, time,
and what lies inside it, split at the channels where an op needs them.  A contiguous
``[T, B, C, H, W]`` has outer 1, rows B, inner H*W; ``[B, T, C, H, W]`` has outer B, rows 1;
channels-last memory has rows B*H*W, inner 1.  So neither axis order nor memory format is copied.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Sizes as the kernels see them, and how to allocate what belongs to them."""

    outer: int
    steps: int
    rows: int
    channels: int
    inner: int
    repeated: bool  # x holds one frame, read at every time step
    sizes: tuple[int, ...]  # of the output: x's, with all its time steps
    strides: tuple[int, ...]
    order: tuple[int, ...]  # dimensions from the outermost to the innermost in memory
    time_dim: int
    channel_dim: int  # -1: the op does not tell channels apart

    @property
    def frame(self) -> int:
        """Elements of one time step of one outer index."""
        return self.rows * self.channels * self.inner

    def empty(self, dtype: torch.dtype, device: torch.device, without: tuple[int, ...] = ()) -> Tensor:
        """An uninitialised tensor, dense in this order, lacking the dimensions ``without``."""
        sizes, strides = self._shape(without)
        return torch.empty_strided(sizes, strides, dtype=dtype, device=device)

    def aligned(self, t: Tensor | None, *without: int) -> Tensor | None:
        """``t`` itself where it has this order and lacks the dimensions ``without``, else a copy that does."""
        if t is None:
            return None
        given = t.stride()
        if not without and given == self.strides:
            return t
        sizes, strides = self._shape(without)
        if given == strides or all(n == 1 or a == b for n, a, b in zip(sizes, given, strides, strict=True)):
            return t
        return self.empty(t.dtype, t.device, without).copy_(t)

    def _shape(self, without: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        try:
            return _cached_shape(self.sizes, self.order, without)
        except TypeError:  # symbols, which torch.compile traces with, have no hash
            return _shape(self.sizes, self.order, without)


def _shape(
    all_sizes: Sequence[int], order: Sequence[int], without: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes and strides of a tensor that is dense in this order and lacks the dimensions ``without``."""
    sizes, strides, step = list(all_sizes), [1] * len(all_sizes), 1
    for d in reversed(order):
        if d not in without:
            strides[d] = step
            step = step * max(sizes[d], 1)
    kept = [d for d in range(len(sizes)) if d not in without]
    return tuple([sizes[d] for d in kept]), tuple([strides[d] for d in kept])


_cached_shape = functools.lru_cache(maxsize=4096)(_shape)


def _memory_order(
    sizes: Sequence[int], strides: Sequence[int], time_dim: int, channel_dim: int
) -> tuple[int, ...] | None:
    """Dimensions from the outermost to the innermost in memory; None where that is not dense."""
    if any(n == 0 for n in sizes):
        # Without elements any order will do, and whatever the strides are.
        return (time_dim, *(d for d in range(len(sizes)) if d != time_dim))
    order: list[int] = []
    # A sort by stride, which torch.compile cannot trace where strides are symbols.
    for d in range(len(sizes)):
        if sizes[d] != 1:
            at = len(order)
            while at > 0 and strides[order[at - 1]] < strides[d]:
                at -= 1
            order.insert(at, d)
    expected = 1
    for d in reversed(order):
        if strides[d] != expected:
            return None
        expected = expected * sizes[d]
    # Dimensions of size 1 have no place of their own: they go behind those named before them, channels behind time.
    for d in range(len(sizes)):
        if sizes[d] == 1:
            leads = d == time_dim and 0 <= channel_dim < time_dim
            before = [*range(d), time_dim] if d == channel_dim and time_dim in order else range(d)
            at = 0 if leads else 1 + max([-1, *[order.index(e) for e in before]])
            order.insert(at, d)
    return tuple(order)


def _layout(
    sizes: Sequence[int], strides: Sequence[int], time_dim: int, time_steps: int, channel_dim: int
) -> Layout | None:
    order = _memory_order(sizes, strides, time_dim, channel_dim)
    if order is None:
        return None
    at = order.index(time_dim)
    inside = order[at + 1 :]
    if channel_dim < 0:
        rows, channels, inner = 1, 1, math.prod([sizes[d] for d in inside])
    elif channel_dim in inside:
        c = inside.index(channel_dim)
        rows, channels = math.prod([sizes[d] for d in inside[:c]]), sizes[channel_dim]
        inner = math.prod([sizes[d] for d in inside[c + 1 :]])
    else:
        return None
    outer = math.prod([sizes[d] for d in order[:at]])
    repeated = sizes[time_dim] != time_steps
    if repeated and sizes[time_dim] != 1:
        raise ValueError(
            f"the input has {sizes[time_dim]} time steps where there must be {time_steps};"
            " a graph that was traced takes no other number than that it was traced with"
        )
    out_sizes = tuple(time_steps if d == time_dim else n for d, n in enumerate(sizes))
    out_strides = _shape(out_sizes, order, ())[1]
    return Layout(
        *(outer, time_steps, rows, channels, inner, repeated, out_sizes, out_strides, order, time_dim, channel_dim)
    )


_cached_layout = functools.lru_cache(maxsize=4096)(_layout)


def sizes_of(x: Tensor) -> tuple[int, ...]:
    """x's shape as numbers, also where `torch.jit.trace` has tensors for them, as what follows is not recorded."""
    sizes = x.shape
    if sizes and type(sizes[0]) is Tensor:
        state = torch._C._get_tracing_state()
        torch._C._set_tracing_state(None)
        try:
            sizes = x.shape
        finally:
            torch._C._set_tracing_state(state)
    return sizes


def layout_of(x: Tensor, *, time_dim: int, time_steps: int | None = None, channel_dim: int) -> Layout | None:
    """The layout of x, or None where a kernel cannot see it in place and it has to be copied.

    ``x`` has ``time_steps`` time steps, or one that stands for all of them; by default as many as it has.
    """
    sizes = sizes_of(x)
    return layout_from(sizes, x.stride(), time_dim, sizes[time_dim] if time_steps is None else time_steps, channel_dim)


def layout_from(
    sizes: Sequence[int], strides: Sequence[int], time_dim: int, time_steps: int, channel_dim: int
) -> Layout | None:
    """As `layout_of`, of a tensor's sizes and strides."""
    if not torch.compiler.is_compiling():
        try:
            return _cached_layout(sizes, strides, time_dim, time_steps, channel_dim)
        except TypeError:  # symbols, which torch.compile traces with, have no hash
            pass
    return _layout(sizes, strides, time_dim, time_steps, channel_dim)


def dense_layout_of(x: Tensor, name: str, function: str, time_dim: int, time_steps: int, channel_dim: int) -> Layout:
    """The layout of a tensor that an op was given, which copies nothing; RuntimeError where it has none."""
    layout = layout_from(sizes_of(x), x.stride(), time_dim, time_steps, channel_dim)
    if layout is None:
        is_, it = ("are", "them") if name.endswith("s") else ("is", "it")
        raise RuntimeError(
            f"{name} of shape {tuple(x.shape)} and strides {x.stride()} {is_} not dense;"
            f" call ckd_kernels.{function}, which copies {it}"
        )
    return layout
