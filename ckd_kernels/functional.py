"""Spiking neurons as functions: all time steps in one call, differentiable, on every backend."""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from .backend import requested
from .neuron import Neuron
from .ops.layout import dense
from .ops.lif import LIFFunction, checkpoint_count, state_dtype
from .ops.sam import SAMFunction

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class LIFOutput(NamedTuple):
    """What `lif` returns when asked for more than spikes; what was not asked for is None."""

    spikes: Tensor
    v: Tensor | None
    sam: Tensor | None


@overload
def lif(
    x: Tensor,
    neuron: Neuron,
    *,
    time_dim: int = ...,
    v_init: Tensor | None = ...,
    decay: Tensor | None = ...,
    tau: Tensor | None = ...,
    return_v: Literal[False] = ...,
    return_sam: Literal[False] = ...,
    channel_dim: int | None = ...,
) -> Tensor: ...
@overload
def lif(
    x: Tensor,
    neuron: Neuron,
    *,
    time_dim: int = ...,
    v_init: Tensor | None = ...,
    decay: Tensor | None = ...,
    tau: Tensor | None = ...,
    return_v: bool = ...,
    return_sam: bool = ...,
    channel_dim: int | None = ...,
) -> Tensor | LIFOutput: ...
def lif(
    x: Tensor,
    neuron: Neuron,
    *,
    time_dim: int = 0,
    v_init: Tensor | None = None,
    decay: Tensor | None = None,
    tau: Tensor | None = None,
    return_v: bool = False,
    return_sam: bool = False,
    channel_dim: int | None = None,
) -> Tensor | LIFOutput:
    """Runs a spiking neuron over all time steps of its input.

    Spikes are bit-identical on every backend and to a plain PyTorch loop in float32; the
    backward pass recomputes the membrane potential, so that only ``x`` is kept for it.  State
    and arithmetic are float32 whatever the storage type (float64 for float64).

    Args:
        x: input current, ``[T, B, ...]`` or ``[B, T, ...]``; float32, bfloat16, float16, or float64
            (CPU and reference).  Contiguous and channels-last memory are read in place; so is one frame
            that `torch.Tensor.expand` repeats T times, which is read once.
        neuron: how it charges, fires and resets, see :class:`Neuron`.
        time_dim: 0 or 1, where time is.
        v_init: membrane potential before the first step, x's shape without time; default: the
            neuron's ``v_reset`` (0 without one).
        decay: learnable decay, one value or one a channel, in place of ``neuron.decay``; only with
            ``charge="decay"``.  Its values are not checked: keep them in [0, 1].
        tau: learnable time constant likewise, only with ``charge="leak"`` or ``"leak_input"``; keep it > 1.
        return_v: also return the membrane potential after the last step, in float32 (float64).  Given as
            ``v_init`` to a call on the following steps it continues the sequence bit by bit.
        return_sam: also return the spike activation map, the mean of the spikes over time and channels
            (CKDSNN, AAAI 2026), at next to no cost.
        channel_dim: where channels are, counted with time (default 2); only with ``return_sam`` or
            a decay or tau of one value a channel.

    Returns:
        Spikes (0 or 1) in x's shape, dtype and memory format; or, with ``return_v`` or ``return_sam``, an
        :class:`LIFOutput` of ``spikes``, ``v`` (x's shape without time) and ``sam`` (float32, x's shape
        without time and channels).

    Raises:
        TypeError, ValueError: an argument of a wrong type, shape or range, or one that has no use here.
        RuntimeError: the backend asked for cannot run this call.

    Example:
        >>> import torch
        >>> from ckd_kernels import Neuron, lif
        >>> x = torch.tensor([0.8, 0.8, 0.8]).reshape(3, 1, 1)  # [T, B, C]
        >>> out = lif(x, Neuron.paper(), return_v=True, return_sam=True)
        >>> out.spikes.flatten()
        tensor([0., 1., 0.])
        >>> out.v.item(), round(out.sam.item(), 4)
        (0.800000011920929, 0.3333)
    """
    if not isinstance(neuron, Neuron):
        raise TypeError(f"neuron must be a ckd_kernels.Neuron, e.g. Neuron.paper(); got {type(neuron).__name__}")
    time_dim = _check_input("x", x, time_dim)
    steps = x.shape[time_dim]
    leak = _check_leak(x, neuron, decay, tau)
    per_channel = leak is not None and leak.dim() > 0
    # A leak of one channel is one value; channel_dim may be given with it all the same.
    one_channel = channel_dim is not None and any(t is not None and t.dim() == 1 for t in (decay, tau))
    channel_dim = _check_channel_dim(x, time_dim, channel_dim, used=return_sam or per_channel or one_channel)
    if leak is not None and per_channel and leak.shape != (x.shape[channel_dim],):
        raise ValueError(
            f"{neuron.leak_name} has shape {tuple(leak.shape)}; it must be one value, or one for each of the"
            f" {x.shape[channel_dim]} channels (dimension {channel_dim} of x)"
        )
    frame_shape = (*x.shape[:time_dim], *x.shape[time_dim + 1 :])
    if v_init is not None:
        v_init = _check_v_init(v_init, x, frame_shape)
    x = _in_place(x, time_dim, channel_dim)
    grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, v_init, leak))
    spikes, *rest = LIFFunction.apply(
        x,
        v_init,
        leak,
        neuron.spec,
        requested(),
        time_dim,
        steps,
        channel_dim,
        return_v,
        return_sam,
        grad and checkpoint_count(steps) > 0,
    )
    if not (return_v or return_sam):
        return spikes
    return LIFOutput(spikes, rest[0] if return_v else None, rest[-1] if return_sam else None)


