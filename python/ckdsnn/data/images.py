"""Image files as pixels: decoded at no higher resolution than their crop needs, and within bounds."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ckdsnn.data.files import read_file

# Others are not tried: some of Pillow's decoders start programs.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
LARGEST_FILE = 2**28  # bytes
MOST_PIXELS = 2**26  # 8192 x 8192, 200 MB as RGB
MOST_SCANS = 250  # of a progressive JPEG, which need next to no bytes but each the time of decoding all pixels

Box = tuple[float, float, float, float]


def random_box(width: int, height: int, generator: torch.Generator) -> Box:
    """A box (left, upper, right, lower) of 8 to 100 % of the image at an aspect ratio of 3/4 to 4/3 (Szegedy et al.,
    arXiv 1409.4842), or the largest central one if ten draws do not fit."""
    for area, ratio, x, y in torch.rand(10, 4, generator=generator).tolist():
        area = width * height * (0.08 + 0.92 * area)
        ratio = math.exp(math.log(3 / 4) + ratio * (math.log(4 / 3) - math.log(3 / 4)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, upper, left + w, upper + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def central_box(width: int, height: int) -> Box:
    """The square in the middle whose side is 7/8 of the shorter side: 224 of 256 pixels."""
    side = min(width, height) * 0.875
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def read_crop(path: Path, size: int, choose: Callable[[int, int], Box]) -> np.ndarray:
    """A crop of an image file, scaled to `size` pixels a side: uint8 [size, size, 3].

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its resolution where its crop still has `size` pixels a side. Grey of 16
    bits becomes grey of 8 bits; transparency is left out.

    Args:
        path: a JPEG, PNG, BMP or WebP file, whatever its name says.
        size: side of the result.
        choose: makes of width and height the box (left, upper, right, lower) that is cut out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or is larger than LARGEST_FILE, MOST_PIXELS or MOST_SCANS.
    """
    raw = read_file(path, LARGEST_FILE)
    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise ValueError(f"it has {width:,} x {height:,} pixels, more than the {MOST_PIXELS:,} that are read")
            if raw.startswith(b"\xff\xd8") and raw.count(b"\xff\xda") > MOST_SCANS:
                raise ValueError(f"it has more than {MOST_SCANS} scans")
            left, upper, right, lower = choose(width, height)
            # The resolution at which the whole image must be decoded for the crop to have `size` pixels.
            wanted = math.ceil(width * size / (right - left)), math.ceil(height * size / (lower - upper))
            image.draft(None, wanted)
            x, y = image.width / width, image.height / height
            box = left * x, upper * y, min(right * x, image.width), min(lower * y, image.height)
            crop = _eight_bits(image).resize((size, size), Image.Resampling.BILINEAR, box=box)
            return np.asarray(crop.convert("RGB"))
    except Exception as error:  # decoders raise errors of many types
        said = "it is no JPEG, PNG, BMP or WebP file" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(f"{path} cannot be read as an image ({said}): replace or remove it") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode in ("RGB", "L"):
        return image
    if image.mode.startswith("I"):  # grey of 16 bits, which `convert` clips at 255
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    return image.convert("RGB")
