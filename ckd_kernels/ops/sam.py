"""The SAM op for spikes that exist already; `lif` computes it beside the spikes for nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backend import resolve
from .layout import Layout, layout_of
from .library import LIBRARY, register, register_autograd, requires_grad

LIBRARY.define(
    "sam(Tensor spikes, str backend, int time_dim, SymInt time_steps, int channel_dim) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _allocate(spikes: Tensor, time_dim: int, time_steps: int, channel_dim: int) -> tuple[Layout, Tensor]:
    layout = layout_of(spikes, time_dim=time_dim, time_steps=time_steps, channel_dim=channel_dim)
    if layout is None:
        raise RuntimeError(
            f"spikes of shape {tuple(spikes.shape)} and strides {spikes.stride()} are not dense;"
            " call ckd_kernels.sam, which copies them"
        )
    dtype = torch.float64 if spikes.dtype == torch.float64 else torch.float32
    return layout, layout.empty(spikes, dtype=dtype, without=(time_dim, channel_dim))


def _sam(spikes: Tensor, backend: str, time_dim: int, time_steps: int, channel_dim: int) -> Tensor:
    layout, out = _allocate(spikes, time_dim, time_steps, channel_dim)
    if spikes.numel() > 0:
        resolve(backend, "sam", spikes.device, spikes.dtype).sam(layout, spikes, out)
    else:
        out.zero_()
    return out


def _sam_fake(spikes: Tensor, backend: str, time_dim: int, time_steps: int, channel_dim: int) -> Tensor:
    return _allocate(spikes, time_dim, time_steps, channel_dim)[1]


sam = register("sam", _sam, _sam_fake, autograd=True)


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
        spread = (grad / ctx.count).to(ctx.dtype).unsqueeze(first).unsqueeze(second)
        return spread.expand(ctx.shape), None, None, None, None


def _sam_differentiable(
    below_autograd: Any, spikes: Tensor, backend: str, time_dim: int, time_steps: int, channel_dim: int
) -> Tensor:
    if not requires_grad(spikes):
        return below_autograd(spikes, backend, time_dim, time_steps, channel_dim)
    return SAMFunction.apply(spikes, backend, time_dim, time_steps, channel_dim)


register_autograd("sam", _sam_differentiable)