def sam(spikes: Tensor, *, time_dim: int = 0, channel_dim: int = 2) -> Tensor:
    """Spike activation map: the mean of spikes over time and channels (CKDSNN, AAAI 2026).

    For spikes that a call of :func:`lif` makes, ``return_sam=True`` there is cheaper.  Sums of binary
    spikes are exact, so the map does not depend on the order of summation.

    Args:
        spikes: ``[T, B, C, ...]`` or ``[B, T, C, ...]``, or any other place of time and channels;
            float32, bfloat16, float16, or float64 (CPU and reference).
        time_dim: 0 or 1, where time is.
        channel_dim: where channels are, counted with time.

    Returns:
        float32 (float64 for float64) ``[B, *spatial]``: the shape of ``spikes`` without time and channels.

    Raises:
        TypeError, ValueError: an argument of a wrong type, shape or range.
        RuntimeError: the backend asked for cannot run this call.

    Example:
        >>> import torch
        >>> from ckd_kernels import sam
        >>> sam(torch.ones(4, 2, 8, 3, 3)).shape
        torch.Size([2, 3, 3])
    """
    time_dim = _check_input("spikes", spikes, time_dim)
    steps = spikes.shape[time_dim]
    channel_dim = _check_channel_dim(spikes, time_dim, channel_dim, used=True)
    return SAMFunction.apply(_in_place(spikes, time_dim, channel_dim), requested(), time_dim, steps, channel_dim)


def _check_input(name: str, x: Tensor, time_dim: int) -> int:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in _DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {x.dtype}; convert it first")
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {x.layout}; call {name}.to_dense()")
    if isinstance(time_dim, bool) or not isinstance(time_dim, int):
        raise TypeError(f"time_dim must be 0 or 1, got {time_dim!r}")
    if time_dim not in (0, 1) or time_dim >= x.dim():
        raise ValueError(f"time_dim must be 0 or 1 and a dimension of {name}, got {time_dim} for {x.dim()} dimensions")
    return time_dim


