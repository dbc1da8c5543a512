"""Pure PyTorch, step by step: the executable specification of every op, on any device."""

from __future__ import annotations

import torch

from .batch_norm import bn_coefficients, bn_fold, bn_statistics
from .lif import lif_backward, lif_forward
from .pack import pack_bits, unpack_bits
from .sam import sam

__all__ = [
    "bn_coefficients",
    "bn_fold",
    "bn_statistics",
    "lif_backward",
    "lif_forward",
    "pack_bits",
    "sam",
    "unavailable",
    "unpack_bits",
]


def unavailable(name: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Why this backend cannot run; the reference always can."""
    return None
