"""The LIF op: schema, fake, and its autograd function.

One op runs all time steps forward and one runs them backward.  The backward op
recomputes the membrane potential from x, so x is all that is saved; sequences of more
than ``CHECKPOINT_EVERY`` steps add the potential at every such step, so that a backward
kernel can hold one chunk's potentials on chip and still read x once.

Both return a list of what was asked for, in this order: spikes, v, sam, checkpoints; grad_x, grad_v_init, grad_leak.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backend import resolve
from ..neuron import Neuron
from . import composed
from .layout import Layout, layout_of
from .library import LIBRARY, beyond_kernels, register, register_autograd, requires_grad

CHECKPOINT_EVERY = 16

LIBRARY.define(
    "lif_forward(Tensor x, Tensor? v_init, Tensor? leak, str neuron, str backend, int time_dim, SymInt time_steps,"
    " int channel_dim, bool return_v, bool return_sam, bool save_checkpoints) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "lif_backward(Tensor x, Tensor? v_init, Tensor? leak, Tensor? checkpoints, Tensor? grad_spikes, Tensor? grad_v,"
    " Tensor? grad_sam, str neuron, str backend, int time_dim, SymInt time_steps, int channel_dim, bool need_v_init,"
    " bool need_leak) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Membrane potential and arithmetic: float32, or float64 for float64 storage."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def constant_neuron(neuron: str, leak: Tensor | None) -> str | None:
    """What the choice of a backend may depend on: no kernel is compiled for a decay or tau that is a tensor."""
    return neuron if leak is None else None


def checkpoint_count(time_steps: int) -> int:
    """Membrane potentials that a sequence keeps for its backward pass: after step 16, 32, ..."""
    return (time_steps - 1) // CHECKPOINT_EVERY if time_steps > 0 else 0


def check_checkpoints(checkpoints: Tensor | None, layout: Layout, dtype: torch.dtype) -> None:
    """Raises ValueError unless a backward pass is given the potentials that its kernels read; `lif` and `bn_lif` give
    them, who calls the op itself may not."""
    wanted = checkpoint_count(layout.steps)
    if wanted and (checkpoints is None or checkpoints.shape != (wanted, layout.outer, layout.frame)):
        got = "None" if checkpoints is None else list(checkpoints.shape)
        raise ValueError(
            f"checkpoints must be {[wanted, layout.outer, layout.frame]} for {layout.steps} time steps, got {got}: "
            "pass what the forward op returned with save_checkpoints=True"
        )
    if wanted and checkpoints is not None and checkpoints.dtype != state_dtype(dtype):
        raise ValueError(f"checkpoints must be {state_dtype(dtype)}, got {checkpoints.dtype}")


def _layout(x: Tensor, time_dim: int, time_steps: int, channel_dim: int) -> Layout:
    layout = layout_of(x, time_dim=time_dim, time_steps=time_steps, channel_dim=channel_dim)
    if layout is None:
        raise RuntimeError(
            f"x of shape {tuple(x.shape)} and strides {x.stride()} is not dense; call ckd_kernels.lif, which copies it"
        )
    return layout


def allocate(
    x: Tensor, layout: Layout, return_v: bool, return_sam: bool, save_checkpoints: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    state, time_dim = state_dtype(x.dtype), layout.time_dim
    spikes = layout.output(x)
    v = layout.empty(x, dtype=state, without=(time_dim,)) if return_v else None
    sam = layout.empty(x, dtype=torch.float32, without=(time_dim, layout.channel_dim)) if return_sam else None
    checkpoints = None
    if save_checkpoints:
        size = (checkpoint_count(layout.steps), layout.outer, layout.frame)
        checkpoints = torch.empty(size, dtype=state, device=x.device)
    return spikes, v, sam, checkpoints


def nothing_fired(neuron: str, v_init: Tensor | None, out: tuple[Tensor | None, ...]) -> None:
    """What `allocate` gave where there are no time steps or no elements: no time step changed the potential."""
    _, v, sam, _ = out
    if v is not None:
        v.copy_(v_init) if v_init is not None else v.fill_(Neuron.from_spec(neuron).rest)
    if sam is not None:
        sam.zero_()


def present(tensors: tuple[Tensor | None, ...]) -> list[Tensor]:
    return [t for t in tensors if t is not None]


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
) -> list[Tensor]:
    layout = _layout(x, time_dim, time_steps, channel_dim)
    out = allocate(x, layout, return_v, return_sam, save_checkpoints)
    if out[0].numel() > 0:
        if v_init is not None:
            v_init = layout.aligned(v_init, without=(time_dim,))
        resolve(backend, "lif", x.device, x.dtype, constant_neuron(neuron, leak)).lif_forward(
            Neuron.from_spec(neuron),
            layout,
            x,
            v_init,
            leak,
            *out,
        )
    else:
        nothing_fired(neuron, v_init, out)
    return present(out)


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
) -> list[Tensor]:
    layout = _layout(x, time_dim, time_steps, channel_dim)
    return present(allocate(x, layout, return_v, return_sam, save_checkpoints))


def allocate_gradients(
    x: Tensor, leak: Tensor | None, layout: Layout, need_v_init: bool, need_leak: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    grad_v_init = None
    if need_v_init:
        grad_v_init = layout.empty(x, dtype=state_dtype(x.dtype), without=(layout.time_dim,))
    return torch.empty_like(x), grad_v_init, torch.empty_like(leak) if need_leak and leak is not None else None


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
) -> list[Tensor]:
    layout = _layout(x, time_dim, time_steps, channel_dim)
    out = allocate_gradients(x, leak, layout, need_v_init, need_leak)
    grad_x, grad_v_init, grad_leak = out
    if x.numel() > 0 and time_steps > 0:
        check_checkpoints(checkpoints, layout, x.dtype)
        if v_init is not None:
            v_init = layout.aligned(v_init, without=(time_dim,))
        if grad_spikes is not None:
            grad_spikes = layout.aligned(grad_spikes)
        if grad_v is not None:
            grad_v = layout.aligned(grad_v, without=(time_dim,))
        if grad_sam is not None:
            grad_sam = layout.aligned(grad_sam, without=(time_dim, channel_dim))
        resolve(backend, "lif", x.device, x.dtype, constant_neuron(neuron, leak)).lif_backward(
            Neuron.from_spec(neuron),
            layout,
            x,
            v_init,
            leak,
            checkpoints,
            grad_spikes,
            grad_v,
            grad_sam,
            *out,
        )
    else:
        grad_x.zero_()
        if grad_leak is not None:
            grad_leak.zero_()
        if grad_v_init is not None:
            grad_v_init.copy_(grad_v) if grad_v is not None else grad_v_init.zero_()
    return present(out)


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
) -> list[Tensor]:
    layout = _layout(x, time_dim, time_steps, channel_dim)
    return present(allocate_gradients(x, leak, layout, need_v_init, need_leak))


lif_forward = register("lif_forward", _lif_forward, _lif_forward_fake, autograd=True)
lif_backward = register("lif_backward", _lif_backward, _lif_backward_fake)


class LIFFunction(torch.autograd.Function):
    """Differentiable LIF over the two ops: spikes, then v and sam where asked for.

    Without ``setup_context``, for which PyTorch inspects the signature at every call; that takes
    longer than all else here.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        v_init: Tensor | None,
        leak: Tensor | None,
        place: tuple[str, str, int, int, int],
        returned: tuple[bool, bool],
        save_checkpoints: bool,
    ) -> tuple[Tensor, ...]:
        out = lif_forward(x, v_init, leak, *place, *returned, save_checkpoints)
        ctx.save_for_backward(x, v_init, leak, out[-1] if save_checkpoints else None)
        ctx.place, ctx.returned = place, returned
        ctx.set_materialize_grads(False)
        return tuple(out[:-1] if save_checkpoints else out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:  # type: ignore[override]
        if all(grad is None for grad in grads):
            return (None,) * 6
        saved, needs, place, returned = ctx.saved_tensors, ctx.needs_input_grad[:3], ctx.place, ctx.returned
        if not beyond_kernels(grads):
            return *_gradients(saved, grads, needs, place, returned), None, None, None
        found = composed.backward(
            lambda x, v_init, leak: composed.lif(x, v_init, leak, place, returned),
            lambda: _gradients(saved, grads, needs, place, returned),
            *(saved[:3], grads, needs),
        )
        return *found, None, None, None


def _gradients(
    saved: tuple[Tensor | None, ...],
    grads: tuple[Tensor | None, ...],
    needs: tuple[bool, ...],
    place: tuple[str, str, int, int, int],
    returned: tuple[bool, bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of x, v_init and leak where they are needed, by the kernels."""
    return_v, return_sam = returned
    need_x, need_v_init, need_leak = needs
    grad_v, grad_sam = grads[1] if return_v else None, grads[-1] if return_sam else None
    out = lif_backward(*saved, grads[0], grad_v, grad_sam, *place, need_v_init, need_leak)
    return out[0] if need_x else None, out[1] if need_v_init else None, out[-1] if need_leak else None


def _lif_differentiable(
    below_autograd: Any,
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
) -> list[Tensor]:
    place, returned = (neuron, backend, time_dim, time_steps, channel_dim), (return_v, return_sam)
    if save_checkpoints or not requires_grad(x, v_init, leak):
        return below_autograd(x, v_init, leak, *place, *returned, save_checkpoints)
    return list(LIFFunction.apply(x, v_init, leak, place, returned, checkpoint_count(time_steps) > 0))


register_autograd("lif_forward", _lif_differentiable)
