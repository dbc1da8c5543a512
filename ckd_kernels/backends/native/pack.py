"""Spikes as bits, on the compiled kernels."""

from __future__ import annotations

from torch import Tensor

from .module import address, compiled, storage
from .run import run


def pack_bits(spikes: Tensor, bits: Tensor) -> None:
    call = compiled().PackBits(storage(spikes), spikes.numel(), address(spikes), address(bits))  # type: ignore[union-attr]
    run(call, spikes)


def unpack_bits(bits: Tensor, spikes: Tensor) -> None:
    call = compiled().UnpackBits(storage(spikes), spikes.numel(), address(bits), address(spikes))  # type: ignore[union-attr]
    run(call, spikes)
