"""Spikes as bits, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)


def pack_bits(spikes: Tensor, bits: Tensor) -> None:
    flags = torch.zeros((bits.numel(), 8), dtype=torch.uint8, device=spikes.device)
    flags.view(-1)[: spikes.numel()] = spikes.reshape(-1) != 0
    torch.sum(flags << _places(spikes.device), 1, dtype=torch.uint8, out=bits)


def unpack_bits(bits: Tensor, spikes: Tensor) -> None:
    flags = (bits.reshape(-1, 1) >> _places(bits.device)) & 1
    spikes.copy_(flags.view(-1)[: spikes.numel()])
