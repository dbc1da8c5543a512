"""The spiking ResNet-19 of the training-step benchmarks, four ways.

``ours``          `ckdsnn.models`, as it is
``paper``         BatchNorm2d over T*B and the published neuron, as the paper's code has them
``spikingjelly``  the same network with SpikingJelly's LIFNode
``relu``          the same network with ReLU for the neurons, our shortcuts, on the same T*B images: what spiking costs

Layout: a 3x3 convolution to 128 channels; 3, 3, 2 basic blocks at 128, 256, 512 channels, strides 1, 2, 2; shortcuts
of average pooling, 1x1 convolution and BN; global average pooling; one linear layer.  Images are encoded directly: the
first convolution and its BN run once and their output enters at every time step (not so for ReLU, to which every time
step is another image).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import peers
import torch
from torch import Tensor, nn

from ckd_kernels import one_bit_spikes
from ckdsnn.models import SNNOutput, build_model
from ckdsnn.models.layout import projection

NAMES = ("ours", "paper", "spikingjelly", "relu")


def build(
    name: str, *, width: float = 1.0, time_steps: int = 4, num_classes: int = 10, sam: bool = False, seed: int = 0
) -> nn.Module:
    """The network, images [B, 3, H, W] -> `SNNOutput`; relu takes [T*B, 3, H, W] and has as many logits.

    Those of one seed, width and number of classes have the same weights.  With ``sam`` they return the spike
    activation map of the last stage.

    Raises:
        peers.Unavailable: a library that is not installed.
    """
    torch.manual_seed(seed)
    options = {"width": width, "time_steps": time_steps, "sam_stages": (-1,) if sam else ()}
    ours = build_model("snn_resnet19", num_classes=num_classes, **options)
    if name == "ours":
        return ours
    activation: Callable[[], nn.Module] = {
        "paper": lambda: OverTime(PublishedNeuron(), time_steps, time_dim=1),
        "spikingjelly": lambda: OverTime(peers.spikingjelly(), time_steps, time_dim=0),
        "relu": lambda: nn.ReLU(inplace=True),
    }[name]
    steps = 1 if name == "relu" else time_steps
    shortcut = projection if name == "relu" else plain_projection
    plain = ResNet19(activation, shortcut, steps, 1 if name == "paper" else 0, width, num_classes, sam)
    copy_weights(ours, plain)
    return plain


class PublishedNeuron(nn.Module):
    """The paper's LIF over [B, T, ...]."""

    def forward(self, x: Tensor) -> Tensor:
        return peers.published_loop(x, time_dim=1)


class OverTime(nn.Module):
    """A neuron over [T, B, ...] or [B, T, ...] where the network has time and batch in one dimension."""

    def __init__(self, neuron: nn.Module, time_steps: int, time_dim: int) -> None:
        super().__init__()
        self.neuron = neuron
        self.split = (time_steps, -1) if time_dim == 0 else (-1, time_steps)

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.neuron(x.unflatten(0, self.split))
        return spikes.flatten(0, 1)


Shortcut = Callable[[int, int, int], nn.Module | None]  # of channels in, channels out, stride; None: as it is


def plain_projection(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """`projection` of PyTorch's modules."""
    if stride == 1 and in_channels == out_channels:
        return None
    pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
    return nn.Sequential(pool, nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        activation: Callable[[], nn.Module],
        shortcut: Shortcut,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.activation1 = activation()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.activation2 = activation()
        self.shortcut = shortcut(in_channels, out_channels, stride) or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation1(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out)) + self.shortcut(x)
        return self.activation2(out)


class ResNet19(nn.Module):
    """Time and batch are one dimension from the first activation to the last linear layer.

    Args:
        activation: makes an activation over [T*B, C, H, W] or [B*T, C, H, W].
        shortcut: makes that of a block.
        time_steps: how often an image is repeated and over how many outputs its logits are averaged.
        time_dim: 0 or 1, as in [T, B] or [B, T].
        width: multiplies all channel counts.
        num_classes: K.
        sam: whether to return the mean of the last activations over time and channels.
    """

    def __init__(
        self,
        activation: Callable[[], nn.Module],
        shortcut: Shortcut,
        time_steps: int,
        time_dim: int,
        width: float,
        num_classes: int,
        sam: bool,
    ) -> None:
        super().__init__()
        self.time_steps, self.time_dim, self.sam = time_steps, time_dim, sam
        widths = [round(channels * width) for channels in (128, 256, 512)]
        self.conv = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.activation = activation()
        blocks, channels = [], widths[0]
        for out_channels, stride, count in zip(widths, (1, 2, 2), (3, 3, 2), strict=True):
            for index in range(count):
                blocks.append(BasicBlock(channels, out_channels, stride if index == 0 else 1, activation, shortcut))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> SNNOutput:
        x = self.norm(self.conv(images))
        if self.time_steps > 1:
            x = torch.stack([x] * self.time_steps, self.time_dim).flatten(0, 1)
        x = self.blocks(self.activation(x))
        step_logits = self.over_time(self.classifier(x.mean((2, 3))))
        features = self.over_time(x)
        sams = {3: features.mean((0, 2), dtype=torch.float32)} if self.sam else {}
        return SNNOutput(step_logits.mean(0), step_logits, {3: features}, sams, self.classifier.weight)

    def over_time(self, x: Tensor) -> Tensor:
        """[T, B, ...]."""
        if self.time_dim == 0:
            return x.unflatten(0, (self.time_steps, -1))
        return x.unflatten(0, (-1, self.time_steps)).transpose(0, 1)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Parameters and buffers in the order in which the two networks, which are built alike, have them."""
    ours, theirs = list(source.state_dict().values()), list(target.state_dict().values())
    for a, b in zip(ours, theirs, strict=True):
        b.copy_(a)


def optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """The paper's: SGD with momentum and weight decay."""
    return torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def describe(size: dict[str, float]) -> str:
    """Arguments of :class:`Step`, for a table."""
    return f"ResNet-19, width {size['width']:g}, batch {size['batch']}, T {size['time_steps']}"


class Step:
    """One step of training at a time: forward, cross-entropy, backward, SGD with momentum.

    Args:
        name: one of ``NAMES``.
        batch: images, of 3x32x32.
        width: of the network.
        autocast: None for float32, or the dtype of autocast.
        channels_last: memory format of images and weights.
        one_bit: keep the spikes that convolutions save for their backward pass at one bit.
    """

    def __init__(
        self,
        name: str,
        *,
        batch: int,
        width: float = 1.0,
        time_steps: int = 4,
        device: str = "cpu",
        autocast: torch.dtype | None = None,
        channels_last: bool = False,
        one_bit: bool = False,
    ) -> None:
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = build(name, width=width, time_steps=time_steps).to(device=device, memory_format=memory_format)
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(batch, 3, 32, 32, generator=generator)
        target = torch.randint(10, (batch,), generator=generator)
        if name == "relu":
            images, target = images.repeat(time_steps, 1, 1, 1), target.repeat(time_steps)
        self.images = images.to(device=device, memory_format=memory_format)
        self.target = target.to(device)
        self.device, self.autocast = device, autocast
        self.saving = one_bit_spikes if one_bit else contextlib.nullcontext
        self.optimizer = optimizer(self.network)

    def __call__(self) -> Tensor:
        """The loss, detached."""
        with torch.autocast(self.device, self.autocast, enabled=self.autocast is not None), self.saving():
            loss = nn.functional.cross_entropy(self.network(self.images).logits, self.target)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()
