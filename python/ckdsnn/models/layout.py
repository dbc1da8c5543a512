"""Layouts of the residual networks that exist both as a conventional and as a spiking network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from ckdsnn.option_types import NotEmpty, Positive

from .registry import ModelOptions


@dataclass(frozen=True)
class ResNetLayout:
    """Stem and stages of a residual network with basic blocks (two 3x3 convolutions each).

    Attributes:
        blocks: basic blocks of each stage.
        widths: channels of each stage.
        strides: stride of each stage's first block.
        stem: output channels of the stem's 3x3 convolutions, each followed by BN and an activation.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    stem: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.blocks) == len(self.widths) == len(self.strides) or not self.blocks:
            raise ValueError(
                f"blocks {self.blocks}, widths {self.widths} and strides {self.strides} must have the same length"
            )
        for name, values in (("blocks", self.blocks), ("widths", self.widths), ("strides", self.strides)):
            if min(values) < 1:
                raise ValueError(f"{name} must be positive, got {values}")

    def scaled(self, width: float) -> ResNetLayout:
        """The same layout with every channel count multiplied by ``width`` (at least one channel)."""
        if not width > 0:
            raise ValueError(f"width must be > 0, got {width}")
        return ResNetLayout(
            self.blocks,
            tuple(max(1, round(w * width)) for w in self.widths),
            self.strides,
            tuple(max(1, round(w * width)) for w in self.stem),
        )


RESNET19 = ResNetLayout(blocks=(3, 3, 2), widths=(128, 256, 512), strides=(1, 2, 2), stem=(128,))
RESNET20 = ResNetLayout(blocks=(3, 3, 3), widths=(16, 32, 64), strides=(1, 2, 2), stem=(16,))
# Frames are 48x48 as a rule; the last map is then 6x6.
RESNET20_DVS = ResNetLayout(blocks=(2, 2, 2, 2), widths=(64, 128, 256, 512), strides=(1, 2, 2, 2), stem=(64, 64, 64))


@dataclass(frozen=True)
class LayoutOptions(ModelOptions):
    """Base of the options of networks that have a layout."""

    @property
    def layout(self) -> ResNetLayout:
        raise NotImplementedError(f"{type(self).__name__} must have a layout")


@dataclass(frozen=True)
class ScaledLayout(LayoutOptions):
    """Options of a network whose layout is known but for its width.

    Attributes:
        width: multiplies all channel counts.
    """

    full: ClassVar[ResNetLayout]
    width: Positive = 1.0

    @property
    def layout(self) -> ResNetLayout:
        return self.full.scaled(self.width)


@dataclass(frozen=True)
class SmallLayout(LayoutOptions):
    """Options of the small pair: every stage but the first halves the map.

    Attributes:
        widths: channels of each stage.
        blocks: basic blocks of each stage.
    """

    default_channels = 1
    widths: Annotated[tuple[int, ...], NotEmpty()] = (12, 24, 48)
    blocks: Annotated[tuple[int, ...], NotEmpty()] = (1, 1, 1)

    @property
    def layout(self) -> ResNetLayout:
        return ResNetLayout(self.blocks, self.widths, (1,) + (2,) * (len(self.widths) - 1), self.widths[:1])


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution without bias (BN follows)."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


class Projection(nn.Sequential):
    """Average pooling, 1x1 convolution, normalisation: the shortcut where the shape changes.

    On a GPU, pooling and convolution of even sizes are one convolution of stride 2 with the weight repeated over the
    window: the same sums, without PyTorch's general pooling kernel, whose backward pass takes 20 times as long as its
    bytes.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
        conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        super().__init__(pool, conv, nn.BatchNorm2d(out_channels))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        even = x.shape[-2] % self.stride == 0 and x.shape[-1] % self.stride == 0
        out: Tensor
        if self.stride == 1 or not (even and x.is_cuda):
            out = super().forward(x)
        else:
            conv = cast(nn.Conv2d, self[1])
            out = self[2](pooled_convolution(x, conv.weight, conv.bias, self.stride))
        return out


def pooled_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """`F.conv2d(F.avg_pool2d(x, stride), weight, bias)` as one convolution.

    Args:
        x: [B, C, H, W], H and W multiples of `stride`.
        weight: [K, C, 1, 1].
        bias: [K] or None.
        stride: of the windows, and their side.

    Returns:
        [B, K, H / stride, W / stride].

    Example:
        >>> import torch
        >>> x, weight = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 1, 1)
        >>> pooled = torch.nn.functional.conv2d(torch.nn.functional.avg_pool2d(x, 2), weight)
        >>> torch.allclose(pooled_convolution(x, weight, None, 2), pooled, atol=1e-6)
        True
    """
    return F.conv2d(x, weight.expand(-1, -1, stride, stride) / stride**2, bias, stride=stride)


def projection(in_channels: int, out_channels: int, stride: int) -> Projection | None:
    """Shortcut where the shape changes, None where it does not."""
    if stride == 1 and in_channels == out_channels:
        return None
    return Projection(in_channels, out_channels, stride)
