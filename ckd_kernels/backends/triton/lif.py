"""Multi-step neurons in Triton, forward."""

# mypy: allow-untyped-defs, no-check-untyped-defs, disable-error-code="assignment"
# ruff: noqa: RUF005 (no starred expressions in Triton's language)

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...call import CHECKPOINT_EVERY, Affine, Forward
from .neuron import Constants, after_reset, charge, numbers, options
from .sam import empty_sums, finish_sam, store_sum
from .tiles import Kernel, Variant, channel_values, cut, this_tile

CHECKPOINT_EVERY_STEPS = tl.constexpr(CHECKPOINT_EVERY)


@functools.cache
def _variants(element_size: int, channels: bool, residual: bool) -> tuple[Variant, Variant]:
    # Each thread loads 32 bytes a time step, so that one or two steps have as many bytes on their way as the memory's
    # latency asks for; where channels are told apart, registers are left for 16 bytes of a 2-byte type alone.
    elements = 1024 if channels and not residual else (2048 if residual else 4096) // element_size
    return Variant(aligned=True, elements=elements, steps=4), Variant(aligned=False, elements=256, steps=4)


@triton.jit
def frame_of(steps_ptr, tile):
    """A time step as it is stored."""
    return tl.load(steps_ptr + tile.offset, mask=tile.mask, other=0.0)


@triton.jit
def current(x, residual, scale, shift, RESIDUAL: tl.constexpr):
    """The input current of a time step, in the arithmetic's precision: x, or what normalisation makes of it."""
    x = x.to(tl.float32)
    if scale is not None:
        x = x * scale + shift
    if RESIDUAL:
        x = x + residual.to(tl.float32)
    return x


@triton.jit
def start(v_init_ptr, rest, tile):
    """The membrane potential before the first step."""
    if v_init_ptr is None:
        return tl.full(tile.mask.shape, rest, tl.float32)
    else:
        return tl.load(v_init_ptr + tile.offset, mask=tile.mask, other=0.0)


@triton.jit
def load_leak(leak_ptr, leak, tile, height, PER_CHANNEL: tl.constexpr, CHANNEL_AXIS: tl.constexpr):
    """The decay or tau: ``leak``, or what a tensor holds, one value or one for each of the tile's channels."""
    if PER_CHANNEL:
        return channel_values(leak_ptr, tile, height, CHANNEL_AXIS)
    elif leak_ptr is not None:
        return tl.load(leak_ptr)
    else:
        return leak


@triton.jit
def _advance(
    n,
    tile,
    v,
    count,
    t,
    frozen,
    scale,
    shift,
    x_ptr,
    residual_ptr,
    spikes_ptr,
    CHARGE: tl.constexpr,
    EXACT_INVERSE: tl.constexpr,
    RESET: tl.constexpr,
    COUNT: tl.constexpr,
    STEPS: tl.constexpr,
):
    """STEPS time steps from t on; the loads come first, so that they wait for memory together."""
    RESIDUAL: tl.constexpr = residual_ptr is not None
    begin = t * tile.frame
    xs = ()
    residuals = ()
    for k in tl.static_range(STEPS):
        if frozen is None:
            xs = xs + (frame_of(x_ptr + begin + k * tile.frame, tile),)
        else:
            xs = xs + (frozen,)
        if RESIDUAL:
            residuals = residuals + (frame_of(residual_ptr + begin + k * tile.frame, tile),)
    if not RESIDUAL:
        residuals = xs  # what nobody reads
    for k in tl.static_range(STEPS):
        x = current(xs[k], residuals[k], scale, shift, RESIDUAL)
        h = charge(n, v, x, CHARGE, EXACT_INVERSE, RESET)
        fires = h >= n.fire_level
        spikes = fires.to(spikes_ptr.dtype.element_ty)
        tl.store(spikes_ptr + begin + k * tile.frame + tile.offset, spikes, mask=tile.mask)
        v = after_reset(n, h, RESET)
        if COUNT:
            count += (fires & tile.mask).to(tl.int32)
    return v, count


