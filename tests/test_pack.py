"""Spikes as bits: the same layout and the same values on every backend."""

from __future__ import annotations

import pytest
import torch

from ckd_kernels import use_backend
from tolerances import assert_same

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Around bytes, CUDA's and Triton's vectors and blocks, the CPU's tiles; more than one thread's share.
COUNTS = [0, 1, 7, 8, 9, 31, 32, 33, 1000, 2047, 2048, 2049, 4096, 8191, 8192, 8193, 40_001, 300_007]


def some_spikes(count, dtype, seed=0):
    return (torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.3).to(dtype)


def expected_bits(spikes):
    """Bit i % 8 of byte i // 8, one Python integer at a time."""
    values = (spikes.double() != 0).tolist()
    return [sum(bit << place for place, bit in enumerate(values[at : at + 8])) for at in range(0, len(values), 8)]


def pack(target, spikes):
    return torch.ops.ckd_kernels.pack_bits(spikes.to(target.device), target.backend)


def unpack(target, bits, count, dtype):
    return torch.ops.ckd_kernels.unpack_bits(bits.to(target.device), count, dtype, target.backend)


def skip_float64(target, dtype):
    if dtype == torch.float64 and target.backend in ("cuda", "triton"):
        pytest.skip("GPU kernels have no float64")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", COUNTS)
def test_there_and_back(target, count, dtype):
    skip_float64(target, dtype)
    spikes = some_spikes(count, dtype)
    bits = pack(target, spikes)
    assert bits.dtype == torch.uint8
    assert bits.cpu().tolist() == expected_bits(spikes)
    assert_same("spikes", unpack(target, bits, count, dtype).cpu(), spikes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_anything_but_zero_is_one(target, dtype):
    skip_float64(target, dtype)
    tiny = torch.finfo(dtype).tiny
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, float("nan"), float("inf"), tiny, -tiny, 0.25], dtype=dtype)
    bits = pack(target, values.repeat(1000))
    assert bits[:5].tolist() == [0b11111100, 0b11110011, 0b11001111, 0b00111111, 0b11111111]
    assert bits.cpu().tolist() == expected_bits(values.repeat(1000))


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("offset", [1, 3, 8])
def test_from_the_middle_of_a_tensor(target, offset, dtype):
    """Addresses that allow no wide access, and bits from a byte on that is not the first."""
    spikes = some_spikes(20_000, dtype).to(target.device)
    bits = pack(target, spikes[offset:])
    assert bits.cpu().tolist() == expected_bits(spikes[offset:])
    later = unpack(target, bits[1:], spikes.numel() - offset - 8, dtype)
    assert_same("spikes", later, spikes[offset + 8 :])


def test_same_bits_with_any_number_of_threads(target):
    spikes = some_spikes(1_000_003, torch.bfloat16)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            bits = pack(target, spikes)
            found.append((bits.cpu(), unpack(target, bits, spikes.numel(), spikes.dtype).cpu()))
    finally:
        torch.set_num_threads(before)
    for bits, unpacked in found:
        assert_same("bits", bits, found[0][0])
        assert_same("spikes", unpacked, spikes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(target, dtype):
    skip_float64(target, dtype)
    spikes = some_spikes(77, dtype).to(target.device)
    torch.library.opcheck(torch.ops.ckd_kernels.pack_bits.default, (spikes, target.backend))
    bits = pack(target, spikes)
    torch.library.opcheck(torch.ops.ckd_kernels.unpack_bits.default, (bits, 77, dtype, target.backend))


def test_what_the_ops_refuse(no_launch):
    with pytest.raises(RuntimeError, match=r"pack_bits takes contiguous spikes, got strides \(1, 4\)"):
        torch.ops.ckd_kernels.pack_bits(torch.ones(4, 4).t(), "auto")
    with pytest.raises(RuntimeError, match=r"unpack_bits takes 3 contiguous bytes, got \(2,\) of torch.uint8"):
        torch.ops.ckd_kernels.unpack_bits(torch.zeros(2, dtype=torch.uint8), 17, torch.float32, "auto")
    with pytest.raises(RuntimeError, match=r"unpack_bits takes 2 contiguous bytes, got \(2,\) of torch.int32"):
        torch.ops.ckd_kernels.unpack_bits(torch.zeros(2, dtype=torch.int32), 16, torch.float32, "auto")


def test_backend_is_the_one_asked_for():
    with use_backend("triton"), pytest.raises(RuntimeError, match="backend 'triton' cannot run pack_bits on cpu"):
        torch.ops.ckd_kernels.pack_bits(torch.ones(3), "triton")
