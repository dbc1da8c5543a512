"""The LIF op: schema, fake, and its autograd function.

One op runs all time steps forward and one runs them backward.  The backward op
recomputes the membrane potential from x, so x is all that is saved; sequences of more
than ``CHECKPOINT_EVERY`` steps add the potential at every such step, so that a backward
kernel can hold one chunk's potentials on chip and still read x once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..backend import resolve
from ..neuron import Neuron
from .layout import Layout, layout_of
from .library import LIBRARY, register

CHECKPOINT_EVERY = 16

LIBRARY.define(
    "lif_forward(Tensor x, Tensor? v_init, Tensor? leak, str neuron, str backend, int time_dim, SymInt time_steps,"
    " int channel_dim, bool return_v, bool return_sam, bool save_checkpoints) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "lif_backward(Tensor x, Tensor? v_init, Tensor? leak, Tensor? checkpoints, Tensor? grad_spikes, Tensor? grad_v,"
    " Tensor? grad_sam, str neuron, str backend, int time_dim, SymInt time_steps, int channel_dim, bool need_v_init,"
    " bool need_leak) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Membrane potential and arithmetic: float32, or float64 for float64 storage."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def checkpoint_count(time_steps: int) -> int:
    """Membrane potentials that a sequence keeps for its backward pass: after step 16, 32, ..."""
    return (time_steps - 1) // CHECKPOINT_EVERY if time_steps > 0 else 0


def _layout(x: Tensor, time_dim: int, time_steps: int, channel_dim: int) -> Layout:
    layout = layout_of(x, time_dim=time_dim, time_steps=time_steps, channel_dim=channel_dim)
    if layout is None:
        raise RuntimeError(
            f"x of shape {tuple(x.shape)} and strides {x.stride()} is not dense; call ckd_kernels.lif, which copies it"
        )
    return layout


def _allocate(
    x: Tensor, layout: Layout, return_v: bool, return_sam: bool, save_checkpoints: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    state = state_dtype(x.dtype)
    nothing = (0,)
    return (
        layout.empty(x),
        layout.empty(x, dtype=state, without=(layout.time_dim,)) if return_v else x.new_empty(nothing, dtype=state),
        layout.empty(x, dtype=torch.float32, without=(layout.time_dim, layout.channel_dim))
        if return_sam
        else x.new_empty(nothing, dtype=torch.float32),
        x.new_empty(
            (checkpoint_count(layout.steps), layout.outer, layout.frame) if save_checkpoints else nothing, dtype=state
        ),
    )


def _lif_forward(
    x: Tensor,
    v_init: Tensor | None,
    leak: Tensor | None,
    neuron: str,
    backend: str,
    time_dim: int,
    time_steps: int,
    channel_dim: int,
    return_v: bool,
    return_sam: bool,
    save_checkpoints: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layout = _layout(x, time_dim, time_steps, channel_dim)
    out = _allocate(x, layout, return_v, return_sam, save_checkpoints)
    spikes, v, sam, checkpoints = out
    if spikes.numel() > 0:
        if v_init is not None:
            v_init = layout.aligned(v_init, without=(time_dim,))
        resolve(backend, "lif", x.device, x.dtype).lif_forward(
            Neuron.from_spec(neuron),
            layout,
            x,
            v_init,
            leak,
            spikes,
            v if return_v else None,
            sam if return_sam else None,
            checkpoints if save_checkpoints else None,
        )
    else:
        # No spike fired, and no time step changed the potential.
        if return_v and v_init is not None:
            v.copy_(v_init)
        elif return_v:
            v.fill_(Neuron.from_spec(neuron).rest)
        sam.zero_()
    return out


def _lif_forward_fake(
    x: Tensor,
    v_init: Tensor | None,
    leak: Tensor | None,
    neuron: str,
    backend: str,
    time_dim: int,
    time_steps: int,
    channel_dim: int,
    return_v: bool,
    return_sam: bool,
    save_checkpoints: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _allocate(x, _layout(x, time_dim, time_steps, channel_dim), return_v, return_sam, save_checkpoints)


def _allocate_gradients(
    x: Tensor, leak: Tensor | None, layout: Layout, need_v_init: bool, need_leak: bool
) -> tuple[Tensor, Tensor, Tensor]:
    state = state_dtype(x.dtype)
    return (
        torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device),
        layout.empty(x, dtype=state, without=(layout.time_dim,)) if need_v_init else x.new_empty((0,), dtype=state),
        torch.empty_like(leak) if need_leak and leak is not None else x.new_empty((0,), dtype=state),
    )


def _lif_backward(
    x: Tensor,
    v_init: Tensor | None,
    leak: Tensor | None,
    checkpoints: Tensor | None,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    grad_sam: Tensor | None,
    neuron: str,
    backend: str,
    time_dim: int,
    time_steps: int,
    channel_dim: int,
    need_v_init: bool,
    need_leak: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    layout = _layout(x, time_dim, time_steps, channel_dim)
    out = _allocate_gradients(x, leak, layout, need_v_init, need_leak)
    grad_x, grad_v_init, grad_leak = out
    if x.numel() > 0 and time_steps > 0:
        if v_init is not None:
            v_init = layout.aligned(v_init, without=(time_dim,))
        if grad_spikes is not None:
            grad_spikes = layout.aligned(grad_spikes)
        if grad_v is not None:
            grad_v = layout.aligned(grad_v, without=(time_dim,))
        if grad_sam is not None:
            grad_sam = layout.aligned(grad_sam, without=(time_dim, channel_dim))
        resolve(backend, "lif", x.device, x.dtype).lif_backward(
            Neuron.from_spec(neuron),
            layout,
            x,
            v_init,
            leak,
            checkpoints,
            grad_spikes,
            grad_v,
            grad_sam,
            grad_x,
            grad_v_init if need_v_init else None,
            grad_leak if need_leak else None,
        )
    else:
        grad_x.zero_()
        grad_leak.zero_()
        if grad_v is not None and need_v_init:
            grad_v_init.copy_(grad_v)
        else:
            grad_v_init.zero_()
    return out


def _lif_backward_fake(
    x: Tensor,
    v_init: Tensor | None,
    leak: Tensor | None,
    checkpoints: Tensor | None,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    grad_sam: Tensor | None,
    neuron: str,
    backend: str,
    time_dim: int,
    time_steps: int,
    channel_dim: int,
    need_v_init: bool,
    need_leak: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _allocate_gradients(x, leak, _layout(x, time_dim, time_steps, channel_dim), need_v_init, need_leak)


register("lif_forward", _lif_forward, _lif_forward_fake)
register("lif_backward", _lif_backward, _lif_backward_fake)


class LIFFunction(torch.autograd.Function):
    """Differentiable LIF over the two ops; gradients for x, v_init and leak where they are needed."""

    @staticmethod
    def forward(  # type: ignore[override]
        x: Tensor,
        v_init: Tensor | None,
        leak: Tensor | None,
        neuron: str,
        backend: str,
        time_dim: int,
        time_steps: int,
        channel_dim: int,
        return_v: bool,
        return_sam: bool,
        save_checkpoints: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return torch.ops.ckd_kernels.lif_forward(
            x,
            v_init,
            leak,
            neuron,
            backend,
            time_dim,
            time_steps,
            channel_dim,
            return_v,
            return_sam,
            save_checkpoints,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, v_init, leak, *ctx.options, return_v, return_sam, save_checkpoints = inputs
        ctx.returned = return_v, return_sam
        _, v, sam, checkpoints = output
        ctx.save_for_backward(x, v_init, leak, checkpoints if save_checkpoints else None)
        unused = [t for t, used in ((v, return_v), (sam, return_sam), (checkpoints, False)) if not used]
        ctx.mark_non_differentiable(*unused)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple:
        # torch.compile hands gradients even for outputs that carry none.
        return_v, return_sam = ctx.returned
        grad_spikes = grad_outputs[0]
        grad_v = grad_outputs[1] if return_v else None
        grad_sam = grad_outputs[2] if return_sam else None
        if grad_spikes is None and grad_v is None and grad_sam is None:
            return (None,) * 11
        x, v_init, leak, checkpoints = ctx.saved_tensors
        need_x, need_v_init, need_leak = ctx.needs_input_grad[:3]
        grad_x, grad_v_init, grad_leak = torch.ops.ckd_kernels.lif_backward(
            x,
            v_init,
            leak,
            checkpoints,
            grad_spikes,
            grad_v,
            grad_sam,
            *ctx.options,
            need_v_init,
            need_leak,
        )
        return (
            grad_x if need_x else None,
            grad_v_init if need_v_init else None,
            grad_leak if need_leak else None,
            *(None,) * 8,
        )
