"""The first backward pass of batch normalisation and a multi-step neuron in Triton: sums of a channel."""

# mypy: allow-untyped-defs, no-check-untyped-defs

import torch
import triton.language as tl

from ...call import Backward
from .channel_sums import finish_sums, store_sums, strip_tile, strips, this_strip
from .lif import load_leak
from .lif_backward import backward_numbers, backward_options, chosen, in_order, inputs_of, steps_back, variants_of
from .neuron import Constants
from .tiles import Kernel, channel_values, cut


def _reduce(
    y_ptr,
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
    sums_ptr,
    slabs: tl.int64,
    panels: tl.int32,
    height: tl.int64,
    width_units: tl.int64,
    down: tl.int32,
    across: tl.int32,
    length: tl.int32,
    parts: tl.int32,
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
    strip = this_strip(length, slabs, down, across, CHANNEL_AXIS)
    own = strip_tile(
        strip, strip.first, panels, height, width_units, down, across, CHANNEL_AXIS, UNIT, BLOCK_HEIGHT, BLOCK_WIDTH
    )
    leak = load_leak(leak_ptr, leak, own, height, PER_CHANNEL, CHANNEL_AXIS)
    n = Constants(leak, tl.div_rn(1.0, leak), rest, threshold, fire_level)
    scale = channel_values(scale_ptr, own, height, CHANNEL_AXIS)
    shift = channel_values(shift_ptr, own, height, CHANNEL_AXIS)
    mean = channel_values(mean_ptr, own, height, CHANNEL_AXIS)
    first = tl.zeros((BLOCK_HEIGHT, BLOCK_WIDTH), tl.float64)
    second = tl.zeros((BLOCK_HEIGHT, BLOCK_WIDTH), tl.float64)
    for number in range(strip.first, strip.end):
        tile = strip_tile(
            strip, number, panels, height, width_units, down, across, CHANNEL_AXIS, UNIT, BLOCK_HEIGHT, BLOCK_WIDTH
        )
        _, sum_g, sum_gy = steps_back(
            n,
            tile,
            scale,
            shift,
            mean,
            None,
            None,
            y_ptr,
            residual_ptr,
            v_init_ptr,
            checkpoints_ptr,
            grad_spikes_ptr,
            grad_v_ptr,
            grad_sam_ptr,
            None,
            None,
            None,
            *(slabs, height, time_steps, c0, c1, sam_share),
            *(CHARGE, EXACT_INVERSE, RESET, DETACH, SURROGATE, REPEATED, False, CHANNEL_AXIS, STEPS),
        )
        first += tl.where(tile.mask, sum_g, 0.0).to(tl.float64)
        second += tl.where(tile.mask, sum_gy, 0.0).to(tl.float64)
    store_sums(sums_ptr, first, second, own, strip, parts, height, CHANNEL_AXIS)


_KERNEL = Kernel(_reduce)


def bn_reduce(call: Backward) -> None:
    """Writes the sums over all but channels of the current's gradient, and of that times ``y - mean``."""
    layout, y, affine, sums = call.layout, call.x, call.affine, call.sums
    assert affine is not None
    assert sums is not None
    inputs, vectors = inputs_of(call)
    mean = affine.folded[0]
    tiles = cut(layout, inputs, (*vectors, mean))
    variants = variants_of(y.element_size(), narrow_short=True, narrow_long=True)
    variant = chosen(variants, tiles, layout.steps)
    shared = strips(tiles, variant)
    with torch.cuda.device_of(y):
        kept = shared.empty_sums(layout.channels, y)
        _KERNEL.launch(
            tiles,
            variants,
            variant,
            (*in_order(inputs, vectors), mean, kept),
            (shared.length, shared.parts, layout.steps, *backward_numbers(call.neuron, layout)),
            programs=shared.programs,
            **backward_options(call),
        )
        finish_sums(kept, sums)
