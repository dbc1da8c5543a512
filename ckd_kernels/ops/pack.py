"""Spikes as bits: the ops that pack a row of spikes and unpack it; `memory` says which spikes.

Bit ``i % 8`` of byte ``i // 8`` is whether value ``i`` is not zero; unused bits of the last byte are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import resolve
from .library import LIBRARY, TAGS, register

LIBRARY.define("pack_bits(Tensor spikes, str backend) -> Tensor", tags=TAGS)
LIBRARY.define(
    "unpack_bits(Tensor bits, SymInt count, ScalarType dtype, str backend) -> Tensor",
    tags=TAGS,
)


def _empty_bits(spikes: Tensor) -> Tensor:
    if not spikes.is_contiguous():
        raise RuntimeError(f"pack_bits takes contiguous spikes, got strides {spikes.stride()} of {tuple(spikes.shape)}")
    return spikes.new_empty((spikes.numel() + 7) // 8, dtype=torch.uint8)


def _empty_spikes(bits: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    if bits.dtype != torch.uint8 or not bits.is_contiguous() or bits.numel() * 8 < count:
        raise RuntimeError(
            f"unpack_bits takes {(count + 7) // 8} contiguous bytes, got {tuple(bits.shape)} of {bits.dtype}"
        )
    return bits.new_empty(count, dtype=dtype)


def _pack_bits(spikes: Tensor, backend: str) -> Tensor:
    bits = _empty_bits(spikes)
    if spikes.numel() > 0:
        resolve(backend, "pack_bits", spikes.device, spikes.dtype).pack_bits(spikes, bits)
    return bits


def _pack_bits_fake(spikes: Tensor, backend: str) -> Tensor:
    return _empty_bits(spikes)


def _unpack_bits(bits: Tensor, count: int, dtype: torch.dtype, backend: str) -> Tensor:
    spikes = _empty_spikes(bits, count, dtype)
    if count > 0:
        resolve(backend, "unpack_bits", bits.device, dtype).unpack_bits(bits, spikes)
    return spikes


def _unpack_bits_fake(bits: Tensor, count: int, dtype: torch.dtype, backend: str) -> Tensor:
    return _empty_spikes(bits, count, dtype)


register("pack_bits", _pack_bits, _pack_bits_fake)
register("unpack_bits", _unpack_bits, _unpack_bits_fake)
