"""Spikes as bits, in Triton: a program owns ``BYTES`` bytes and the eight values of each."""

# mypy: allow-untyped-defs, no-check-untyped-defs

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import OPTIONS

_BYTES = 512


@triton.jit
def _pack_some(spikes_ptr, bits_ptr, byte, count):
    value = byte[:, None] * 8 + tl.arange(0, 8)[None, :]
    spikes = tl.load(spikes_ptr + value, mask=value < count, other=0.0).to(tl.float32)
    bits = tl.sum((spikes != 0).to(tl.int32) << tl.arange(0, 8)[None, :], axis=1)
    tl.store(bits_ptr + byte, bits.to(tl.uint8), mask=byte * 8 < count)


@triton.jit
def _unpack_some(bits_ptr, spikes_ptr, byte, count):
    value = byte[:, None] * 8 + tl.arange(0, 8)[None, :]
    bits = tl.load(bits_ptr + byte, mask=byte * 8 < count, other=0).to(tl.int32)[:, None]
    spikes = ((bits >> tl.arange(0, 8)[None, :]) & 1).to(tl.float32)
    tl.store(spikes_ptr + value, spikes.to(spikes_ptr.dtype.element_ty), mask=value < count)


# Whether values exist is decided for sixteen at once, so that accesses can be wide; the first program has the rest.


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["bits_ptr"])
def _pack(spikes_ptr, bits_ptr, count: tl.int64, BYTES: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BYTES
    _pack_some(spikes_ptr, bits_ptr, first + tl.arange(0, BYTES), count // 16 * 16)
    if first == 0:
        _pack_some(spikes_ptr, bits_ptr, count // 16 * 2 + tl.arange(0, 2), count)


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["bits_ptr"])
def _unpack(bits_ptr, spikes_ptr, count: tl.int64, BYTES: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BYTES
    _unpack_some(bits_ptr, spikes_ptr, first + tl.arange(0, BYTES), count // 16 * 16)
    if first == 0:
        _unpack_some(bits_ptr, spikes_ptr, count // 16 * 2 + tl.arange(0, 2), count)


def pack_bits(spikes: Tensor, bits: Tensor) -> None:
    """One bit a value, set where it is not zero."""
    with torch.cuda.device_of(spikes):
        _pack[(triton.cdiv(bits.numel(), _BYTES),)](spikes, bits, spikes.numel(), BYTES=_BYTES, **OPTIONS)


def unpack_bits(bits: Tensor, spikes: Tensor) -> None:
    """0 or 1 for each bit."""
    count = spikes.numel()
    with torch.cuda.device_of(spikes):
        _unpack[(triton.cdiv(count, 8 * _BYTES),)](bits, spikes, count, BYTES=_BYTES, **OPTIONS)
