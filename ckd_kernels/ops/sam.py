"""The SAM op for spikes that exist already; `lif` computes it beside the spikes for nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backend import resolve
from ..call import state_dtype
from .layout import Layout, dense_layout_of
from .library import LIBRARY, TAGS, register, requires_grad

LIBRARY.define(
    "sam(Tensor spikes, str backend, int time_dim, SymInt time_steps, int channel_dim) -> Tensor",
    tags=TAGS,
)


def _allocate(spikes: Tensor, *dims: int) -> tuple[Layout, Tensor]:
    layout = dense_layout_of(spikes, "spikes", "sam", *dims)
    return layout, layout.empty(state_dtype(spikes.dtype), spikes.device, (layout.time_dim, layout.channel_dim))


def _sam(spikes: Tensor, backend: str, *dims: int) -> Tensor:
    layout, out = _allocate(spikes, *dims)
    if spikes.numel() > 0:
        resolve(backend, "sam", spikes.device, spikes.dtype).sam(layout, spikes, out)
    else:
        out.zero_()
    return out


def _sam_fake(spikes: Tensor, backend: str, *dims: int) -> Tensor:
    return _allocate(spikes, *dims)[1]


class SAMFunction(torch.autograd.Function):
    """Differentiable SAM; its gradient is one value a location, repeated over time and channels by strides."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, spikes: Tensor, backend: str, time_dim: int, time_steps: int, channel_dim: int
    ) -> Tensor:
        ctx.time_dim, ctx.channel_dim = time_dim, channel_dim
        ctx.shape, ctx.dtype = spikes.shape, spikes.dtype
        # One frame that stands for all time steps gets the gradient of each of them.
        ctx.count = spikes.shape[channel_dim] * (time_steps if spikes.shape[time_dim] == time_steps else 1)
        return sam(spikes, backend, time_dim, time_steps, channel_dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:  # type: ignore[override]
        first, second = sorted((ctx.time_dim, ctx.channel_dim))
        frame = (grad / ctx.count).to(ctx.dtype).unsqueeze(first).unsqueeze(second)
        return frame.expand(ctx.shape), None, None, None, None


def _differentiable(below_autograd: Any, spikes: Tensor, *others: Any) -> Tensor:
    return SAMFunction.apply(spikes, *others) if requires_grad(spikes) else below_autograd(spikes, *others)


sam = register("sam", _sam, _sam_fake, _differentiable)
