"""AutoAugment (Cubuk et al., arXiv 1805.09501) of whole batches: every sample draws a sub-policy of its own.

Operations equal Pillow's; the policies, and what a magnitude means, are the paper's as torchvision's `AutoAugment` has
them for Pillow's images: magnitudes in ten bins, nearest neighbour, black outside.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ckdsnn.data import operations
from ckdsnn.data.draws import Draw, Draws

# A sub-policy a line: operation, probability and magnitude (0 to 9; 0 for what has none), twice, one after the other.
_POLICIES = {
    "cifar10": """
        Invert 0.1 0        Contrast 0.2 6
        Rotate 0.7 2        TranslateX 0.3 9
        Sharpness 0.8 1     Sharpness 0.9 3
        ShearY 0.5 8        TranslateY 0.7 9
        AutoContrast 0.5 0  Equalize 0.9 0
        ShearY 0.2 7        Posterize 0.3 7
        Color 0.4 3         Brightness 0.6 7
        Sharpness 0.3 9     Brightness 0.7 9
        Equalize 0.6 0      Equalize 0.5 0
        Contrast 0.6 7      Sharpness 0.6 5
        Color 0.7 7         TranslateX 0.5 8
        Equalize 0.3 0      AutoContrast 0.4 0
        TranslateY 0.4 3    Sharpness 0.2 6
        Brightness 0.9 6    Color 0.2 8
        Solarize 0.5 2      Invert 0.0 0
        Equalize 0.2 0      AutoContrast 0.6 0
        Equalize 0.2 0      Equalize 0.6 0
        Color 0.9 9         Equalize 0.6 0
        AutoContrast 0.8 0  Solarize 0.2 8
        Brightness 0.1 3    Color 0.7 0
        Solarize 0.4 5      AutoContrast 0.9 0
        TranslateY 0.9 9    TranslateY 0.7 9
        AutoContrast 0.9 0  Solarize 0.8 3
        Equalize 0.8 0      Invert 0.1 0
        TranslateY 0.7 9    AutoContrast 0.9 0
    """,
    "imagenet": """
        Posterize 0.4 8     Rotate 0.6 9
        Solarize 0.6 5      AutoContrast 0.6 0
        Equalize 0.8 0      Equalize 0.6 0
        Posterize 0.6 7     Posterize 0.6 6
        Equalize 0.4 0      Solarize 0.2 4
        Equalize 0.4 0      Rotate 0.8 8
        Solarize 0.6 3      Equalize 0.6 0
        Posterize 0.8 5     Equalize 1.0 0
        Rotate 0.2 3        Solarize 0.6 8
        Equalize 0.6 0      Posterize 0.4 6
        Rotate 0.8 8        Color 0.4 0
        Rotate 0.4 9        Equalize 0.6 0
        Equalize 0.0 0      Equalize 0.8 0
        Invert 0.6 0        Equalize 1.0 0
        Color 0.6 4         Contrast 1.0 8
        Rotate 0.8 8        Color 1.0 2
        Color 0.8 8         Solarize 0.8 7
        Sharpness 0.4 7     Invert 0.6 0
        ShearX 0.6 5        Equalize 1.0 0
        Color 0.4 0         Equalize 0.6 0
        Equalize 0.4 0      Solarize 0.2 4
        Solarize 0.6 5      AutoContrast 0.6 0
        Invert 0.6 0        Equalize 1.0 0
        Color 0.6 4         Contrast 1.0 8
        Equalize 0.8 0      Equalize 0.6 0
    """,
    "svhn": """
        ShearX 0.9 4        Invert 0.2 0
        ShearY 0.9 8        Invert 0.7 0
        Equalize 0.6 0      Solarize 0.6 6
        Invert 0.9 0        Equalize 0.6 0
        Equalize 0.6 0      Rotate 0.9 3
        ShearX 0.9 4        AutoContrast 0.8 0
        ShearY 0.9 8        Invert 0.4 0
        ShearY 0.9 5        Solarize 0.2 6
        Invert 0.9 0        AutoContrast 0.8 0
        Equalize 0.6 0      Rotate 0.9 3
        ShearX 0.9 4        Solarize 0.3 3
        ShearY 0.8 8        Invert 0.7 0
        Equalize 0.9 0      TranslateY 0.6 6
        Invert 0.9 0        Equalize 0.6 0
        Contrast 0.3 3      Rotate 0.8 4
        Invert 0.8 0        TranslateY 0.0 2
        ShearY 0.7 6        Solarize 0.4 8
        Invert 0.6 0        Rotate 0.8 4
        ShearY 0.3 7        TranslateX 0.9 3
        ShearX 0.1 6        Invert 0.6 0
        Solarize 0.7 2      TranslateY 0.6 7
        ShearY 0.8 4        Invert 0.8 0
        ShearX 0.7 9        TranslateY 0.8 3
        ShearY 0.8 5        AutoContrast 0.7 0
        ShearX 0.7 2        Invert 0.1 0
    """,
}
POLICIES = tuple(_POLICIES)


class Step(NamedTuple):
    """Half of a sub-policy: the operation, with which probability it is applied, and its magnitude's bin, 0 to 9."""

    name: str
    probability: float
    magnitude: int


def sub_policies(policy: str) -> list[tuple[Step, Step]]:
    """The sub-policies of one of `POLICIES`."""
    found = []
    for line in _POLICIES[policy].strip().splitlines():
        first, p, m, second, q, n = line.split()
        found.append((Step(first, float(p), int(m)), Step(second, float(q), int(n))))
    return found


