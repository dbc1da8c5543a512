"""How well two saliency maps agree, and whether one finds what it should find."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ckdsnn.losses import normalise_map

TOP = 0.2  # the share of positions that makes up the top region of a map


def map_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """``KL(p_teacher || p_student)`` of each pair of maps [B, H, W], in nats: [B].

    As SAMD compares maps: each is scaled to [0, 1], and a softmax over positions makes it a distribution, which is
    nowhere zero.

    Example:
        >>> maps = torch.tensor([[[0.0, 3.0]]])
        >>> map_divergence(maps, 7 * maps + 1), map_divergence(maps, maps.flip(2)).round(decimals=4)
        (tensor([0.]), tensor([0.4621]))
    """
    p, q = (normalise_map(maps, "minmax").flatten(1).log_softmax(1) for maps in (teacher, student))
    return F.kl_div(q, p, reduction="none", log_target=True).sum(1)


def map_cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of the angle between each pair of maps [B, H, W]: [B], 0 where one is zero.

    Example:
        >>> map_cosine(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[4.0, 3.0]]]))
        tensor([0.9600])
    """
    return F.cosine_similarity(first.flatten(1).float(), second.flatten(1).float(), dim=1)


def top_region(maps: Tensor, count: int) -> Tensor:
    """The `count` highest positions of maps [B, H, W], bool [B, H, W]; of equal ones the first.

    Positions at a map's minimum are in no region, so that of a constant map is empty.

    Example:
        >>> top_region(torch.tensor([[[0.1, 0.9], [0.5, 0.2]]]), 2)
        tensor([[[False,  True],
                 [ True, False]]])
    """
    flat = maps.flatten(1)
    highest = flat.sort(dim=1, descending=True, stable=True).indices[:, :count]
    region = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, highest, True)
    return (region & (flat > flat.amin(1, keepdim=True))).view_as(maps)


def intersection_over_union(first: Tensor, second: Tensor) -> Tensor:
    """Of each pair of regions, bool [B, H, W]: [B], 0 where both are empty.

    Example:
        >>> a, b = torch.tensor([[[True, True, False]]]), torch.tensor([[[False, True, True]]])
        >>> intersection_over_union(a, b)
        tensor([0.3333])
    """
    both, either = (first & second).flatten(1).sum(1), (first | second).flatten(1).sum(1)
    return both / either.clamp_min(1)


def box_region(corners: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """Squares in images of `size` (H, W) as regions, bool [B, H, W].

    Args:
        corners: int64 [B, 2], row and column of the upper left corners.
        side: of the squares.

    Example:
        >>> box_region(torch.tensor([[0, 1]]), 1, (1, 3))
        tensor([[[False,  True, False]]])
    """
    rows, columns = (
        (torch.arange(length) >= start) & (torch.arange(length) < start + side)
        for length, start in zip(size, corners.cpu().T[:, :, None], strict=True)
    )
    return rows[:, :, None] & columns[:, None, :]


def points_into(maps: Tensor, region: Tensor) -> Tensor:
    """The pointing game (Zhang et al., ECCV 2016): whether the maximum of each map lies in its region, bool [B].

    A constant map points nowhere. Maps of another size are resized to the region's.

    Args:
        maps: [B, h, w].
        region: bool [B, H, W].

    Example:
        >>> points_into(torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[False, True]]]))
        tensor([True])
    """
    return (top_region(enlarged(maps, region.shape[1:]), 1) & region).flatten(1).any(1)


def enlarged(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Maps [B, h, w] as they are laid over images of `size` (H, W): bilinear, [B, H, W]."""
    if maps.shape[1:] == torch.Size(size):
        return maps
    return F.interpolate(maps[:, None].float(), size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def entropy(log_probabilities: Tensor) -> Tensor:
    """Of distributions over dimension 1, in nats: [B].

    Example:
        >>> entropy(torch.full((1, 4), 0.25).log())
        tensor([1.3863])
    """
    return -(log_probabilities.exp() * log_probabilities).nan_to_num(0.0).sum(1)
