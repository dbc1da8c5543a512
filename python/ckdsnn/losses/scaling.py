"""Maps brought to a common scale, with slopes that have a bound.

Maps are [N, H, W] in float32 or float64.  Their resolution, a tensor [] or [N, 1, 1], is the smallest difference that
they can show; each function returns the scaled maps and the resolution that they have now.  Without one, a constant map
becomes zeros with gradient 0; with one, no map is stretched further than one that shows a single such difference.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-18  # the square of anything smaller leaves the range of float32

Scaled = tuple[Tensor, "Tensor | None"]


def divide(
    by: Tensor, shifted: Tensor, maps: Tensor, resolution: Tensor | None, floor: Tensor | None, margin: float = 0.0
) -> Scaled:
    """``shifted / (by + margin)``, with the slope bounded where a map is constant, or nearly so.

    Args:
        by: the spread of a map: range, deviation or length.
        shifted: the maps less their minimum or mean.
        maps: before they were shifted.
        resolution: of the maps.
        floor: the spread of a map that differs by the resolution in one place; the least to divide by.
    """
    if resolution is None or floor is None:
        # Values that differ by no more than their own rounding: divided by infinity, so that the gradient is 0 too.
        magnitude = maps.detach().abs()
        largest = magnitude.amax((1, 2), keepdim=True) if by.dim() else magnitude.amax()
        rounding = (8 * torch.finfo(maps.dtype).eps * largest).clamp(min=2 * _TINY)
        return shifted / (by.masked_fill(by.detach() <= rounding, torch.inf) + margin), None
    by = by.clamp(min=floor)
    by = by.masked_fill(by.detach() <= 2 * _TINY, torch.inf) + margin
    return shifted / by, (resolution / by).detach()


def _root(squared: Tensor) -> Tensor:
    """The square root, with slope 0 at 0: a map without a spike gets there."""
    return squared.clamp(min=_TINY**2).sqrt()


def minmax(maps: Tensor, resolution: Tensor | None = None) -> Scaled:
    """Each map to [0, 1]."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return divide(high - low, maps - low, maps, resolution, resolution)


def minmax_batch(maps: Tensor, resolution: Tensor | None = None) -> Scaled:
    """The whole batch to [0, 1), with 1e-3 in the denominator."""
    low, high = maps.amin(), maps.amax()
    return divide(high - low, maps - low, maps, resolution, resolution, margin=1e-3)


def zscore(maps: Tensor, resolution: Tensor | None = None) -> Scaled:
    """Each map to mean 0 and standard deviation 1."""
    centred = maps - maps.mean((1, 2), keepdim=True)
    deviation = _root(centred.pow(2).mean((1, 2), keepdim=True))
    floor = None if resolution is None else resolution / (maps.shape[1] * maps.shape[2]) ** 0.5
    return divide(deviation, centred, maps, resolution, floor)


def unit_length(maps: Tensor, resolution: Tensor | None = None) -> Scaled:
    """Each map to Euclidean length 1."""
    return divide(_root(maps.pow(2).sum((1, 2), keepdim=True)), maps, maps, resolution, resolution)