def level(magnitude: int, first: float, last: float) -> float:
    """The value in a magnitude's bin; in float32, which decides about some pixels, as torchvision has it."""
    return torch.linspace(first, last, 10).tolist()[magnitude]


def matrix(name: str, magnitude: int, sign: int, width: int, height: int) -> list[int] | None:
    """The map of a geometric operation, in `operations.fixed_point`; None for the other operations.

    Shears reach 0.3, translations 150 / 331 of the image in whole pixels, rotations 30 degrees.
    """
    if name == "ShearX":
        return operations.fixed_point(1, sign * level(magnitude, 0, 0.3), 0, 0, 1, 0)
    if name == "ShearY":
        return operations.fixed_point(1, 0, 0, sign * level(magnitude, 0, 0.3), 1, 0)
    if name == "TranslateX":
        return operations.fixed_point(1, 0, -sign * int(level(magnitude, 0, 150 / 331 * width)), 0, 1, 0)
    if name == "TranslateY":
        return operations.fixed_point(1, 0, 0, 0, 1, -sign * int(level(magnitude, 0, 150 / 331 * height)))
    if name == "Rotate":
        return operations.rotation(sign * level(magnitude, 0, 30), width, height)
    return None


def amount(name: str, magnitude: int, sign: int) -> float:
    """What the operations that change colours take: bits, threshold, or the factor of an enhancement."""
    if name == "Posterize":
        return 8 - round(4 * magnitude / 9)
    if name == "Solarize":
        return level(magnitude, 255, 0)
    return 1 + sign * level(magnitude, 0, 0.9)


# Operation, and which of the tables below it reads. The geometric ones differ by their matrices alone.
_OPERATIONS: dict[str, tuple[Callable[..., Tensor], str | None]] = {
    "Affine": (operations.affine, "matrices"),
    "Brightness": (operations.brightness, "amounts"),
    "Color": (operations.color, "amounts"),
    "Contrast": (operations.contrast, "amounts"),
    "Sharpness": (operations.sharpness, "amounts"),
    "Posterize": (operations.posterize, "amounts"),
    "Solarize": (operations.solarize, "amounts"),
    "AutoContrast": (operations.autocontrast, None),
    "Equalize": (operations.equalize, None),
    "Invert": (operations.invert, None),
}
_NUMBERS = {name: number for number, name in enumerate(_OPERATIONS)}


class _Tables(NamedTuple):
    """One step of all P sub-policies.

    Attributes:
        numbers: int64 [P], of the operations.
        probabilities: float32 [P].
        matrices, amounts: the operations' parameters by sub-policy and sign (0: negative), int32 [P, 2, 6] and float32
            [P, 2].
        used: names of the operations in it.
    """

    numbers: Tensor
    probabilities: Tensor
    matrices: Tensor
    amounts: Tensor
    used: tuple[str, ...]


@lru_cache(maxsize=64)
def _tables(policy: str, step: int, width: int, height: int, device: torch.device) -> _Tables:
    steps = [sub_policy[step] for sub_policy in sub_policies(policy)]
    maps = [[matrix(s.name, s.magnitude, sign, width, height) for sign in (-1, 1)] for s in steps]
    names = ["Affine" if both[0] else s.name for s, both in zip(steps, maps, strict=True)]
    nowhere = [0] * 6

    def placed(values: list, dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)  # without waiting for the device

    return _Tables(
        placed([_NUMBERS[name] for name in names], torch.int64),
        placed([s.probability for s in steps], torch.float32),
        placed([[found or nowhere for found in both] for both in maps], torch.int32),
        placed([[amount(s.name, s.magnitude, sign) for sign in (-1, 1)] for s in steps], torch.float32),
        tuple(name for name in _OPERATIONS if name in names),
    )


def auto_augment(images: Tensor, draws: Draws, policy: str, *, pick: bool) -> Tensor:
    """Images uint8 [B, C, H, W] with 1 or 3 channels, each through the sub-policy that it draws.

    Args:
        images: stay as they are.
        draws: of the B samples.
        policy: one of `POLICIES`.
        pick: work on the samples alone that an operation is for, which takes finding them, and on a GPU that means
            waiting; otherwise every operation works on all of them and the results that are wanted are kept. The
            images are the same.
    """
    images = images.clone() if pick else images
    chosen = draws.below(Draw.SUB_POLICY, len(sub_policies(policy)))
    for step in range(2):
        tables = _tables(policy, step, images.shape[-1], images.shape[-2], images.device)
        applied = draws.uniform(Draw.FIRST_APPLIED + step) < tables.probabilities[chosen]
        number = torch.where(applied, tables.numbers[chosen], -1)
        sign = draws.below(Draw.FIRST_SIGN + step, 2)
        parameters = {"matrices": tables.matrices[chosen, sign], "amounts": tables.amounts[chosen, sign]}
        for name in tables.used:
            operation, table = _OPERATIONS[name]
            taken = [parameters[table]] if table else []
            wanted = number == _NUMBERS[name]
            if pick:
                rows = wanted.nonzero().flatten()
                images.index_copy_(0, rows, operation(images[rows], *(values[rows] for values in taken)))
            else:
                images = torch.where(wanted[:, None, None, None], operation(images, *taken), images)
    return images
