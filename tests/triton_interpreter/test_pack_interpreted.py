"""Spikes as bits in Triton, against the reference backend, between canaries."""

from __future__ import annotations

import pytest
import torch

from ckd_kernels.backends import reference
from ckd_kernels.backends import triton as backend

CANARY = 77


def guarded(count: int, dtype: torch.dtype, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
    buffer = torch.full((count + 64,), CANARY, dtype=dtype)
    return buffer, buffer[offset : offset + count]


@pytest.mark.parametrize("offset", [16, 3], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("count", [1, 7, 8, 15, 16, 17, 31, 32, 4095, 4096, 4097, 9000])
def test_bits_and_spikes_are_those_of_the_reference(count: int, dtype: torch.dtype, offset: int) -> None:
    generator = torch.Generator().manual_seed(count)
    some = torch.tensor([0.0, 0.0, -0.0, 1.0, 1.0, 1.0, -2.0, float("nan"), float("inf"), 6e-8]).to(dtype)
    _, values = guarded(count, dtype, offset)
    values.copy_(some[torch.randint(len(some), (count,), generator=generator)])
    expected = torch.empty((count + 7) // 8, dtype=torch.uint8)
    reference.pack_bits(values, expected)
    around_bits, bits = guarded(len(expected), torch.uint8, offset)
    backend.pack_bits(values, bits)
    around_spikes, spikes = guarded(count, dtype, offset)
    backend.unpack_bits(bits, spikes)
    assert torch.equal(bits, expected)
    assert torch.equal(spikes, (values != 0).to(dtype))
    for buffer, inside in ((around_bits, bits), (around_spikes, spikes)):
        assert (buffer[:offset] == CANARY).all()
        assert (buffer[offset + len(inside) :] == CANARY).all()
