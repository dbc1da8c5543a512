"""How tensors are seen in memory: what is read in place, and that everything else is copied once."""

from __future__ import annotations

import itertools

import pytest
import torch

from ckd_kernels.arguments import dense
from ckd_kernels.ops.layout import layout_of
from reference_cases import MEMORY, arrange


def seen(x, time_dim, channel_dim=-1):
    return layout_of(x, time_dim=time_dim, time_steps=x.shape[time_dim], channel_dim=channel_dim)


@pytest.mark.parametrize(
    ("memory", "shape", "time_dim", "channel_dim", "expected"),
    [
        # outer, steps, rows, channels, inner
        ("contiguous", (4, 2, 3, 5, 6), 0, 2, (1, 4, 2, 3, 30)),
        ("contiguous", (2, 4, 3, 5, 6), 1, 2, (2, 4, 1, 3, 30)),
        ("contiguous", (4, 2, 3, 5, 6), 0, -1, (1, 4, 1, 1, 180)),
        ("contiguous", (4, 2, 3), 0, 2, (1, 4, 2, 3, 1)),
        ("channels_last", (4, 2, 3, 5, 6), 0, 2, (1, 4, 60, 3, 1)),
        ("channels_last", (2, 4, 3, 5, 6), 1, 2, (2, 4, 30, 3, 1)),
        ("transposed", (4, 2, 3, 5, 6), 0, 2, (2, 4, 1, 3, 30)),
        ("transposed", (2, 4, 3, 5, 6), 1, 2, (1, 4, 2, 3, 30)),
        ("offset", (4, 2, 3, 5, 6), 0, 2, (1, 4, 2, 3, 30)),
        ("reversed", (4, 2, 3, 5, 6), 0, -1, (180, 4, 1, 1, 1)),
        ("contiguous", (4,), 0, -1, (1, 4, 1, 1, 1)),
        ("contiguous", (1, 4), 1, 0, (1, 4, 1, 1, 1)),
    ],
)
def test_read_in_place(memory, shape, time_dim, channel_dim, expected):
    x = arrange(torch.rand(shape), memory)
    layout = seen(x, time_dim, channel_dim)
    assert (layout.outer, layout.steps, layout.rows, layout.channels, layout.inner) == expected
    assert not layout.repeated
    copy, known = dense(x, x.shape, time_dim, channel_dim)
    assert copy is x
    assert known == layout


@pytest.mark.parametrize("memory", ["sliced", "reversed"])
def test_copied(memory):
    """A window of a larger tensor, and time inside channels: no strides of [outer, T, rows, C, inner] say that."""
    x = arrange(torch.rand(4, 2, 3, 5), memory)
    assert seen(x, 0, 2) is None
    copy, layout = dense(x, x.shape, 0, 2)
    assert torch.equal(copy, x)
    assert seen(copy, 0, 2) == layout


@pytest.mark.parametrize("sizes", list(itertools.product([0, 1, 2, 3], repeat=3)), ids=str)
def test_dense_is_always_enough(sizes):
    """Whatever sizes and strides, after `dense` the kernels see every element where it is."""
    for memory, time_dim, channel_dim in itertools.product(MEMORY, (0, 1), (-1, 0, 1, 2)):
        if channel_dim == time_dim:
            continue
        x = arrange(torch.rand(sizes), memory)
        x, _ = dense(x, x.shape, time_dim, channel_dim)
        layout = seen(x, time_dim, channel_dim)
        assert layout is not None, (memory, time_dim, channel_dim)
        assert layout.outer * layout.steps * layout.frame == x.numel()
        if channel_dim >= 0:
            assert layout.channels == x.shape[channel_dim]
        if x.numel():
            check_elements(x, layout, time_dim, channel_dim)


def check_elements(x, layout, time_dim, channel_dim):
    size = (layout.outer, layout.steps, layout.rows, layout.channels, layout.inner)
    view = torch.as_strided(x, size, torch.empty(size).stride(), x.storage_offset())
    for t in range(layout.steps):
        expected = x.select(time_dim, t)
        assert torch.equal(view[:, t].flatten().sort().values, expected.flatten().sort().values)
    if channel_dim >= 0:
        for c in range(layout.channels):
            expected = x.select(channel_dim, c)
            assert torch.equal(view[:, :, :, c].flatten().sort().values, expected.flatten().sort().values)


def test_outputs_follow_the_order_of_x():
    x = arrange(torch.rand(4, 2, 3, 5, 6), "channels_last")
    layout = seen(x, 0, 2)
    assert layout.empty(x.dtype, x.device).stride() == x.stride()
    frame = layout.empty(x.dtype, x.device, without=(0,))
    assert frame.shape == (2, 3, 5, 6)
    assert frame.is_contiguous(memory_format=torch.channels_last)
    locations = layout.empty(torch.float64, x.device, without=(0, 2))
    assert (locations.shape, locations.stride(), locations.dtype) == ((2, 5, 6), (30, 6, 1), torch.float64)


def test_aligned_copies_only_what_lies_otherwise():
    x = arrange(torch.rand(4, 2, 3, 5, 6), "channels_last")
    layout = seen(x, 0, 2)
    frame = torch.rand(2, 3, 5, 6)
    as_x = frame.to(memory_format=torch.channels_last)
    assert layout.aligned(as_x, 0) is as_x
    aligned = layout.aligned(frame, 0)
    assert aligned.stride() == as_x.stride()
    assert torch.equal(aligned, frame)
    assert layout.aligned(None, 0) is None


def test_repeated_frame():
    layout = layout_of(torch.rand(1, 2, 3, 5), time_dim=0, time_steps=4, channel_dim=2)
    assert layout.repeated
    assert layout.steps == 4
    assert layout.sizes == (4, 2, 3, 5)
