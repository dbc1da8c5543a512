"""Spiking residual networks: the students."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor, nn

from ckd_kernels import Neuron
from ckdsnn.option_types import Within

from .base import SNN, classifier_head
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
from .outputs import SNNOutput
from .registry import register_model
from .spiking import NormNeuron, SNNOptions, SpikingStem, as_neuron, per_step


class SpikingBasicBlock(nn.Module):
    """conv-BN-neuron-conv-BN, plus the shortcut, neuron; returns the activations and, if asked, their map."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, neuron: Neuron, last: str, fused: bool
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.neuron1 = NormNeuron(out_channels, neuron, fused=fused)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.neuron2 = NormNeuron(out_channels, neuron, activation=last, fused=fused)
        self.shortcut = projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor, *, return_sam: bool = False) -> tuple[Tensor, Tensor | None]:
        out, _ = self.neuron1(per_step(self.conv1, x))
        shortcut = x if self.shortcut is None else per_step(self.shortcut, x)
        pair: tuple[Tensor, Tensor | None] = self.neuron2(per_step(self.conv2, out), shortcut, return_sam=return_sam)
        return pair


class SpikingStage(nn.Sequential):
    """Blocks one after the other; only the last one's map may be asked for."""

    def forward(self, x: Tensor, *, return_sam: bool = False) -> tuple[Tensor, Tensor | None]:
        sam: Tensor | None = None
        for index, block in enumerate(self, start=1):
            x, sam = block(x, return_sam=return_sam and index == len(self))
        return x, sam


@dataclass(frozen=True)
class SNNResNetOptions(SNNOptions):
    """Options of spiking residual networks.

    Attributes:
        last_activation: of the last block; relu as in the released code, its map is then the mean of real numbers.
    """

    last_activation: Literal["lif", "relu"] = "lif"


class SNNResNet(SNN):
    """A spiking residual network: the layout of :class:`ANNResNet` with neurons for ReLUs, unrolled over time.

    Args:
        layout: stem and stages.
        num_classes: K.
        in_channels: channels of the images.
        options: of the neurons, the head and what is returned.  The last neuron of a stage makes its spike activation
            map while it fires.

    Call:
        images [B, in_channels, H, W], encoded directly (the first convolution runs once and its output enters at
        every time step), or frames [T, B, in_channels, H, W] -> :class:`SNNOutput` with the features of all stages.

    Raises:
        ValueError: a value out of range, a stage that does not exist, images of another shape.
    """

    def __init__(
        self,
        layout: ResNetLayout,
        num_classes: int,
        in_channels: int = 3,
        options: SNNResNetOptions = SNNResNetOptions(),
    ) -> None:
        super().__init__(num_classes, in_channels, options.time_steps, layout.widths, options.sam_stages)
        neuron, fused = as_neuron(options.neuron), options.fused
        self.stem = SpikingStem(in_channels, layout.stem, neuron, options.time_steps, fused)
        self.stages = nn.ModuleList()
        channels = layout.stem[-1]
        for number in range(self.num_stages):
            blocks: list[nn.Module] = []
            for index in range(layout.blocks[number]):
                is_last = number == self.num_stages - 1 and index == layout.blocks[number] - 1
                stride = layout.strides[number] if index == 0 else 1
                last = options.last_activation if is_last else "lif"
                blocks.append(SpikingBasicBlock(channels, layout.widths[number], stride, neuron, last, fused))
                channels = layout.widths[number]
            self.stages.append(SpikingStage(*blocks))
        self.head = classifier_head(channels, num_classes, options.head)

    def forward(self, images: Tensor) -> SNNOutput:
        self.check_input(images)
        x = self.stem(images)
        features: dict[int, Tensor] = {}
        sams: dict[int, Tensor] = {}
        for number, stage in enumerate(self.stages, start=1):
            x, sam = stage(x, return_sam=number in self.sam_stages)
            features[number] = x
            if sam is not None:
                sams[number] = sam
        return self.finish(features, sams)


@dataclass(frozen=True)
class Unrolled(LayoutOptions, SNNResNetOptions):
    def build(self, num_classes: int, in_channels: int) -> SNNResNet:
        return SNNResNet(self.layout, num_classes, in_channels, self)


@register_model("snn_resnet19")
@dataclass(frozen=True)
class SNNResNet19(ScaledLayout, Unrolled):
    """Spiking ResNet-19: 3, 3, 2 blocks at 128, 256, 512 channels."""

    full = RESNET19


@register_model("snn_resnet20")
@dataclass(frozen=True)
class SNNResNet20(ScaledLayout, Unrolled):
    """Spiking ResNet-20: 3, 3, 3 blocks at 16, 32, 64 channels."""

    full = RESNET20


@register_model("snn_resnet20_dvs")
@dataclass(frozen=True)
class SNNResNet20DVS(ScaledLayout, Unrolled):
    """The spiking ResNet-20 of CIFAR10-DVS: three stem convolutions, 2, 2, 2, 2 blocks at 64 to 512 channels."""

    full, default_channels = RESNET20_DVS, 2
    time_steps: Annotated[int, Within(low=1)] = 10


@register_model("snn_resnet_small")
@dataclass(frozen=True)
class SNNResNetSmall(SmallLayout, Unrolled):
    """A spiking residual network small enough for a laptop CPU."""
