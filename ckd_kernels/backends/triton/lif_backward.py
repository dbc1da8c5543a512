"""Multi-step neurons in Triton, backward."""

# mypy: allow-untyped-defs, no-check-untyped-defs, disable-error-code="assignment"
# ruff: noqa: RUF005 (no starred expressions in Triton's language)

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...call import Backward
from ...neuron import Neuron
from ...ops.layout import Layout
from .lif import CHECKPOINT_EVERY_STEPS, current, frame_of, load_leak, rows_of, start
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
from .tiles import Kernel, Tiles, Variant, channel_values, cut, mask_at, this_tile

# A kernel of so few steps serves no longer sequence, so that it needs no chunks.
_SHORT = tl.constexpr(4)


@functools.cache
def variants_of(element_size: int, *, narrow_short: bool, narrow_long: bool) -> tuple[Variant, Variant, Variant]:
    """How a backward kernel is compiled: for at most four time steps, for more, for what is not aligned."""
    # Each thread holds the potentials of 16 bytes of x: 4 elements of 4 bytes, or 8 of 2.  With more to hold besides,
    # e.g. x itself for the gradient of a decay or tau, 8 elements would not fit into registers, so that it is 4.
    elements = 2048 // element_size
    short, long = (512 if narrow else elements for narrow in (narrow_short, narrow_long))
    return Variant(True, short, 4), Variant(True, long, 8), Variant(False, 256, 8)


def chosen(variants: tuple[Variant, Variant, Variant], tiles: Tiles, time_steps: int) -> Variant:
    """The variant that serves a call."""
    return variants[2 if not tiles.aligned else 0 if time_steps <= _SHORT.value else 1]


def backward_numbers(neuron: Neuron, layout: Layout) -> tuple[float, ...]:
    """The scalars that every backward kernel takes."""
    return *numbers(neuron), *neuron.surrogate.constants(), 1.0 / (layout.steps * layout.channels)


def backward_options(call: Backward) -> dict[str, Any]:
    """The constants that every backward kernel takes."""
    neuron = call.neuron
    backward = {"DETACH": neuron.detach_reset, "SURROGATE": neuron.surrogate.name, "REPEATED": call.layout.repeated}
    return options(neuron, call.leak) | backward


@triton.jit
def _load_steps(steps_ptr, first, time_steps, tile, STEPS: tl.constexpr):
    """The time steps from ``first`` on, as far as they exist, as they are stored; all loads are in flight together."""
    values = ()
    for k in tl.static_range(STEPS):
        exists = mask_at(tile, first + k, time_steps)
        values = values + (tl.load(steps_ptr + (first + k) * tile.frame + tile.offset, mask=exists, other=0.0),)
    return values


@triton.jit
def _repeat(value, STEPS: tl.constexpr):
    values = ()
    for _ in tl.static_range(STEPS):
        values = values + (value,)
    return values


@triton.jit
def _grad_y(gx, y, scale, mean, offset, slope):
    """The gradient of y from the current's, which is the same where nothing is normalised."""
    if mean is not None:
        gx = (gx - offset) - (y.to(tl.float32) - mean) * slope
    if scale is not None:
        gx = gx * scale
    return gx


