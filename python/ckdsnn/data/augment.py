"""Augmentation of whole batches; every sample draws its own parameters, all of them from one generator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def random_shift(images: Tensor, generator: torch.Generator, padding: int) -> Tensor:
    """Zero-pads [..., B, C, H, W] by `padding` pixels and crops each sample back to H x W at a random place."""
    *_, batch, _, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    y, x = (torch.randint(0, 2 * padding + 1, (batch,), generator=generator) for _ in range(2))
    rows = (y[:, None] + torch.arange(height)).to(images.device)  # [B, H]
    columns = (x[:, None] + torch.arange(width)).to(images.device)  # [B, W]
    sample = torch.arange(batch, device=images.device)
    if images.ndim == 5:
        # Advanced indices around the channel slice put B, H, W first: [B, H, W, T, C].
        return padded[:, sample[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(3, 0, 4, 1, 2)
    return padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors each sample of [..., B, C, H, W] left to right with probability 1/2."""
    chosen = torch.rand(images.shape[-4], generator=generator) < 0.5
    return torch.where(chosen.to(images.device)[:, None, None, None], images.flip(-1), images)


def random_erase(images: Tensor, generator: torch.Generator, probability: float) -> Tensor:
    """Sets a random box of a sample to 0, the mean of a normalised image (Zhong et al., arXiv 1708.04896).

    The box covers 2 to 33 % of the image at an aspect ratio between 0.3 and 3.3, clipped to the image.
    """
    *_, batch, _, height, width = images.shape
    draw = torch.rand(5, batch, generator=generator)
    area = (0.02 + 0.31 * draw[0]) * height * width
    ratio = torch.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * draw[1])
    box_h = (area * ratio).sqrt().round().clamp(1, height)
    box_w = (area / ratio).sqrt().round().clamp(1, width)
    top, left = (draw[2] * (height - box_h + 1)).floor(), (draw[3] * (width - box_w + 1)).floor()
    box_h = torch.where(draw[4] < probability, box_h, 0.0)
    return _clear_box(images, top, left, box_h, box_w)


def cutout(images: Tensor, generator: torch.Generator, size: int) -> Tensor:
    """Sets a square of `size` pixels around a random centre to 0, clipped at the border (DeVries and Taylor,
    arXiv 1708.04552)."""
    *_, batch, _, height, width = images.shape
    top = torch.randint(0, height, (batch,), generator=generator) - size // 2
    left = torch.randint(0, width, (batch,), generator=generator) - size // 2
    side = torch.full((batch,), size)
    return _clear_box(images, top, left, side, side)


def _clear_box(images: Tensor, top: Tensor, left: Tensor, box_h: Tensor, box_w: Tensor) -> Tensor:
    rows, columns = torch.arange(images.shape[-2]), torch.arange(images.shape[-1])
    in_rows = (rows >= top[:, None]) & (rows < (top + box_h)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + box_w)[:, None])
    inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return images.masked_fill(inside.to(images.device), 0.0)


@lru_cache
def _auto_augment(policy: str) -> Callable[[Tensor], Tensor]:
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"auto_augment is torchvision's, which cannot be imported ({error}): install the torchvision that goes "
            "with your torch, or set auto_augment to none"
        ) from error
    return v2.AutoAugment(v2.AutoAugmentPolicy[policy.upper()])


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of training batches, in the order of the fields.

    Attributes:
        auto_augment: AutoAugment (Cubuk et al., arXiv 1805.09501) of uint8 images with the policy found for "cifar10",
            "imagenet" or "svhn"; needs torchvision. The only step that goes image by image, and by far the slowest.
        shift: zero-pad by this many pixels and crop back at random (0: off).
        flip: mirror left to right with probability 1/2.
        erase: probability of erasing a random box (0: off).
        cutout: side in pixels of a square that is cut out (0: off).

    Raises:
        ValueError: an option outside its range.
        ImportError: auto_augment without torchvision.

    Example:
        >>> images = torch.rand(8, 3, 32, 32)
        >>> augmented = Augmentation(shift=4, flip=True)(images, torch.Generator().manual_seed(0))
        >>> augmented.shape
        torch.Size([8, 3, 32, 32])
    """

    auto_augment: Literal["none", "cifar10", "imagenet", "svhn"] = "none"
    shift: int = 0
    flip: bool = False
    erase: float = 0.0
    cutout: int = 0

    def __post_init__(self) -> None:
        if self.shift < 0 or self.cutout < 0:
            raise ValueError(f"shift and cutout are pixels >= 0, got shift={self.shift}, cutout={self.cutout}")
        if not 0 <= self.erase <= 1:
            raise ValueError(f"erase is a probability in [0, 1], got {self.erase}")
        if self.auto_augment not in ("none", "cifar10", "imagenet", "svhn"):
            raise ValueError(f"auto_augment must be none, cifar10, imagenet or svhn, got {self.auto_augment!r}")
        if self.auto_augment != "none":
            _auto_augment(self.auto_augment)

    @property
    def active(self) -> bool:
        return bool(self.auto_augment != "none" or self.shift or self.flip or self.erase or self.cutout)

    def on_pixels(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The part that works on raw uint8 images [B, C, H, W], before normalisation."""
        if self.auto_augment == "none":
            return images
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"auto_augment needs uint8 images [B, C, H, W], got {images.dtype} {list(images.shape)}")
        transform = _auto_augment(self.auto_augment)
        # torchvision draws from the global generator, which is nobody else's business.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            return torch.stack([transform(image) for image in images])

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The part that works on normalised images [B, C, H, W], or frames [T, B, C, H, W] alike at all T.

        The argument stays as it is.
        """
        if self.shift:
            images = random_shift(images, generator, self.shift)
        if self.flip:
            images = random_flip(images, generator)
        if self.erase:
            images = random_erase(images, generator, self.erase)
        if self.cutout:
            images = cutout(images, generator, self.cutout)
        return images
