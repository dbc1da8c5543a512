"""Spikformer: a transformer of spikes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor, nn

from ckd_kernels import Neuron, sam, surrogate

from .base import SNN, classifier_head
from .layout import conv3x3
from .outputs import SNNOutput
from .registry import register_model
from .spiking import NeuronName, NormNeuron, SNNOptions, as_neuron, per_step, spiking_layer

# SpikingJelly's LIFNode as Spikformer uses it.
SPIKFORMER_NEURON = Neuron(charge="leak_input", tau=2.0, detach_reset=True, surrogate=surrogate.Sigmoid(4.0))
ATTENTION_THRESHOLD = 0.5
ATTENTION_SCALE = 0.125


class PatchSplitting(nn.Module):
    """Images to spiking tokens, as maps of a quarter of their size.

    Four 3x3 convolutions with BN and a neuron each, max-pooling after the third and the fourth; then the relative
    position: one more convolution with BN and a neuron, whose spikes are added.
    """

    def __init__(self, in_channels: int, dim: int, neuron: Neuron, time_steps: int, fused: bool) -> None:
        super().__init__()
        self.time_steps = time_steps
        widths = (dim // 8, dim // 4, dim // 2, dim)
        channels = (in_channels, *widths)
        self.convs = nn.ModuleList(conv3x3(channels[i], channels[i + 1]) for i in range(4))
        self.neurons = nn.ModuleList(NormNeuron(width, neuron, fused=fused) for width in widths)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.position_conv = conv3x3(dim, dim)
        self.position_neuron = NormNeuron(dim, neuron, fused=fused)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for index, (conv, neuron) in enumerate(zip(self.convs, self.neurons, strict=True)):
            if x.dim() == 4:
                x, _ = neuron(conv(x), time_steps=self.time_steps)
            else:
                x, _ = neuron(per_step(conv, x))
            if index >= 2:
                x = per_step(self.pool, x)
        position, _ = self.position_neuron(per_step(self.position_conv, x))
        return x + position


class SpikingLinear(nn.Module):
    """A linear layer over the channels of every position, BN, neuron.  Tokens stay maps [T, B, C, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, neuron: Neuron, fused: bool) -> None:
        super().__init__()
        self.linear = nn.Conv2d(in_channels, out_channels, 1)
        self.neuron = NormNeuron(out_channels, neuron, fused=fused)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.neuron(per_step(self.linear, x))
        return out


class SpikingSelfAttention(nn.Module):
    """``neuron(scale * Q K^T V)`` of spiking queries, keys and values, with no softmax."""

    def __init__(self, dim: int, heads: int, neuron: Neuron, fused: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query = SpikingLinear(dim, dim, neuron, fused)
        self.key = SpikingLinear(dim, dim, neuron, fused)
        self.value = SpikingLinear(dim, dim, neuron, fused)
        self.attention_neuron = spiking_layer(dataclasses.replace(neuron, threshold=ATTENTION_THRESHOLD))
        self.project = SpikingLinear(dim, dim, neuron, fused)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            linear(x).flatten(3).unflatten(2, (self.heads, -1)) for linear in (self.query, self.key, self.value)
        )  # [T, B, heads, C/heads, N]
        # Without a softmax the products associate: V K^T is smaller than Q K^T, and counts of spikes are exact.
        mixed = (value @ key.transpose(-2, -1)) @ query * ATTENTION_SCALE
        current = mixed.flatten(2, 3).unflatten(3, x.shape[3:])
        return self.project(self.attention_neuron(current))


class SpikformerBlock(nn.Module):
    """Attention and a two-layer network, each with its input added.

    The released code also makes two LayerNorms a block, which it never calls: they are in the published parameter count
    and in published checkpoints.  With ``released_norms`` they are here too, without gradient.
    """

    def __init__(self, dim: int, heads: int, hidden: int, neuron: Neuron, released_norms: bool, fused: bool) -> None:
        super().__init__()
        self.attention = SpikingSelfAttention(dim, heads, neuron, fused)
        self.mlp = nn.Sequential(SpikingLinear(dim, hidden, neuron, fused), SpikingLinear(hidden, dim, neuron, fused))
        if released_norms:
            self.norm1 = nn.LayerNorm(dim).requires_grad_(False)
            self.norm2 = nn.LayerNorm(dim).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        out: Tensor = x + self.mlp(x)
        return out


@dataclass(frozen=True)
class SpikformerOptions(SNNOptions):
    """Options of Spikformers.

    Attributes:
        neuron: of all layers, by default the paper's; the attention's neuron is the same with threshold 0.5.
        sam_stages: blocks whose map is returned, negative ones counted from the end. A block ends in a sum of spikes;
            the map is the mean of those sums over time and channels.
        released_norms: have the normalisations that the released code makes and never calls, without gradient.
    """

    neuron: Neuron | NeuronName = SPIKFORMER_NEURON
    released_norms: bool = True


class Spikformer(SNN):
    """Spikformer for small images; every block is a stage.

    Zhou et al.: Spikformer: when spiking neural network meets transformer (ICLR 2023).

    Args:
        dim: channels, a multiple of 8 and of ``heads``.
        depth: blocks.
        heads: attention heads.
        mlp_ratio: hidden channels of a block's two-layer network over ``dim``.
        num_classes: K.
        in_channels: channels of the images.
        options: of the neurons, the head and what is returned.

    Call:
        images [B, in_channels, H, W], encoded directly, or frames [T, B, in_channels, H, W] -> :class:`SNNOutput` with
        the tokens of every block as a map H/4 x W/4.

    Raises:
        ValueError: a value out of range, a stage that does not exist, images of another shape.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
        num_classes: int,
        in_channels: int = 3,
        options: SpikformerOptions = SpikformerOptions(),
    ) -> None:
        super().__init__(num_classes, in_channels, options.time_steps, (dim,) * depth, options.sam_stages)
        if dim % 8 or dim % heads:
            raise ValueError(f"dim must be a multiple of 8 and of heads={heads}, got {dim}")
        neuron, fused = as_neuron(options.neuron), options.fused
        self.patches = PatchSplitting(in_channels, dim, neuron, options.time_steps, fused)
        self.stages = nn.ModuleList(
            SpikformerBlock(dim, heads, dim * mlp_ratio, neuron, options.released_norms, fused) for _ in range(depth)
        )
        self.head = classifier_head(dim, num_classes, options.head)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> SNNOutput:
        self.check_input(images)
        x = self.patches(images)
        features: dict[int, Tensor] = {}
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x)
            features[number] = x
        return self.finish(features, {number: sam(features[number]) for number in self.sam_stages})


@register_model("spikformer_4_384")
@dataclass(frozen=True)
class Spikformer4x384(SpikformerOptions):
    """Spikformer-4-384: 4 blocks of 384 channels, 12 heads, hidden 1536."""

    def build(self, num_classes: int, in_channels: int) -> Spikformer:
        return Spikformer(384, 4, 12, 4, num_classes, in_channels, self)
