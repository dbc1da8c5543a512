"""Conventional residual networks: the teachers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from .base import ANN
from .folded import FoldedConv
from .layout import (
    RESNET19,
    RESNET20,
    RESNET20_DVS,
    LayoutOptions,
    ResNetLayout,
    ScaledLayout,
    SmallLayout,
    conv3x3,
    projection,
)
from .outputs import ANNOutput
from .registry import register_model


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, plus the shortcut, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.norm1: nn.Module = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.norm2: nn.Module = nn.BatchNorm2d(out_channels)
        self.shortcut = projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        if isinstance(self.conv1, FoldedConv) and isinstance(self.conv2, FoldedConv):
            return self.conv2.relu(self.conv1.relu(x), shortcut)
        out = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(out)) + shortcut)

    def fold(self) -> None:
        """See :meth:`ANNResNet.fold`."""
        self.conv1, self.norm1 = FoldedConv(self.conv1, self.norm1), nn.Identity()
        self.conv2, self.norm2 = FoldedConv(self.conv2, self.norm2), nn.Identity()
        if self.shortcut is not None:
            self.shortcut[1], self.shortcut[2] = FoldedConv(self.shortcut[1], self.shortcut[2]), nn.Identity()


class ANNResNet(ANN):
    """A residual network for small images: stem, stages of basic blocks, global average pooling, one linear layer.

    Args:
        layout: stem and stages.
        num_classes: K.
        in_channels: channels of the images.
    """

    def __init__(self, layout: ResNetLayout, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(num_classes, in_channels, layout.widths)
        stem: list[nn.Module] = []
        channels = in_channels
        for width in layout.stem:
            stem += [conv3x3(channels, width), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.stem = nn.Sequential(*stem)
        self.stages = nn.ModuleList()
        for blocks, width, stride in zip(layout.blocks, layout.widths, layout.strides, strict=True):
            first = BasicBlock(channels, width, stride)
            self.stages.append(nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1))))
            channels = width
        self.classifier: nn.Module = nn.Linear(channels, num_classes)

    @property
    def classifier_weight(self) -> Tensor:
        return cast(Tensor, self.classifier.weight)

    def fold(self) -> None:
        """Makes every normalisation, which in eval mode is a scale and a shift a channel, a part of the convolution
        before it.  For a network that is only evaluated from now on; results are the same to rounding."""
        for index in range(0, len(self.stem), 3):
            self.stem[index], self.stem[index + 1] = FoldedConv(self.stem[index], self.stem[index + 1]), nn.Identity()
        for module in self.modules():
            if isinstance(module, BasicBlock):
                module.fold()

    def forward(self, images: Tensor, *, differentiable_from: int | None = None) -> ANNOutput:
        x = self.stem(self.static_images(images))
        features = {}
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x)
            if number == differentiable_from:
                x = x.detach().requires_grad_()
            features[number] = x
        return ANNOutput(self.classify(features), features, self.classifier_weight)

    def classify(self, features: dict[int, Tensor]) -> Tensor:
        """Logits from the features of all stages."""
        logits: Tensor = self.classifier(features[self.num_stages].mean((2, 3)))
        return logits


@dataclass(frozen=True)
class ANNResNetOptions(LayoutOptions):
    def build(self, num_classes: int, in_channels: int) -> ANNResNet:
        return ANNResNet(self.layout, num_classes, in_channels)


@register_model("ann_resnet19")
@dataclass(frozen=True)
class ANNResNet19(ScaledLayout, ANNResNetOptions):
    """ResNet-19: 3, 3, 2 blocks at 128, 256, 512 channels."""

    full = RESNET19


@register_model("ann_resnet20")
@dataclass(frozen=True)
class ANNResNet20(ScaledLayout, ANNResNetOptions):
    """ResNet-20: 3, 3, 3 blocks at 16, 32, 64 channels."""

    full = RESNET20


@register_model("ann_resnet20_dvs")
@dataclass(frozen=True)
class ANNResNet20DVS(ScaledLayout, ANNResNetOptions):
    """The ResNet-20 of CIFAR10-DVS: three stem convolutions, 2, 2, 2, 2 blocks at 64 to 512 channels."""

    full, default_channels = RESNET20_DVS, 2


@register_model("ann_resnet_small")
@dataclass(frozen=True)
class ANNResNetSmall(SmallLayout, ANNResNetOptions):
    """A residual network small enough for a laptop CPU."""
