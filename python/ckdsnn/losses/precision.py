"""In which precision losses are computed: float32 at least, whatever autocast would make of them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """``x`` in float32 (float64 stays): losses are never computed in a 2-byte type."""
    return x if x.dtype == torch.float64 else x.float()


def outside_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on the device of ``x``, whose matrix products and convolutions would round to 2 bytes.

    Example:
        >>> import torch
        >>> from ckdsnn.losses.precision import outside_autocast
        >>> with torch.autocast("cpu"), outside_autocast(torch.zeros(1)):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    if not torch.amp.is_autocast_available(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def mean_over_time(features: Tensor) -> Tensor:
    """The mean over dimension 0, accumulated and returned in float32 (float64 for float64)."""
    return features.mean(0, dtype=torch.promote_types(features.dtype, torch.float32))