def _forward(
    x_ptr,
    scale_ptr,
    shift_ptr,
    residual_ptr,
    v_init_ptr,
    leak_ptr,
    spikes_ptr,
    v_last_ptr,
    counts_ptr,
    checkpoints_ptr,
    slabs: tl.int64,
    panels: tl.int32,
    height: tl.int64,
    width_units: tl.int64,
    down: tl.int32,
    across: tl.int32,
    time_steps: tl.int32,
    checkpoints: tl.int32,
    leak: tl.float32,
    rest: tl.float32,
    threshold: tl.float32,
    fire_level: tl.float32,
    CHARGE: tl.constexpr,
    EXACT_INVERSE: tl.constexpr,
    RESET: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    REPEATED: tl.constexpr,
    CHANNEL_AXIS: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_HEIGHT: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
):
    COUNT: tl.constexpr = counts_ptr is not None
    tile = this_tile(panels, height, width_units, down, across, CHANNEL_AXIS, UNIT, BLOCK_HEIGHT, BLOCK_WIDTH)
    leak = load_leak(leak_ptr, leak, tile, height, PER_CHANNEL, CHANNEL_AXIS)
    n = Constants(leak, tl.div_rn(1.0, leak), rest, threshold, fire_level)
    scale = channel_values(scale_ptr, tile, height, CHANNEL_AXIS)
    shift = channel_values(shift_ptr, tile, height, CHANNEL_AXIS)
    v = start(v_init_ptr, rest, tile)
    count = tl.zeros((BLOCK_HEIGHT, BLOCK_WIDTH), tl.int32)
    # From the index into [outer, frame] to the first time step in [outer, time_steps, frame].
    skipped = tile.outer * (time_steps - 1) * tile.frame
    spikes_ptr += skipped
    if residual_ptr is not None:
        residual_ptr += skipped
    if REPEATED:
        frozen = frame_of(x_ptr, tile)
    else:
        frozen = None
        x_ptr += skipped
    done = time_steps // STEPS * STEPS
    for chunk in range(0, done, CHECKPOINT_EVERY_STEPS):
        for t in range(chunk, tl.minimum(chunk + CHECKPOINT_EVERY_STEPS, done), STEPS):
            v, count = _advance(
                *(n, tile, v, count, t),
                frozen,
                scale,
                shift,
                x_ptr,
                residual_ptr,
                spikes_ptr,
                *(CHARGE, EXACT_INVERSE, RESET, COUNT, STEPS),
            )
        saved = chunk // CHECKPOINT_EVERY_STEPS
        if saved < checkpoints:
            tl.store(checkpoints_ptr + saved * slabs * height * tile.width + tile.offset, v, mask=tile.mask)
    # The rest in powers of two: where STEPS is 4, two steps if two are left, then one.
    for i in tl.static_range(1, 3):
        for t in range(done, time_steps // (STEPS >> i) * (STEPS >> i), STEPS >> i):
            v, count = _advance(
                *(n, tile, v, count, t),
                frozen,
                scale,
                shift,
                x_ptr,
                residual_ptr,
                spikes_ptr,
                *(CHARGE, EXACT_INVERSE, RESET, COUNT, STEPS >> i),
            )
        done = time_steps // (STEPS >> i) * (STEPS >> i)
    if v_last_ptr is not None:
        tl.store(v_last_ptr + tile.offset, v, mask=tile.mask)
    if COUNT:
        store_sum(counts_ptr, count, tile, slabs, height, CHANNEL_AXIS)


_KERNEL = Kernel(_forward)


def lif_forward(call: Forward) -> None:
    """Writes spikes and, where given, the last potential, the spike activation map and the checkpoints."""
    neuron, layout, x, v_init, leak, affine, spikes, v_last, sam, checkpoints = call
    if checkpoints is None:
        checkpoints = x.new_empty((0,), dtype=torch.float32)
    scale, shift, residual = rows_of(affine)
    inputs = (x, scale, shift, residual, v_init, leak, spikes, v_last)
    tiles = cut(layout, (x, residual, v_init, spikes, v_last, checkpoints), (scale, shift, leak))
    variants = _variants(x.element_size(), tiles.channel_axis is not None, residual is not None)
    variant = variants[0 if tiles.aligned else 1]
    with torch.cuda.device_of(x):
        counts = None if sam is None else empty_sums(layout, tiles, variant, x, torch.int32)
        _KERNEL.launch(
            tiles,
            variants,
            variant,
            (*inputs, counts, checkpoints),
            (layout.steps, checkpoints.shape[0], *numbers(neuron)),
            REPEATED=layout.repeated,
            **options(neuron, leak),
        )
        if sam is not None and counts is not None:
            finish_sam(counts, sam, layout.steps * layout.channels)


def rows_of(affine: Affine | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Scale, shift and residual."""
    return (None, None, None) if affine is None else (affine.folded[2], affine.folded[3], affine.residual)
