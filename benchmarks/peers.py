"""What our kernels are compared with: each peer is a function from input currents [T, ...] to spikes.

All of them are the neuron of the CKDSNN paper (`Neuron.paper()`): decay 0.5, spike above 1, hard reset to 0 through
the graph, triangle surrogate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class TriangleSpike(torch.autograd.Function):
    """A spike where ``u > 0``; its derivative is ``max(0, 1 - |u|)``."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return grad * (1 - u.abs()).clamp(min=0)


def published_loop(x: Tensor) -> Tensor:
    """As the paper's code has it: x is indexed at every step, so its gradient is T full-size tensors, added up."""
    v: Tensor | float = 0.0
    spikes = []
    for t in range(x.shape[0]):
        v = v * 0.5 + x[t]
        s = TriangleSpike.apply(v - 1.0)
        v = (1 - s) * v
        spikes.append(s)
    return torch.stack(spikes)


def fair_loop(x: Tensor) -> Tensor:
    """The same steps over ``x.unbind()``, whose backward is one stack."""
    v: Tensor | float = 0.0
    spikes = []
    for current in x.unbind():
        v = v * 0.5 + current
        s = TriangleSpike.apply(v - 1.0)
        v = (1 - s) * v
        spikes.append(s)
    return torch.stack(spikes)


@functools.cache
def compiled_loop() -> Callable[[Tensor], Tensor]:
    """The fair loop through `torch.compile`, one static graph for each shape."""
    return torch.compile(fair_loop, dynamic=False)


def mean_map(spikes: Tensor) -> Tensor:
    """A spike activation map as one writes it in PyTorch; in float32, where 2-byte sums would saturate."""
    return spikes.mean((0, 2), dtype=torch.float32)
