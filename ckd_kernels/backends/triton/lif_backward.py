"""Multi-step neurons in Triton, backward."""

# mypy: allow-untyped-defs, no-check-untyped-defs, disable-error-code="assignment"
# ruff: noqa: RUF005 (no starred expressions in Triton's language)

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...neuron import Neuron
from ...ops.layout import Layout
from .lif import CHECKPOINT_EVERY_STEPS, current, load_leak, start
from .neuron import (
    Constants,
    after_reset,
    charge,
    fire_backward,
    grad_before,
    grad_input,
    numbers,
    options,
    surrogate_derivative,
)
from .neuron import grad_leak as grad_leak_step
from .tiles import Kernel, Variant, cut, mask_at, this_tile

# A kernel of so few steps serves no longer sequence, so that it needs no chunks.
_SHORT = tl.constexpr(4)


@functools.cache
def _variants(element_size: int, learnt: bool) -> tuple[Variant, Variant, Variant]:
    # Each thread holds the potentials of 16 bytes of x: 4 elements of 4 bytes, or 8 of 2.  With a learnable decay
    # or tau it holds x as well: 8 elements for 8 steps would not fit into registers, so that it is 4.
    elements = 2048 // element_size
    return Variant(True, elements, 4), Variant(True, 512 if learnt else elements, 8), Variant(False, 256, 8)


@triton.jit
def _load_steps(steps_ptr, first, time_steps, tile, STEPS: tl.constexpr):
    """The time steps from ``first`` on, as far as they exist, as they are stored; all loads are in flight together."""
    values = ()
    for k in tl.static_range(STEPS):
        exists = mask_at(tile, first + k, time_steps)
        values = values + (tl.load(steps_ptr + (first + k) * tile.frame + tile.place, mask=exists, other=0.0),)
    return values


@triton.jit
def _repeat(value, STEPS: tl.constexpr):
    values = ()
    for _ in tl.static_range(STEPS):
        values = values + (value,)
    return values


