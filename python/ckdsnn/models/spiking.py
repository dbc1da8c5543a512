"""Building blocks of spiking networks over [T, B, C, H, W] tensors: the one place where BN meets a neuron."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, cast

from torch import Tensor, nn

from ckd_kernels import LIFOutput, Neuron, layers, sam
from ckdsnn.option_types import OneOf, Within
from ckdsnn.registry import nearest

from .registry import ModelOptions

NEURONS: dict[str, Callable[[], Neuron]] = {
    "paper": Neuron.paper,
    "spikingjelly_lif": Neuron.spikingjelly_lif,
    "spikingjelly_if": Neuron.spikingjelly_if,
}


NeuronName = Annotated[str, OneOf(tuple(NEURONS))]


@dataclass(frozen=True)
class SpikingOptions(ModelOptions):
    """Options of all spiking networks of this package.

    Attributes:
        time_steps: T, how often the network is run on an image.
        neuron: of all layers; in Python also a :class:`ckd_kernels.Neuron`.
        sam_stages: stages whose spike activation map is returned, negative ones counted from the end.
        fused: normalisation and neuron in one kernel, see :class:`NormNeuron`.
    """

    time_steps: Annotated[int, Within(low=1)] = 4
    neuron: Neuron | NeuronName = "paper"
    sam_stages: tuple[int, ...] = (-1,)
    fused: bool = True


@dataclass(frozen=True)
class SNNOptions(SpikingOptions):
    """Options of all spiking networks of this package that classify images.

    Attributes:
        head: one linear layer, or the released code's two, see :func:`~ckdsnn.models.base.classifier_head`.
    """

    head: Literal["linear", "released"] = "linear"


def as_neuron(neuron: Neuron | str) -> Neuron:
    """``neuron`` itself, or the preset of that name.

    Raises:
        ValueError: unknown name.
    """
    if isinstance(neuron, str):
        if neuron not in NEURONS:
            raise ValueError(f"unknown neuron {neuron!r}" + nearest(neuron, list(NEURONS)))
        return NEURONS[neuron]()
    return neuron


def spiking_layer(neuron: Neuron) -> layers.LIF | layers.IF:
    """The layer of ckd_kernels for ``neuron``."""
    return layers.IF(neuron) if neuron.charge == "integrate" else layers.LIF(neuron)


def per_step(module: nn.Module, x: Tensor) -> Tensor:
    """Apply ``module``, which knows nothing of time, to [T, B, ...] with time and batch taken together."""
    out: Tensor = module(x.flatten(0, 1))
    return out.unflatten(0, x.shape[:2])


class NormNeuron(nn.Module):
    """BN over time and batch, plus a residual, then a spiking neuron.

    Args:
        channels: C.
        neuron: which neuron.
        activation: ``"lif"``, or ``"relu"`` for a ReLU instead of the neuron (the released code of CKDSNN ends so).
        fused: BN and neuron in one kernel, to which the normalised tensor is never written; else one after the other.
            Parameters, their names and results (to rounding) are the same.

    Call:
        y [T, B, C, H, W] or, with ``time_steps``, one frame [B, C, H, W] that stands for that many equal ones: it is
        normalised once and the neuron reads it once.  Returns the activations [T, B, C, H, W] and, where
        ``return_sam``, their mean over time and channels, float32 [B, H, W], which the kernel makes on the way (else
        None).

    Raises:
        ValueError: unknown activation.
    """

    def __init__(self, channels: int, neuron: Neuron, activation: str = "lif", *, fused: bool) -> None:
        super().__init__()
        if activation not in ("lif", "relu"):
            raise ValueError(f"activation must be 'lif' or 'relu', got {activation!r}")
        if fused and activation == "lif":
            self.norm: nn.Module = layers.BatchNormLIF(channels, neuron)
            self.activation: nn.Module = nn.Identity()
        else:
            self.norm = nn.BatchNorm2d(channels)
            self.activation = spiking_layer(neuron) if activation == "lif" else nn.ReLU()

    def forward(
        self, y: Tensor, residual: Tensor | None = None, *, time_steps: int | None = None, return_sam: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        if isinstance(self.norm, layers.BatchNormLIF):
            current = y if time_steps is None else y.expand(time_steps, *y.shape)
            out = self.norm(current, residual, return_sam=return_sam)
            return (out.spikes, out.sam) if isinstance(out, LIFOutput) else (out, None)
        current = per_step(self.norm, y) if time_steps is None else self.norm(y).expand(time_steps, *y.shape)
        if residual is not None:
            current = current + residual
        if isinstance(self.activation, nn.ReLU):
            out = self.activation(current)
            return out, sam(out) if return_sam else None
        if not return_sam:
            return self.activation(current), None
        both = cast(LIFOutput, self.activation(current, return_sam=True))
        return both.spikes, both.sam


class SpikingStem(nn.Module):
    """3x3 convolutions with BN and a neuron each; static images pass the first convolution once (direct encoding).

    Args:
        in_channels: channels of the images.
        widths: output channels of the convolutions.
        neuron: which neuron.
        time_steps: T, for static images.
        fused: see :class:`NormNeuron`.

    Call:
        images [B, in_channels, H, W] or frames [T, B, in_channels, H, W] -> spikes [T, B, widths[-1], H, W].
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...], neuron: Neuron, time_steps: int, fused: bool) -> None:
        super().__init__()
        self.time_steps = time_steps
        channels = (in_channels, *widths)
        self.convs = nn.ModuleList(
            nn.Conv2d(c_in, c_out, 3, padding=1, bias=False) for c_in, c_out in zip(channels, widths, strict=False)
        )
        self.neurons = nn.ModuleList(NormNeuron(width, neuron, fused=fused) for width in widths)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for conv, neuron in zip(self.convs, self.neurons, strict=True):
            if x.dim() == 4:
                x, _ = neuron(conv(x), time_steps=self.time_steps)
            else:
                x, _ = neuron(per_step(conv, x))
        return x
