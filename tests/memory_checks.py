"""What the tests of `one_bit_spikes` share: a network and its gradients."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from ckd_kernels import Neuron, lif
from tolerances import assert_same

PAPER = Neuron.paper()


def currents(*shape, dtype=torch.float32, device="cpu"):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.4).to(device, dtype)


class Network(nn.Module):
    """Convolutions over flattened time, spikes that feed two of them, a view by unflatten, a linear head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 5, 3, padding=1, stride=2)
        self.shortcut = nn.Conv2d(6, 5, 1, stride=2)
        self.head = nn.Linear(5 * 4 * 4, 7)

    def forward(self, x):
        spikes = lif(self.first(x.flatten(0, 1)).unflatten(0, x.shape[:2]), PAPER)
        flat = spikes.flatten(0, 1)
        y = self.second(flat) + self.shortcut(flat)
        spikes = lif(y.unflatten(0, x.shape[:2]), PAPER)
        return self.head(spikes.flatten(2))


def gradients(module, x, context=None, run=None):
    """Of all parameters and x."""
    x = x.detach().requires_grad_()
    module.zero_grad()
    with context or contextlib.nullcontext():
        out = (module if run is None else run)(x)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    out.backward(upstream)
    return [x.grad, *(p.grad.clone() for p in module.parameters())]


def assert_same_gradients(actual, expected):
    for number, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_same(f"gradient {number}", a, e)