@triton.jit
def steps_back(
    n,
    tile,
    scale,
    shift,
    mean,
    offset,
    slope,
    x_ptr,
    residual_ptr,
    v_init_ptr,
    checkpoints_ptr,
    grad_spikes_ptr,
    grad_v_ptr,
    grad_sam_ptr,
    grad_x_ptr,
    grad_residual_ptr,
    grad_v_init_ptr,
    slabs,
    height,
    time_steps,
    c0,
    c1,
    sam_share,
    CHARGE: tl.constexpr,
    EXACT_INVERSE: tl.constexpr,
    RESET: tl.constexpr,
    DETACH: tl.constexpr,
    SURROGATE: tl.constexpr,
    REPEATED: tl.constexpr,
    LEARNT: tl.constexpr,
    CHANNEL_AXIS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """All time steps of a tile, the last one first, writing the gradients that are given.

    Returns three sums over time, each where it is wanted: of what each step adds to the leak's gradient (LEARNT), and
    without ``grad_x_ptr`` of the current's gradient, and of that times ``y - mean``.
    """
    # h[t+1] has a gradient of s[t] where the reset is delayed and not detached.
    DELAYED: tl.constexpr = RESET == "soft_delayed" and not DETACH
    REDUCE: tl.constexpr = grad_x_ptr is None
    RESIDUAL: tl.constexpr = residual_ptr is not None
    zero = tl.zeros(tile.mask.shape, tl.float32)
    from_sam = zero
    if grad_sam_ptr is not None:
        if CHANNEL_AXIS == 0:
            location, exists = tile.slab * tile.width + tile.column, tile.column < tile.width
        else:
            location, exists = tile.slab * height + tile.row, tile.row < height
        from_sam += tl.load(grad_sam_ptr + location, mask=exists, other=0.0) * sam_share
    gv = zero
    if grad_v_ptr is not None:
        gv = tl.load(grad_v_ptr + tile.offset, mask=tile.mask, other=0.0)
    delayed = zero
    sum_g = zero
    sum_gy = zero
    sum_leak = zero
    skipped = tile.outer * (time_steps - 1) * tile.frame
    if REPEATED:
        frozen = frame_of(x_ptr, tile)
    else:
        x_ptr += skipped
        if grad_x_ptr is not None:
            grad_x_ptr += skipped
    if residual_ptr is not None:
        residual_ptr += skipped
    if grad_residual_ptr is not None:
        grad_residual_ptr += skipped
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
            at = (saved - 1) * slabs * height * tile.width + tile.offset
            v = tl.load(checkpoints_ptr + at, mask=tile.mask, other=0.0)
        else:
            v = start(v_init_ptr, n.rest, tile)
        # From the checkpoint to this chunk, where chunks are shorter than what lies between checkpoints.
        for t in range(saved * CHECKPOINT_EVERY_STEPS, first, 4):
            if REPEATED:
                xs = _repeat(frozen, 4)
            else:
                xs = _load_steps(x_ptr, t, time_steps, tile, 4)
            residuals = xs  # what nobody reads
            if RESIDUAL:
                residuals = _load_steps(residual_ptr, t, time_steps, tile, 4)
            for k in tl.static_range(4):
                x = current(xs[k], residuals[k], scale, shift, RESIDUAL)
                v = after_reset(n, charge(n, v, x, CHARGE, EXACT_INVERSE, RESET), RESET)
        before = v
        if REPEATED:
            xs = _repeat(frozen, STEPS)
        else:
            xs = _load_steps(x_ptr, first, time_steps, tile, STEPS)
        residuals = xs  # what nobody reads
        if RESIDUAL:
            residuals = _load_steps(residual_ptr, first, time_steps, tile, STEPS)
        gss = xs
        if grad_spikes_ptr is not None:
            gss = _load_steps(grad_spikes_ptr, first, time_steps, tile, STEPS)
        hs = ()
        for k in tl.static_range(STEPS):
            h = v
            if first + k < time_steps:
                x = current(xs[k], residuals[k], scale, shift, RESIDUAL)
                h = charge(n, v, x, CHARGE, EXACT_INVERSE, RESET)
                v = after_reset(n, h, RESET)
            hs = hs + (h,)
        for k in tl.static_range(STEPS - 1, -1, -1):
            t = first + k
            if t < time_steps:
                h = hs[k]
                if grad_spikes_ptr is None:
                    gs = from_sam
                else:
                    gs = gss[k].to(tl.float32) + from_sam
                if DELAYED:
                    gs = gs - delayed
                sg = surrogate_derivative(h - n.threshold, c0, c1, SURROGATE)
                gh = fire_backward(n, h, gs, gv, sg, RESET, DETACH)
                gx = grad_input(n, gh, CHARGE, EXACT_INVERSE)
                if grad_residual_ptr is not None:
                    g = gx.to(grad_residual_ptr.dtype.element_ty)
                    tl.store(grad_residual_ptr + t * tile.frame + tile.offset, g, mask=tile.mask)
                if REPEATED:
                    sum_g += gx
                elif REDUCE:
                    sum_g += gx
                    sum_gy += gx * (xs[k].to(tl.float32) - mean)
                else:
                    g = _grad_y(gx, xs[k], scale, mean, offset, slope).to(grad_x_ptr.dtype.element_ty)
                    tl.store(grad_x_ptr + t * tile.frame + tile.offset, g, mask=tile.mask)
                if LEARNT:
                    if k > 0:
                        v = after_reset(n, hs[k - 1], RESET)
                    else:
                        v = before
                    x = current(xs[k], residuals[k], scale, shift, RESIDUAL)
                    sum_leak += grad_leak_step(n, gh, v, x, CHARGE)
                if DELAYED:
                    delayed = gh * n.threshold
                gv = grad_before(n, gh, CHARGE)
    if REPEATED:
        if REDUCE:
            sum_gy = sum_g * (frozen.to(tl.float32) - mean)
        else:
            g = _grad_y(sum_g, frozen, scale, mean, offset, slope).to(grad_x_ptr.dtype.element_ty)
            tl.store(grad_x_ptr + tile.offset, g, mask=tile.mask)
    if grad_v_init_ptr is not None:
        if DELAYED:
            u = start(v_init_ptr, n.rest, tile) - n.threshold
            gv = gv - delayed * surrogate_derivative(u, c0, c1, SURROGATE)
        tl.store(grad_v_init_ptr + tile.offset, gv, mask=tile.mask)
    return sum_leak, sum_g, sum_gy


def _backward(
    x_ptr,
    scale_ptr,
    shift_ptr,
    residual_ptr,
    v_init_ptr,
    leak_ptr,
    checkpoints_ptr,
    grad_spikes_ptr,
    grad_v_ptr,
    grad_sam_ptr,
    mean_ptr,
    offset_ptr,
    slope_ptr,
    grad_x_ptr,
    grad_residual_ptr,
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
    tile = this_tile(panels, height, width_units, down, across, CHANNEL_AXIS, UNIT, BLOCK_HEIGHT, BLOCK_WIDTH)
    leak = load_leak(leak_ptr, leak, tile, height, PER_CHANNEL, CHANNEL_AXIS)
    n = Constants(leak, tl.div_rn(1.0, leak), rest, threshold, fire_level)
    LEARNT: tl.constexpr = leak_sums_ptr is not None
    sum_leak, _, _ = steps_back(
        n,
        tile,
        channel_values(scale_ptr, tile, height, CHANNEL_AXIS),
        channel_values(shift_ptr, tile, height, CHANNEL_AXIS),
        channel_values(mean_ptr, tile, height, CHANNEL_AXIS),
        channel_values(offset_ptr, tile, height, CHANNEL_AXIS),
        channel_values(slope_ptr, tile, height, CHANNEL_AXIS),
        x_ptr,
        residual_ptr,
        v_init_ptr,
        checkpoints_ptr,
        grad_spikes_ptr,
        grad_v_ptr,
        grad_sam_ptr,
        grad_x_ptr,
        grad_residual_ptr,
        grad_v_init_ptr,
        *(slabs, height, time_steps, c0, c1, sam_share),
        *(CHARGE, EXACT_INVERSE, RESET, DETACH, SURROGATE, REPEATED, LEARNT, CHANNEL_AXIS, STEPS),
    )
    if LEARNT:
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


def lif_gradients(call: Backward) -> None:
    """Writes the gradients that are given; through the statistics that made it so, where there are ``coefficients``."""
    layout, x, leak, grad_leak, coefficients = call.layout, call.x, call.leak, call.grad_leak, call.coefficients
    inputs, vectors = inputs_of(call)
    through: tuple[Tensor | None, ...] = (None, None, None)
    if call.affine is not None and coefficients is not None:
        through = call.affine.folded[0], coefficients[0], coefficients[1]
    outputs = (call.grad_x, call.grad_residual, call.grad_v_init)
    tiles = cut(layout, (*inputs, *outputs), (*vectors, *through))
    learnt, normalised = leak is not None and grad_leak is not None, call.affine is not None
    variants = variants_of(x.element_size(), narrow_short=learnt and normalised, narrow_long=learnt or normalised)
    variant = chosen(variants, tiles, layout.steps)
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
            (*in_order(inputs, vectors), *through, *outputs, leak_sums),
            (layout.steps, *backward_numbers(call.neuron, layout)),
            **backward_options(call),
        )
        if leak_sums is not None and grad_leak is not None:
            grad_leak.copy_(leak_sums.sum(0).reshape(grad_leak.shape))


def inputs_of(call: Backward) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """What every backward kernel reads: tensors of elements; scale, shift and leak, one value a channel each."""
    scale, shift, residual = rows_of(call.affine)
    checkpoints = call.x.new_empty((0,), dtype=torch.float32) if call.checkpoints is None else call.checkpoints
    inputs = call.x, residual, call.v_init, checkpoints, call.grad_spikes, call.grad_v, call.grad_sam
    return inputs, (scale, shift, call.leak)


def in_order(inputs: tuple[Tensor | None, ...], vectors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """As the kernels take them."""
    (x, residual, v_init, *upstream), (scale, shift, leak) = inputs, vectors
    return (x, scale, shift, residual, v_init, leak, *upstream)
