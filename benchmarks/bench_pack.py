"""Spikes as bits, and back, against a copy of their bytes."""

from __future__ import annotations

import pytest
import torch
from racing import DEVICES, OURS, copies

SHAPES = [(4, 32, 128, 32, 32), (4, 64, 512, 8, 8)]


def cases():
    for device in DEVICES:
        for shape in SHAPES:
            for dtype in (torch.float32, torch.bfloat16):
                for work in ("pack", "unpack"):
                    for contestant in ("floor", *OURS[device]):
                        yield device, shape, dtype, work, contestant


@pytest.mark.parametrize(("device", "shape", "dtype", "work", "contestant"), list(cases()), ids=str)
def test_bits(device, shape, dtype, work, contestant, enter):
    torch.manual_seed(0)
    spikes = (torch.rand(shape) < 0.2).to(device=device, dtype=dtype).flatten()
    bits = torch.ops.ckd_kernels.pack_bits(spikes, "auto")
    moved = spikes.nbytes + bits.nbytes

    def build(name):
        if name == "floor":
            half = torch.ones(moved // 2, dtype=torch.uint8, device=device)
            return copies([(half, torch.empty_like(half))])
        backend = name.removeprefix("ours-")
        if work == "pack":
            return lambda: torch.ops.ckd_kernels.pack_bits(spikes, backend)
        return lambda: torch.ops.ckd_kernels.unpack_bits(bits, spikes.numel(), dtype, backend)

    enter(build, elements=spikes.numel(), floor_bytes=moved)
