"""Pure PyTorch, step by step: the executable specification of every op, on any device."""

from __future__ import annotations

import torch

from .lif import lif_backward, lif_forward
from .sam import sam

__all__ = ["lif_backward", "lif_forward", "sam", "unavailable"]


def unavailable(name: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Why this backend cannot run; the reference always can."""
    return None