def _backward(
    x_ptr,
    v_init_ptr,
    leak_ptr,
    checkpoints_ptr,
    grad_spikes_ptr,
    grad_v_ptr,
    grad_sam_ptr,
    grad_x_ptr,
    grad_v_init_ptr,
    leak_sums_ptr,
    slabs: tl.int64,
    panels: tl.int32,
    height: tl.int64,
    width_units: tl.int64,
    down: tl.int32,
    across: tl.int32,
    time_steps: tl.int32,
    leak: tl.float32,
    rest: tl.float32,
    threshold: tl.float32,
    fire_level: tl.float32,
    c0: tl.float32,
    c1: tl.float32,
    sam_share: tl.float32,
    CHARGE: tl.constexpr,
    EXACT_INVERSE: tl.constexpr,
    RESET: tl.constexpr,
    DETACH: tl.constexpr,
    SURROGATE: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    REPEATED: tl.constexpr,
    CHANNEL_AXIS: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_HEIGHT: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
):
    # h[t+1] has a gradient of s[t] where the reset is delayed and not detached.
    DELAYED: tl.constexpr = RESET == "soft_delayed" and not DETACH
    tile = this_tile(panels, height, width_units, down, across, CHANNEL_AXIS, UNIT, BLOCK_HEIGHT, BLOCK_WIDTH)
    leak = load_leak(leak_ptr, leak, tile, height, PER_CHANNEL, CHANNEL_AXIS)
    n = Constants(leak, tl.div_rn(1.0, leak), rest, threshold, fire_level)
    zero = tl.zeros((BLOCK_HEIGHT, BLOCK_WIDTH), tl.float32)
    from_sam = zero
    if grad_sam_ptr is not None:
        if CHANNEL_AXIS == 0:
            location, exists = tile.slab * tile.width + tile.column, tile.column < tile.width
        else:
            location, exists = tile.slab * height + tile.row, tile.row < height
        from_sam += tl.load(grad_sam_ptr + location, mask=exists, other=0.0) * sam_share
    gv = zero
    if grad_v_ptr is not None:
        gv = tl.load(grad_v_ptr + tile.place, mask=tile.mask, other=0.0)
    delayed = zero
    sum_x = zero
    sum_leak = zero
    skipped = tile.outer * (time_steps - 1) * tile.frame
    if REPEATED:
        frozen = current(x_ptr, tile)
    else:
        x_ptr += skipped
        grad_x_ptr += skipped
    if grad_spikes_ptr is not None:
        grad_spikes_ptr += skipped
    # Chunks of STEPS time steps, the last one first: their potentials are recomputed and stay in registers.
    if STEPS == _SHORT:
        chunks = 1
    else:
        chunks = tl.cdiv(time_steps, STEPS)
    for i in range(0, chunks):
        first = (chunks - 1 - i) * STEPS
        saved = first // CHECKPOINT_EVERY_STEPS
        if saved > 0:
            at = (saved - 1) * slabs * height * tile.width + tile.place
            v = tl.load(checkpoints_ptr + at, mask=tile.mask, other=0.0)
        else:
            v = start(v_init_ptr, rest, tile)
        # From the checkpoint to this chunk, where chunks are shorter than what lies between checkpoints.
        for t in range(saved * CHECKPOINT_EVERY_STEPS, first, 4):
            if REPEATED:
                xs = _repeat(frozen, 4)
            else:
                xs = _load_steps(x_ptr, t, time_steps, tile, 4)
            for k in tl.static_range(4):
                v = after_reset(n, charge(n, v, xs[k].to(tl.float32), CHARGE, EXACT_INVERSE, RESET), RESET)
        before = v
        if REPEATED:
            xs = _repeat(frozen, STEPS)
        else:
            xs = _load_steps(x_ptr, first, time_steps, tile, STEPS)
        if grad_spikes_ptr is None:
            gss = _repeat(zero, STEPS)
        else:
            gss = _load_steps(grad_spikes_ptr, first, time_steps, tile, STEPS)
        hs = ()
        for k in tl.static_range(STEPS):
            h = v
            if first + k < time_steps:
                h = charge(n, v, xs[k].to(tl.float32), CHARGE, EXACT_INVERSE, RESET)
                v = after_reset(n, h, RESET)
            hs = hs + (h,)
        for k in tl.static_range(STEPS - 1, -1, -1):
            t = first + k
            if t < time_steps:
                h = hs[k]
                gs = gss[k].to(tl.float32) + from_sam
                if DELAYED:
                    gs = gs - delayed
                sg = surrogate_derivative(h - threshold, c0, c1, SURROGATE)
                gh = fire_backward(n, h, gs, gv, sg, RESET, DETACH)
                gx = grad_input(n, gh, CHARGE, EXACT_INVERSE)
                if REPEATED:
                    sum_x += gx
                else:
                    gx = gx.to(grad_x_ptr.dtype.element_ty)
                    tl.store(grad_x_ptr + t * tile.frame + tile.place, gx, mask=tile.mask)
                if leak_sums_ptr is not None:
                    if k > 0:
                        v = after_reset(n, hs[k - 1], RESET)
                    else:
                        v = before
                    sum_leak += grad_leak_step(n, gh, v, xs[k].to(tl.float32), CHARGE)
                if DELAYED:
                    delayed = gh * threshold
                gv = grad_before(n, gh, CHARGE)
    if REPEATED:
        tl.store(grad_x_ptr + tile.place, sum_x.to(grad_x_ptr.dtype.element_ty), mask=tile.mask)
    if grad_v_init_ptr is not None:
        if DELAYED:
            u = start(v_init_ptr, rest, tile) - threshold
            gv = gv - delayed * surrogate_derivative(u, c0, c1, SURROGATE)
        tl.store(grad_v_init_ptr + tile.place, gv, mask=tile.mask)
    if leak_sums_ptr is not None:
        # One row of sums, over all but channels, a program (or a line of programs); the caller adds up the rows.
        sum_leak = tl.where(tile.mask, sum_leak, 0.0).to(tl.float64)
        if not PER_CHANNEL:
            tl.store(leak_sums_ptr + tl.program_id(0), tl.sum(sum_leak))
        elif CHANNEL_AXIS == 0:
            at = (tile.slab * across + tile.across) * height + tile.row
            tl.store(leak_sums_ptr + at, tl.sum(sum_leak, axis=1)[:, None], mask=tile.row < height)
        else:
            at = (tile.slab * down + tile.down) * tile.width + tile.column
            tl.store(leak_sums_ptr + at, tl.sum(sum_leak, axis=0)[None, :], mask=tile.column < tile.width)


_KERNEL = Kernel(_backward)


def lif_backward(
    neuron: Neuron,
    layout: Layout,
    x: Tensor,
    v_init: Tensor | None,
    leak: Tensor | None,
    checkpoints: Tensor | None,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    grad_sam: Tensor | None,
    grad_x: Tensor,
    grad_v_init: Tensor | None,
    grad_leak: Tensor | None,
) -> None:
    """Writes the gradient of x and, where given, those of the first potential and of the decay or tau."""
    if checkpoints is None:
        checkpoints = x.new_empty((0,), dtype=torch.float32)
    inputs = (x, v_init, leak, checkpoints, grad_spikes, grad_v, grad_sam, grad_x, grad_v_init)
    tiles = cut(layout, inputs)
    variants = _variants(x.element_size(), leak is not None and grad_leak is not None)
    variant = variants[2 if not tiles.aligned else 0 if layout.steps <= _SHORT.value else 1]
    with torch.cuda.device_of(x):
        leak_sums = None
        if leak is not None and grad_leak is not None:
            down, across = tiles.grid(variant)
            lines = down * across if leak.numel() == 1 else across if tiles.channel_axis == 0 else down
            leak_sums = x.new_empty((tiles.outer * tiles.panels * lines, leak.numel()), dtype=torch.float64)
        _KERNEL.launch(
            tiles,
            variants,
            variant,
            (*inputs, leak_sums),
            (
                layout.steps,
                *numbers(neuron),
                *neuron.surrogate.constants(),
                1.0 / (layout.steps * layout.channels),
            ),
            DETACH=neuron.detach_reset,
            SURROGATE=neuron.surrogate.name,
            REPEATED=layout.repeated,
            **options(neuron, leak),
        )
        if leak_sums is not None and grad_leak is not None:
            grad_leak.copy_(leak_sums.sum(0).reshape(grad_leak.shape))
