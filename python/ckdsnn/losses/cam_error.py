"""Saliency maps with an error of a chosen size: how much do they have to be right for SAMD to help?"""

from __future__ import annotations

import torch
from torch import Tensor

from .scaling import minmax

ERRORS = ("shift", "other", "noise")


def wrong_maps(maps: Tensor, kind: str, generator: torch.Generator | None = None) -> Tensor:
    """Maps [B, H, W] that look in the wrong place, each with the minimum and maximum of the right one.

    ============ =====================================================================================================
    kind         in place of a map
    ============ =====================================================================================================
    ``shift``    itself, moved by half of its height and width round its edges: wrong in the same way in every epoch
    ``other``    that of another sample of the batch, the next but some number that is drawn for the batch; in a batch
                 of one sample its own
    ``noise``    independent uniform numbers
    ============ =====================================================================================================

    Args:
        maps: [B, H, W].
        kind: see above.
        generator: on the maps' device, of what is drawn; ``shift`` draws nothing.

    Example:
        >>> import torch
        >>> from ckdsnn.losses.cam_error import wrong_maps
        >>> wrong_maps(torch.tensor([[[0.0, 1.0, 2.0, 4.0]]]), "shift")
        tensor([[[2., 4., 0., 1.]]])
    """
    count, height, width = maps.shape
    if kind == "shift":
        return maps.roll((height // 2, width // 2), (1, 2))
    if kind == "other":
        draw = torch.rand((), generator=generator, device=maps.device)
        # In [1, count - 1]; float32 may round the product up to count - 1.
        step = 1 + (draw * (count - 1)).long().clamp(max=max(count - 2, 0))
        wrong = maps.index_select(0, (torch.arange(count, device=maps.device) + step) % count)
    else:
        wrong = torch.rand(maps.shape, generator=generator, device=maps.device, dtype=maps.dtype)
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return low + (high - low) * minmax(wrong)[0]


def with_error(maps: Tensor, share: float, kind: str, generator: torch.Generator | None = None) -> Tensor:
    """``(1 - share) * maps + share * wrong_maps(maps)``: right at 0, only wrong at 1; see :func:`wrong_maps`.

    Example:
        >>> import torch
        >>> from ckdsnn.losses.cam_error import with_error
        >>> with_error(torch.tensor([[[0.0, 1.0, 2.0, 4.0]]]), 0.25, "shift")
        tensor([[[0.5000, 1.7500, 1.5000, 3.2500]]])
    """
    return maps if share == 0 else torch.lerp(maps, wrong_maps(maps, kind, generator), share)
