"""Spiking residual networks: the students."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ckd_kernels import Neuron

from .base import SNN, classifier_head
from .layout import RESNET19, RESNET20, RESNET20_DVS, ResNetLayout, conv3x3, projection, small_layout
from .outputs import SNNOutput
from .registry import register_model
from .spiking import NormNeuron, SpikingStem, as_neuron, per_step


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


class SNNResNet(SNN):
    """A spiking residual network: the layout of :class:`ANNResNet` with neurons for ReLUs, unrolled over time.

    Args:
        layout: stem and stages.
        num_classes: K.
        in_channels: channels of the images.
        time_steps: T >= 1.
        neuron: a :class:`ckd_kernels.Neuron` or the name of one of ``spiking.NEURONS``.
        sam_stages: stages whose spike activation map is returned, negative ones counted from the end.  The last neuron
            of the stage makes it while it fires.
        head: see :func:`~ckdsnn.models.base.classifier_head`.
        last_activation: ``"lif"``, or ``"relu"`` for the last block's last activation as in the released code; its map
            is then the mean of real numbers.
        fused: see :class:`~ckdsnn.models.spiking.NormNeuron`.

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
        time_steps: int = 4,
        neuron: Neuron | str = "paper",
        sam_stages: Sequence[int] = (-1,),
        head: str = "linear",
        last_activation: str = "lif",
        fused: bool = True,
    ) -> None:
        super().__init__(num_classes, in_channels, time_steps, layout.widths, sam_stages)
        neuron = as_neuron(neuron)
        self.stem = SpikingStem(in_channels, layout.stem, neuron, time_steps, fused)
        self.stages = nn.ModuleList()
        channels = layout.stem[-1]
        for number in range(self.num_stages):
            blocks: list[nn.Module] = []
            for index in range(layout.blocks[number]):
                is_last = number == self.num_stages - 1 and index == layout.blocks[number] - 1
                stride = layout.strides[number] if index == 0 else 1
                last = last_activation if is_last else "lif"
                blocks.append(SpikingBasicBlock(channels, layout.widths[number], stride, neuron, last, fused))
                channels = layout.widths[number]
            self.stages.append(SpikingStage(*blocks))
        self.head = classifier_head(channels, num_classes, head)

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


@register_model("snn_resnet19")
def snn_resnet19(
    num_classes: int,
    in_channels: int = 3,
    width: float = 1.0,
    time_steps: int = 4,
    neuron: Neuron | str = "paper",
    sam_stages: Sequence[int] = (-1,),
    head: str = "linear",
    last_activation: str = "lif",
    fused: bool = True,
) -> SNNResNet:
    """Spiking ResNet-19: 3, 3, 2 blocks at 128, 256, 512 channels; ``width`` multiplies all channel counts."""
    return SNNResNet(
        RESNET19.scaled(width), num_classes, in_channels, time_steps, neuron, sam_stages, head, last_activation, fused
    )


@register_model("snn_resnet20")
def snn_resnet20(
    num_classes: int,
    in_channels: int = 3,
    width: float = 1.0,
    time_steps: int = 4,
    neuron: Neuron | str = "paper",
    sam_stages: Sequence[int] = (-1,),
    head: str = "linear",
    last_activation: str = "lif",
    fused: bool = True,
) -> SNNResNet:
    """Spiking ResNet-20: 3, 3, 3 blocks at 16, 32, 64 channels; ``width`` multiplies all channel counts."""
    return SNNResNet(
        RESNET20.scaled(width), num_classes, in_channels, time_steps, neuron, sam_stages, head, last_activation, fused
    )


@register_model("snn_resnet20_dvs")
def snn_resnet20_dvs(
    num_classes: int,
    in_channels: int = 2,
    width: float = 1.0,
    time_steps: int = 10,
    neuron: Neuron | str = "paper",
    sam_stages: Sequence[int] = (-1,),
    head: str = "linear",
    last_activation: str = "lif",
    fused: bool = True,
) -> SNNResNet:
    """The spiking ResNet-20 of CIFAR10-DVS: three stem convolutions, 2, 2, 2, 2 blocks at 64 to 512 channels."""
    return SNNResNet(
        RESNET20_DVS.scaled(width),
        num_classes,
        in_channels,
        time_steps,
        neuron,
        sam_stages,
        head,
        last_activation,
        fused,
    )


@register_model("snn_resnet_small")
def snn_resnet_small(
    num_classes: int,
    in_channels: int = 1,
    widths: Sequence[int] = (12, 24, 48),
    blocks: Sequence[int] = (1, 1, 1),
    time_steps: int = 4,
    neuron: Neuron | str = "paper",
    sam_stages: Sequence[int] = (-1,),
    head: str = "linear",
    last_activation: str = "lif",
    fused: bool = True,
) -> SNNResNet:
    """A spiking residual network small enough for a laptop CPU."""
    return SNNResNet(
        small_layout(widths, blocks),
        num_classes,
        in_channels,
        time_steps,
        neuron,
        sam_stages,
        head,
        last_activation,
        fused,
    )
