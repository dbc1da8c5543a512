"""Networks that classify every pixel: residual networks with a fully convolutional head."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ckdsnn.option_types import NotEmpty

from .ann_resnet import ANNResNet
from .layout import LayoutOptions, ResNetLayout
from .outputs import SNNOutput
from .registry import register_model
from .snn_resnet import SNNResNet, SNNResNetOptions
from .spiking import SpikingOptions, per_step


class DenseHead(nn.Module):
    """Class scores of pixels: ``sum_s up(W_s F_s) + b``, 1x1 convolutions of all stages, enlarged (bilinear) and added.

    Long, Shelhamer, Darrell: Fully convolutional networks for semantic segmentation (CVPR 2015), section 4.2, with the
    scores of all stages.  The last stage knows what is there, the first one where exactly.

    Args:
        channels: of the stages, 1 first.
        num_classes: K.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.scores = nn.ModuleList(
            nn.Conv2d(count, num_classes, 1, bias=number == len(channels))
            for number, count in enumerate(channels, start=1)
        )

    @property
    def weight(self) -> Tensor:
        """W of the last stage, [K, C]."""
        return cast(Tensor, self.scores[-1].weight).flatten(1)

    def forward(self, features: dict[int, Tensor]) -> Tensor:
        """Features of all stages [B, C, h, w] or [T, B, C, h, w] -> scores of its size, [(T,) B, K, H, W]."""
        size = features[1].shape[-2:]
        total: Tensor | None = None
        for number, score in enumerate(self.scores, start=1):
            x = features[number]
            scores = _enlarged(score(x) if x.dim() == 4 else per_step(score, x), size)
            total = scores if total is None else total + scores
        assert total is not None
        return total


def _enlarged(scores: Tensor, size: torch.Size) -> Tensor:
    if scores.shape[-2:] == size:
        return scores
    frames = scores.flatten(0, -4)
    return F.interpolate(frames, size, mode="bilinear", align_corners=False).unflatten(0, scores.shape[:-3])


class ANNFCN(ANNResNet):
    """:class:`ANNResNet` with a :class:`DenseHead`; images of the size of stage 1, whose stride must be 1."""

    dense = True

    def __init__(self, layout: ResNetLayout, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(layout, num_classes, in_channels)
        self.classifier = DenseHead(layout.widths, num_classes)

    def classify(self, features: dict[int, Tensor]) -> Tensor:
        logits: Tensor = self.classifier(features)
        return logits


class SNNFCN(SNNResNet):
    """:class:`SNNResNet` with a :class:`DenseHead`, which reads the spikes of all stages at every time step."""

    dense = True

    def __init__(self, layout: ResNetLayout, num_classes: int, in_channels: int, options: SpikingOptions) -> None:
        given = {field.name: getattr(options, field.name) for field in dataclasses.fields(SpikingOptions)}
        super().__init__(layout, num_classes, in_channels, SNNResNetOptions(**given))
        self.head = DenseHead(layout.widths, num_classes)

    @property
    def classifier_weight(self) -> Tensor:
        return cast(Tensor, self.head.weight)

    def finish(self, features: dict[int, Tensor], sams: dict[int, Tensor]) -> SNNOutput:
        step_logits: Tensor = self.head(features)
        logits = step_logits.mean(0, dtype=torch.promote_types(step_logits.dtype, torch.float32))
        return SNNOutput(logits, step_logits, features, sams, self.classifier_weight)


@dataclass(frozen=True)
class FCNLayout(LayoutOptions):
    """Options of the small pair that classifies pixels.

    Attributes:
        widths: channels of each stage.
        blocks: basic blocks of each stage.
        strides: of each stage's first block, by which it makes the map smaller; the first one is 1, so that stage 1
            sees every pixel.
    """

    default_channels = 1
    widths: Annotated[tuple[int, ...], NotEmpty()] = (12, 24, 48)
    blocks: Annotated[tuple[int, ...], NotEmpty()] = (1, 1, 1)
    strides: Annotated[tuple[int, ...], NotEmpty()] = (1, 2, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strides[0] != 1:
            raise ValueError(f"strides must begin with 1, so that stage 1 sees every pixel, got {self.strides}")

    @property
    def layout(self) -> ResNetLayout:
        return ResNetLayout(self.blocks, self.widths, self.strides, self.widths[:1])


@register_model("ann_fcn_small")
@dataclass(frozen=True)
class ANNFCNSmall(FCNLayout):
    """A segmentation network small enough for a laptop CPU."""

    def build(self, num_classes: int, in_channels: int) -> ANNFCN:
        return ANNFCN(self.layout, num_classes, in_channels)


@register_model("snn_fcn_small")
@dataclass(frozen=True)
class SNNFCNSmall(FCNLayout, SpikingOptions):
    """A spiking segmentation network small enough for a laptop CPU."""

    def build(self, num_classes: int, in_channels: int) -> SNNFCN:
        return SNNFCN(self.layout, num_classes, in_channels, self)