def _check_channel_dim(x: Tensor, time_dim: int, channel_dim: int | None, *, used: bool) -> int:
    """The dimension of channels, or -1 where channels are not told apart."""
    if not used:
        if channel_dim is not None:
            raise ValueError(
                f"channel_dim={channel_dim!r} is only used with return_sam or a leak per channel; leave it out"
            )
        return -1
    if channel_dim is None:
        channel_dim = 2
    if isinstance(channel_dim, bool) or not isinstance(channel_dim, int):
        raise TypeError(f"channel_dim must be an integer, got {channel_dim!r}")
    if not -x.dim() <= channel_dim < x.dim():
        raise ValueError(f"channel_dim {channel_dim} is out of range for {x.dim()} dimensions")
    channel_dim %= x.dim()
    if channel_dim == time_dim:
        raise ValueError(f"channel_dim and time_dim are both {time_dim}; they must differ")
    return channel_dim


def _check_leak(x: Tensor, neuron: Neuron, decay: Tensor | None, tau: Tensor | None) -> Tensor | None:
    """The learnable decay or tau that this neuron's charge uses, in the dtype of the arithmetic."""
    leak = None
    for name, value in (("decay", decay), ("tau", tau)):
        if value is None:
            continue
        if name != neuron.leak_name:
            raise ValueError(f"{name} is not used with charge={neuron.charge!r}; leave it out")
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {value!r}; a constant belongs in Neuron({name}=...)")
        if not value.dtype.is_floating_point:
            raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
        if value.device != x.device:
            raise ValueError(f"{name} is on {value.device} but x is on {x.device}; move one of them")
        leak = (value.reshape(()) if value.numel() == 1 else value).to(state_dtype(x.dtype)).contiguous()
    return leak


def _check_v_init(v_init: Tensor, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(v_init, Tensor):
        raise TypeError(f"v_init must be a tensor of shape {shape}, got {type(v_init).__name__}")
    if not v_init.dtype.is_floating_point:
        raise TypeError(f"v_init must be a floating-point tensor, got {v_init.dtype}")
    if tuple(v_init.shape) != shape:
        raise ValueError(f"v_init must have x's shape without time, {shape}; got {tuple(v_init.shape)}")
    if v_init.device != x.device:
        raise ValueError(f"v_init is on {v_init.device} but x is on {x.device}; move one of them")
    return v_init.to(state_dtype(x.dtype))


def _in_place(x: Tensor, time_dim: int, channel_dim: int) -> Tensor:
    """x as the ops take it: dense, or the single frame that it repeats."""
    if x.shape[time_dim] > 1 and x.stride(time_dim) == 0 and not _watched(x):
        x = _frame(x, time_dim)
    return dense(x, time_dim=time_dim, channel_dim=channel_dim)


def _watched(x: Tensor) -> bool:
    """Whether somebody sees the gradient of x itself, which must then have a value for every time step."""
    if not x.requires_grad:
        return False
    if torch.compiler.is_compiling():
        return x.is_leaf
    return x.is_leaf or x.retains_grad or bool(x._backward_hooks)


def _frame(x: Tensor, time_dim: int) -> Tensor:
    """The frame that x repeats over time, with a time dimension of size 1.

    Taken from the tensor that was expanded where autograd allows: its gradient is then one frame,
    summed over time in registers, where the gradient of a slice of x would be T frames.
    """
    if not torch.compiler.is_compiling() and x._base is not None and _expands(x, x._base):
        frame = x._base.unsqueeze(time_dim) if x._base.dim() < x.dim() else x._base
        if frame.shape == x.narrow(time_dim, 0, 1).shape:
            return frame
    return x.narrow(time_dim, 0, 1)


def _expands(x: Tensor, base: Tensor) -> bool:
    """Whether x is ``base.expand(...)`` or ``base.unsqueeze(...).expand(...)``."""
    node = x.grad_fn
    if node is None or node.name() != "ExpandBackward0":
        return False
    node = node.next_functions[0][0]
    if node is not None and node.name() == "UnsqueezeBackward0":
        node = node.next_functions[0][0]
    return node is not None and (node is base.grad_fn or getattr(node, "variable", None) is base)
