"""Layouts of the residual networks that exist both as a conventional and as a spiking network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn


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


def small_layout(widths: Sequence[int], blocks: Sequence[int]) -> ResNetLayout:
    """Layout of the small pair: every stage but the first halves the map."""
    return ResNetLayout(tuple(blocks), tuple(widths), (1,) + (2,) * (len(widths) - 1), (widths[0],))


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution without bias (BN follows)."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """Shortcut where the shape changes: average pooling, 1x1 convolution, BN.  None where it does not."""
    if stride == 1 and in_channels == out_channels:
        return None
    pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
    return nn.Sequential(pool, nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
