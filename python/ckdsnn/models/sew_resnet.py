"""Spike-element-wise residual networks: the spiking student for ImageNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ckd_kernels import Neuron, sam, surrogate

from .base import SNN, classifier_head
from .layout import conv3x3
from .outputs import SNNOutput
from .registry import register_model
from .spiking import NeuronName, NormNeuron, SNNOptions, as_neuron, per_step

# SpikingJelly's IFNode as SEW-ResNet uses it.
SEW_NEURON = Neuron(charge="integrate", detach_reset=True, surrogate=surrogate.ATan(2.0))
WIDTHS = (64, 128, 256, 512)


class SEWBlock(nn.Module):
    """conv-BN-neuron-conv-BN-neuron, then the shortcut's spikes are added: small integers, no longer binary."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, neuron: Neuron, fused: bool) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.neuron1 = NormNeuron(out_channels, neuron, fused=fused)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.neuron2 = NormNeuron(out_channels, neuron, fused=fused)
        self.shortcut_conv: nn.Module | None = None
        self.shortcut_neuron: NormNeuron | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut_conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.shortcut_neuron = NormNeuron(out_channels, neuron, fused=fused)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.neuron1(per_step(self.conv1, x))
        out, _ = self.neuron2(per_step(self.conv2, out))
        shortcut = x
        if self.shortcut_conv is not None and self.shortcut_neuron is not None:
            shortcut, _ = self.shortcut_neuron(per_step(self.shortcut_conv, x))
        return out + shortcut


@dataclass(frozen=True)
class SEWOptions(SNNOptions):
    """Options of SEW-ResNets.

    Attributes:
        neuron: of all layers; by default the paper's: integrate and fire, detached reset, arctangent.
        sam_stages: stages whose map is returned, negative ones counted from the end. A stage ends in a sum of spikes;
            the map is the mean of those sums over time and channels.
    """

    blocks: ClassVar[tuple[int, int, int, int]]
    neuron: Neuron | NeuronName = SEW_NEURON

    def build(self, num_classes: int, in_channels: int) -> SEWResNet:
        return SEWResNet(self.blocks, num_classes, in_channels, self)


class SEWResNet(SNN):
    """SEW-ResNet with the ADD connection, for images of ImageNet's size.

    Fang et al.: Deep residual learning in spiking neural networks (NeurIPS 2021).

    Args:
        blocks: basic blocks of each of the four stages.
        num_classes: K.
        in_channels: channels of the images.
        options: of the neurons, the head and what is returned.

    Call:
        images [B, in_channels, H, W], encoded directly, or frames [T, B, in_channels, H, W] -> :class:`SNNOutput`; the
        map of the last stage is H/32 x W/32.

    Raises:
        ValueError: a value out of range, a stage that does not exist, images of another shape.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        num_classes: int,
        in_channels: int = 3,
        options: SEWOptions = SEWOptions(),
    ) -> None:
        super().__init__(num_classes, in_channels, options.time_steps, WIDTHS, options.sam_stages)
        neuron, fused = as_neuron(options.neuron), options.fused
        self.conv = nn.Conv2d(in_channels, WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.neuron = NormNeuron(WIDTHS[0], neuron, fused=fused)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        channels = WIDTHS[0]
        for number, (count, width) in enumerate(zip(blocks, WIDTHS, strict=True)):
            first = SEWBlock(channels, width, 1 if number == 0 else 2, neuron, fused)
            self.stages.append(
                nn.Sequential(first, *(SEWBlock(width, width, 1, neuron, fused) for _ in range(count - 1)))
            )
            channels = width
        self.head = classifier_head(channels, num_classes, options.head)

    def forward(self, images: Tensor) -> SNNOutput:
        self.check_input(images)
        if images.dim() == 4:
            x, _ = self.neuron(self.conv(images), time_steps=self.time_steps)
        else:
            x, _ = self.neuron(per_step(self.conv, images))
        x = per_step(self.pool, x)
        features: dict[int, Tensor] = {}
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x)
            features[number] = x
        return self.finish(features, {number: sam(features[number]) for number in self.sam_stages})


@register_model("sew_resnet18")
@dataclass(frozen=True)
class SEWResNet18(SEWOptions):
    """SEW-ResNet-18 (ADD): 2, 2, 2, 2 blocks at 64 to 512 channels."""

    blocks = (2, 2, 2, 2)


@register_model("sew_resnet34")
@dataclass(frozen=True)
class SEWResNet34(SEWOptions):
    """SEW-ResNet-34 (ADD): 3, 4, 6, 3 blocks at 64 to 512 channels."""

    blocks = (3, 4, 6, 3)
