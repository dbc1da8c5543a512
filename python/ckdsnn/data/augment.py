"""Augmentation of a batch or of a whole epoch at once, where the images lie.

What happens to a sample is a function of (seed, epoch, position in the data set) alone: the same in batches or all at
once, in any order, on any number of processes, on a CPU or a GPU. Nothing waits for a value on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Literal

import torch
from torch import Tensor

from ckdsnn.data.autoaugment import POLICIES, auto_augment
from ckdsnn.data.draws import Draw, Draws
from ckdsnn.data.operations import LARGEST_SIDE, take

# Values of images that are worked on at once: on a CPU what its caches hold, elsewhere what fills the device (some 1 GB
# of intermediate results).
_CHUNK_CPU, _CHUNK_DEVICE = 2**18, 2**25


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of training images, in the order of the fields.

    Attributes:
        auto_augment: AutoAugment (Cubuk et al., arXiv 1805.09501) of uint8 images of 1 or 3 channels with the policy
            found for "cifar10", "imagenet" or "svhn".
        shift: zero-pad by this many pixels and crop back at random (0: off).
        flip: mirror left to right with probability 1/2.
        erase: probability of erasing a random box (0: off): 2 to 33 % of the image at an aspect ratio of 0.3 to 3.3
            (Zhong et al., arXiv 1708.04896).
        cutout: side in pixels of a square around a random centre that is cut out (0: off; DeVries and Taylor,
            arXiv 1708.04552).

    What is padded, erased or cut out is 0 after normalisation: the mean.

    Raises:
        TypeError, ValueError: an option of another type, or outside its range.

    Example:
        >>> images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
        >>> augmentation = Augmentation(auto_augment="cifar10", shift=4, flip=True)
        >>> augmentation.apply(images, torch.arange(8), seed=0, epoch=3, mean=(0.5,), std=(0.25,)).shape
        torch.Size([8, 3, 32, 32])
    """

    auto_augment: Literal["none", "cifar10", "imagenet", "svhn"] = "none"
    shift: int = 0
    flip: bool = False
    erase: float = 0.0
    cutout: int = 0

    def __post_init__(self) -> None:
        if self.auto_augment not in ("none", *POLICIES):
            raise ValueError(f"auto_augment must be one of none, {', '.join(POLICIES)}, got {self.auto_augment!r}")
        for name in ("shift", "cutout"):
            pixels = _integer(name, getattr(self, name))
            if pixels < 0:
                raise ValueError(f"{name} is a number of pixels >= 0 (0: off), got {name}={pixels}")
        if not isinstance(self.flip, bool):
            raise TypeError(f"flip must be true or false, got {self.flip!r}")
        if isinstance(self.erase, bool) or not isinstance(self.erase, (int, float)):
            raise TypeError(f"erase must be a number, the probability of erasing a box, got {self.erase!r}")
        if not 0 <= self.erase <= 1:
            raise ValueError(f"erase is a probability in [0, 1], got {self.erase}")

    @property
    def active(self) -> bool:
        return bool(self.auto_augment != "none" or self.shift or self.flip or self.erase or self.cutout)

    def check(self, images: Tensor) -> None:
        """Raises the ValueError that `apply` would raise about images of this type and size."""
        height, width = images.shape[-2:]
        if self.auto_augment != "none":
            if images.dtype != torch.uint8 or images.shape[-3] not in (1, 3):
                raise ValueError(
                    f"auto_augment={self.auto_augment} is for uint8 images of 1 or 3 channels, got {images.dtype} "
                    f"{list(images.shape)}: set auto_augment to none"
                )
            if max(height, width) > LARGEST_SIDE:
                raise ValueError(f"auto_augment is for up to {LARGEST_SIDE} pixels a side, got {height} x {width}")
        for name, pixels in (("shift", self.shift), ("cutout", self.cutout)):
            if pixels >= min(height, width) and pixels:
                raise ValueError(f"{name}={pixels} leaves nothing of images of {height} x {width}: lower {name}")

    def apply(
        self,
        images: Tensor,
        indices: Tensor,
        seed: int,
        epoch: int,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        out_dtype: torch.dtype = torch.float32,
        out: Tensor | None = None,
    ) -> Tensor:
        """Augmented and normalised images.

        Args:
            images: pixels [N, C, H, W], uint8 or floating, or frames [N, T, C, H, W], which are treated alike at all T;
                of any number, since they are worked on in parts. They stay as they are.
            indices: int64 [N], positions of the samples in the data set.
            seed, epoch: with the position, decide what happens to a sample.
            mean, std: one number, or one a channel; images become `(image / 255 - mean) / std` if they are uint8, else
                `(image - mean) / std`. None: 0 and 1.
            out_dtype: of the result, which is rounded to it once, at the end.
            out: where to write the result, of the images' shape and `out_dtype`, in any memory format.

        Returns:
            `out`, or a new tensor of the images' shape.

        Raises:
            TypeError, ValueError: images, indices, numbers or `out` do not fit; before anything is written.
        """
        _check_arguments(images, indices, seed, epoch, out_dtype, out)
        self.check(images)
        multiply, add = _scales(images, mean, std)
        if out is None:
            out = torch.empty(images.shape, dtype=out_dtype, device=images.device)
        indices = indices.to(images.device, non_blocking=True)
        limit = _CHUNK_CPU if images.device.type == "cpu" else _CHUNK_DEVICE
        # AutoAugment has tables of 256 entries a channel, which counts where images are small.
        size = max(images[:1].numel(), 256 * images.shape[-3])
        parts = max(1, limit // size)
        for start in range(0, len(images), parts):
            part = slice(start, start + parts)
            pixels, cleared = self._augment(images[part], Draws(seed, epoch, indices[part]))
            values = out[part] if out_dtype == torch.float32 else torch.empty(pixels.shape, device=out.device)
            # Two operations rather than one that rounds once on some devices and twice on others.
            values.copy_(pixels).mul_(multiply).add_(add)
            if cleared is not None:
                values.masked_fill_(cleared, 0.0)
            if out_dtype != torch.float32:
                out[part] = values
        return out

    def _augment(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """Images before normalisation, and which pixels are to be 0 after it, if any: bool [B, 1 ..., H, W]."""
        if self.auto_augment != "none":
            pick = images.device.type == "cpu"  # where looking at values is no waiting
            if images.ndim == 5:
                frames = [auto_augment(frame, draws, self.auto_augment, pick=pick) for frame in images.unbind(1)]
                images = torch.stack(frames, 1)
            else:
                images = auto_augment(images, draws, self.auto_augment, pick=pick)
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device)
        cleared = []  # masks that broadcast to [B, H, W]
        if self.shift or self.flip:
            y, x = rows[None], columns[None]
            if self.flip:
                x = torch.where(draws.bits(Draw.FLIP)[:, None] % 2 == 1, width - 1 - x, x)
            if self.shift:
                places = 2 * self.shift + 1
                y = y + draws.below(Draw.SHIFT_Y, places)[:, None] - self.shift
                x = x + draws.below(Draw.SHIFT_X, places)[:, None] - self.shift
                cleared += [((y < 0) | (y >= height))[:, :, None], ((x < 0) | (x >= width))[:, None]]
            source = y.clamp(0, height - 1)[:, :, None] * width + x.clamp(0, width - 1)[:, None]
            moved = take(images.flatten(1, -3), source.expand(len(images), -1, -1))
            images = moved.view(images.shape)
        if self.erase:
            cleared.append(_inside(rows, columns, *_erased_box(draws, self.erase, height, width)))
        if self.cutout:
            top = draws.below(Draw.CUTOUT_Y, height) - self.cutout // 2
            left = draws.below(Draw.CUTOUT_X, width) - self.cutout // 2
            cleared.append(_inside(rows, columns, top, left, top + self.cutout, left + self.cutout))
        if not cleared:
            return images, None
        anywhere = reduce(torch.logical_or, cleared).expand(len(images), height, width)
        return images, anywhere.view(len(images), *[1] * (images.ndim - 3), height, width)


def _erased_box(draws: Draws, probability: float, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, bottom and right of the boxes, int64 [B]; an empty box where nothing is erased.

    In float64, and with roots from a table: multiplication, division and square root are rounded alike on all devices,
    the exponential function is not.
    """
    area = (0.02 + 0.31 * draws.uniform(Draw.ERASE_AREA).double()) * height * width
    root = _roots_of_ratios(area.device)[draws.below(Draw.ERASE_RATIO, 4096)]
    box_height = (area.sqrt() * root).round().clamp(1, height).long()
    box_width = (area.sqrt() / root).round().clamp(1, width).long()
    top = draws.below(Draw.ERASE_Y, height - box_height + 1)
    left = draws.below(Draw.ERASE_X, width - box_width + 1)
    erased = draws.uniform(Draw.ERASED) < probability
    return top, left, top + box_height * erased, left + box_width


@lru_cache(maxsize=8)
def _roots_of_ratios(device: torch.device) -> Tensor:
    """Square roots of 4096 aspect ratios between 0.3 and 3.3, evenly spread on a logarithmic scale."""
    logs = (math.log(0.3) + (math.log(3.3) - math.log(0.3)) * (number + 0.5) / 4096 for number in range(4096))
    roots = torch.tensor([math.exp(log / 2) for log in logs], dtype=torch.float64)
    return roots.to(device, non_blocking=True)


def _inside(rows: Tensor, columns: Tensor, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> Tensor:
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    in_columns = (columns >= left[:, None]) & (columns < right[:, None])
    return in_rows[:, :, None] & in_columns[:, None]


def _scales(images: Tensor, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> tuple[Tensor, Tensor]:
    """Normalisation as a factor and a summand, float32 [C or 1, 1, 1] where the images are."""
    mean, std = tuple(mean or (0.0,)), tuple(std or (1.0,))
    channels = images.shape[-3]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels) or not all(map(math.isfinite, values)):
            raise ValueError(f"{name} must be one finite number, or one for each of {channels} channels, got {values}")
    if min(std) <= 0:
        raise ValueError(f"std must be > 0, got {std}")
    white = 255 if images.dtype == torch.uint8 else 1
    centre, spread = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std))
    pair = 1 / (white * spread), -centre / spread
    multiply, add = (values.float().to(images.device, non_blocking=True) for values in pair)
    return multiply, add


def _check_arguments(
    images: Tensor, indices: Tensor, seed: int, epoch: int, out_dtype: torch.dtype, out: Tensor | None
) -> None:
    if images.ndim not in (4, 5) or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(
            "images must be uint8 or floating, [N, C, H, W] or frames [N, T, C, H, W], "
            f"got {images.dtype} {list(images.shape)}"
        )
    if indices.dtype != torch.int64 or indices.shape != images.shape[:1]:
        raise ValueError(
            f"indices must be int64 [{len(images)}], one for each image, got {indices.dtype} {list(indices.shape)}"
        )
    for name, value in (("seed", seed), ("epoch", epoch)):
        _integer(name, value)
    if not out_dtype.is_floating_point:
        raise ValueError(f"out_dtype must be a floating type, got {out_dtype}")
    if out is not None and (out.shape != images.shape or out.dtype != out_dtype or out.device != images.device):
        raise ValueError(
            f"out must be {out_dtype} {list(images.shape)} on {images.device}, "
            f"got {out.dtype} {list(out.shape)} on {out.device}"
        )


def _integer(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    return value
