"""BatchNorm over time, batch and space, and LIF: in one kernel, as two, and as PyTorch has them; and the floor.

Forward reads the input twice, for the statistics and for the spikes that it writes; backward reads the input and the
gradient of the spikes twice, and writes that of the input: 3 and 5 tensors.
"""

from __future__ import annotations

import peers
import pytest
import torch
from racing import DEVICES, OURS, floor
from torch import nn

from ckd_kernels import Neuron, layers, lif, use_backend

SHAPES = [(4, 32, 128, 32, 32), (4, 64, 512, 8, 8)]


def contestants(device: str) -> list[str]:
    ours = [f"{name}{layout}" for name in OURS[device] for layout in ("", " channels-last")]
    return ["floor", *ours, "batchnorm+lif", "batchnorm+published-loop"]


def cases():
    for device in DEVICES:
        for shape in SHAPES:
            for dtype in (torch.float32, torch.bfloat16):
                for work in ("forward", "training"):
                    for contestant in contestants(device):
                        yield device, shape, dtype, work, contestant


@pytest.mark.parametrize(("device", "shape", "dtype", "work", "contestant"), list(cases()), ids=str)
def test_bn_lif(device, shape, dtype, work, contestant, enter):
    """Statistics of the batch either way; forward: without a graph; training: with the gradients of all parameters."""
    torch.manual_seed(0)
    y = torch.randn(shape).to(device=device, dtype=dtype)
    upstream = torch.randn(shape).to(device=device, dtype=dtype)
    tensors = 8 if work == "training" else 3

    def build(name):
        if name == "floor":
            return floor(y, tensors=tensors)
        name, _, layout = name.partition(" ")
        place = channels_last if layout else torch.Tensor.contiguous
        x = place(y).detach().requires_grad_(work == "training")
        return peers.neuron_step(module(name, shape[2]).to(device), x, place(upstream))

    enter(build, elements=y.numel(), floor_bytes=tensors * y.numel() * y.element_size())


def channels_last(x):
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


def module(name, channels):
    if name.startswith("ours-"):
        return Ours(channels, name.removeprefix("ours-"))
    neuron = peers.published_loop if name == "batchnorm+published-loop" else lambda x: lif(x, Neuron.paper())
    return Pair(channels, neuron)


class Ours(nn.Module):
    def __init__(self, channels, backend):
        super().__init__()
        self.layer, self.backend = layers.BatchNormLIF(channels), backend

    def forward(self, y):
        with use_backend(self.backend):
            return self.layer(y)


class Pair(nn.Module):
    """nn.BatchNorm2d over time and batch taken together, then the neuron."""

    def __init__(self, channels, neuron):
        super().__init__()
        self.norm, self.neuron = nn.BatchNorm2d(channels), neuron

    def forward(self, y):
        return self.neuron(self.norm(y.flatten(0, 1)).unflatten(0, y.shape[:2]))
