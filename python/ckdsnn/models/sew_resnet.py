"""Spike-element-wise residual networks: the spiking student for ImageNet."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ckd_kernels import Neuron, sam, surrogate

from .base import SNN, classifier_head
from .layout import conv3x3
from .outputs import SNNOutput
from .registry import register_model
from .spiking import NormNeuron, as_neuron, per_step

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


class SEWResNet(SNN):
    """SEW-ResNet with the ADD connection, for images of ImageNet's size.

    Fang et al.: Deep residual learning in spiking neural networks (NeurIPS 2021).

    Args:
        blocks: basic blocks of each of the four stages.
        num_classes: K.
        in_channels: channels of the images.
        time_steps: T >= 1.
        neuron: a :class:`ckd_kernels.Neuron` or the name of one; by default the paper's (integrate and fire, detached
            reset, arctangent).
        sam_stages: stages whose map is returned, negative ones counted from the end.  A stage ends in a sum of spikes;
            the map is the mean of those sums over time and channels.
        head: see :func:`~ckdsnn.models.base.classifier_head`.
        fused: see :class:`~ckdsnn.models.spiking.NormNeuron`.

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
        time_steps: int = 4,
        neuron: Neuron | str = SEW_NEURON,
        sam_stages: Sequence[int] = (-1,),
        head: str = "linear",
        fused: bool = True,
    ) -> None:
        super().__init__(num_classes, in_channels, time_steps, WIDTHS, sam_stages)
        neuron = as_neuron(neuron)
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
        self.head = classifier_head(channels, num_classes, head)

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
def sew_resnet18(
    num_classes: int,
    in_channels: int = 3,
    time_steps: int = 4,
    neuron: Neuron | str = SEW_NEURON,
    sam_stages: Sequence[int] = (-1,),
    head: str = "linear",
    fused: bool = True,
) -> SEWResNet:
    """SEW-ResNet-18 (ADD): 2, 2, 2, 2 blocks at 64 to 512 channels."""
    return SEWResNet((2, 2, 2, 2), num_classes, in_channels, time_steps, neuron, sam_stages, head, fused)


@register_model("sew_resnet34")
def sew_resnet34(
    num_classes: int,
    in_channels: int = 3,
    time_steps: int = 4,
    neuron: Neuron | str = SEW_NEURON,
    sam_stages: Sequence[int] = (-1,),
    head: str = "linear",
    fused: bool = True,
) -> SEWResNet:
    """SEW-ResNet-34 (ADD): 3, 4, 6, 3 blocks at 64 to 512 channels."""
    return SEWResNet((3, 4, 6, 3), num_classes, in_channels, time_steps, neuron, sam_stages, head, fused)
