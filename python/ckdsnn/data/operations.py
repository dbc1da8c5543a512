"""Image operations on whole batches, every sample with a parameter of its own, equal to Pillow's pixel by pixel.

`images` are uint8 [B, C, H, W] with 1 or 3 channels, which the functions leave as they are. No function waits for a
value on the device. All arithmetic is either exact or rounds as IEEE 754 says, so results are alike on every device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Pillow's fixed-point numbers have 16 bits before the point; beyond, it calculates otherwise.
LARGEST_SIDE = 16384


def take(images: Tensor, source: Tensor) -> Tensor:
    """Every pixel of [B, C, H, W] from another place of its image: `source` [B, H, W] counts the pixels of an image."""
    index = source.flatten(1).long()[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, index).view(images.shape)


def fixed_point(a: float, b: float, c: float, d: float, e: float, f: float) -> list[int]:
    """An affine map from pixels of the result to the source, x' = a x + b y + c and y' = d x + e y + f, as Pillow takes
    it: to the centres of pixels, in units of 2**-16."""
    centred = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    return [math.floor(value * 65536.0 + 0.5) for value in centred]


def rotation(degrees: float, width: int, height: int) -> list[int]:
    """The map, in `fixed_point`, of a counter-clockwise rotation around the centre."""
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return fixed_point(cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y)


def affine(images: Tensor, matrices: Tensor) -> Tensor:
    """`Image.transform(size, AFFINE, ...)` to the nearest pixel, black outside; `matrices` int32 [B, 6] in
    `fixed_point`."""
    height, width = images.shape[-2:]
    a, b, c, d, e, f = matrices[:, :, None, None].unbind(1)
    y = torch.arange(height, dtype=torch.int32, device=images.device)[:, None]
    x = torch.arange(width, dtype=torch.int32, device=images.device)
    column, row = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return take(images, torch.where(inside, row * width + column, 0)) * inside[:, None]


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """`ImageEnhance.Brightness`; `factor` float32 [B]."""
    return _blend(torch.zeros((), device=images.device), images, factor)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """`ImageEnhance.Color`; `factor` float32 [B]."""
    return _blend(_gray(images), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """`ImageEnhance.Contrast`; `factor` float32 [B]."""
    # The mean to the nearest whole number, in integers: a GPU divides by multiplying with a rounded reciprocal.
    count = images.shape[-2] * images.shape[-1]
    mean = (2 * _gray(images).sum((1, 2, 3), keepdim=True, dtype=torch.int64) + count) // (2 * count)
    return _blend(mean.float(), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """`ImageEnhance.Sharpness`; `factor` float32 [B]."""
    smooth = images.float()
    if min(images.shape[-2:]) >= 3:  # the filter leaves the border as it is
        rows = smooth[..., :-2, :] + smooth[..., 1:-1, :] + smooth[..., 2:, :]
        inner = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
        inner += 4 * smooth[..., 1:-1, 1:-1]
        # A whole number over 13 is never half-way between two: however the division is rounded, this is the nearest.
        smooth[..., 1:-1, 1:-1] = inner.div_(13).round_()
    return _blend(smooth, images, factor)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """`ImageOps.posterize`; `bits` [B], 1 to 8."""
    lost = (8 - _per_sample(bits)).to(torch.uint8)
    return (images >> lost) << lost


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """`ImageOps.solarize`; `threshold` [B]."""
    return torch.where(images < _per_sample(threshold), images, 255 - images)


def invert(images: Tensor) -> Tensor:
    """`ImageOps.invert`."""
    return 255 - images


def autocontrast(images: Tensor) -> Tensor:
    """`ImageOps.autocontrast`."""
    low, high = images.amin((2, 3)).double()[..., None], images.amax((2, 3)).double()[..., None]
    # A number over a tensor would be multiplied by a rounded reciprocal.
    scale = torch.full_like(low, 255) / (high - low).clamp(min=1)
    levels = torch.arange(256, dtype=torch.float64, device=images.device)
    stretched = (levels * scale + -low * scale).clamp_(0, 255)
    return _look_up(images, torch.where(high > low, stretched, levels).to(torch.uint8))


def equalize(images: Tensor) -> Tensor:
    """`ImageOps.equalize`."""
    level = images.flatten(2).long()
    one = torch.ones((), dtype=torch.int32, device=images.device)
    counts = torch.zeros((*images.shape[:2], 256), dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, level, one.expand_as(level))
    brightest = counts.gather(2, level.amax(2, keepdim=True))
    step = (level.shape[2] - brightest) // 255
    below = counts.cumsum(2, dtype=torch.int32) - counts
    spread = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    levels = torch.arange(256, dtype=torch.int32, device=images.device)
    return _look_up(images, torch.where(step > 0, spread, levels).to(torch.uint8))


def _look_up(images: Tensor, table: Tensor) -> Tensor:
    """`table` uint8 [B, C, 256]."""
    return table.gather(2, images.flatten(2).long()).view(images.shape)


def _gray(images: Tensor) -> Tensor:
    """`Image.convert("L")`, as float32 [B, 1, H, W]."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().split(1, 1)
    # Pillow's integers; every one of them is below 2**24 and so exact in float32.
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) * 2.0**-16).floor_()


def _blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """`Image.blend`, with the multiplication rounded before the addition."""
    return (images - degenerate).mul_(_per_sample(factor)).add_(degenerate).clamp_(0, 255).to(torch.uint8)


def _per_sample(values: Tensor) -> Tensor:
    return values[:, None, None, None]
