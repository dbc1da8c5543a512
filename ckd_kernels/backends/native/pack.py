"""Spikes as bits, on the compiled kernels."""

from __future__ import annotations

from torch import Tensor

from .module import address, compiled, run, storage


def pack_bits(spikes: Tensor, bits: Tensor) -> None:
    run(compiled().PackBits(storage(spikes.dtype), spikes.numel(), address(spikes), address(bits)), spikes.device)


def unpack_bits(bits: Tensor, spikes: Tensor) -> None:
    run(compiled().UnpackBits(storage(spikes.dtype), spikes.numel(), address(bits), address(spikes)), spikes.device)
