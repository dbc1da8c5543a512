"""Parts of the training samples: those held out for validation, and smaller training sets."""

from __future__ import annotations

import torch
from torch import Tensor

from ckdsnn.data.arguments import whole_number

SPLIT_SEED = 0  # fixed: which samples train and which validate must not change with a run's seed
LOWER = "lower validation (data.validation); 0 holds out none"


def balanced_subset(targets: Tensor, count: int, num_classes: int) -> Tensor:
    """Indices of `count` samples, ascending, drawn at random but always the same ones.

    Every class gives the same share of its samples, rounded so that the shares add up.

    Args:
        targets: int64 [N].
        count: samples to draw, in [0, N].
        num_classes: number of classes.

    Raises:
        TypeError, ValueError: count is no integer, or out of range.

    Example:
        >>> balanced_subset(torch.tensor([0, 1, 0, 1, 0, 1]), 4, num_classes=2).shape
        torch.Size([4])
    """
    if whole_number("count", count, 0) > len(targets):
        raise ValueError(f"count must be up to {len(targets)}, the number of samples, got {count}")
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(SPLIT_SEED))
    by_class = [order[targets[order] == c] for c in range(num_classes)]
    sizes = [len(rows) * count // len(targets) for rows in by_class]
    for c in sorted(range(num_classes), key=lambda c: sizes[c] - len(by_class[c]) * count / len(targets)):
        if sum(sizes) == count:
            break
        sizes[c] += 1
    return torch.cat([rows[:size] for rows, size in zip(by_class, sizes, strict=True)]).sort().values


def split_off(targets: Tensor, count: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Indices to train on and `count` indices to validate on, both ascending; see `balanced_subset`.

    Args:
        targets: int64 [N].
        count: samples to hold out.
        num_classes: number of classes.

    Raises:
        TypeError, ValueError: count is no integer >= 0, or there are fewer samples, or a class would have none left to
            train on.

    Example:
        >>> kept, held_out = split_off(torch.tensor([0, 1, 0, 1, 0, 1]), 2, num_classes=2)
        >>> len(kept), len(held_out)
        (4, 2)
    """
    if whole_number("validation", count, 0) >= len(targets):
        raise ValueError(f"validation {count} leaves nothing of {len(targets)} training samples: {LOWER}")
    held_out = balanced_subset(targets, count, num_classes)
    kept = torch.ones(len(targets), dtype=torch.bool)
    kept[held_out] = False
    left = torch.bincount(targets[kept], minlength=num_classes)
    for c, before in enumerate(torch.bincount(targets, minlength=num_classes).tolist()):
        if before and not left[c]:
            raise ValueError(f"validation {count} leaves no sample of class {c} to train on: {LOWER}")
    return kept.nonzero().flatten(), held_out
