"""The door: checks what the public functions are given, and makes the call of it that all else takes."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backend import requested
from .call import Call, Norm, Plan, checkpoint_count, state_dtype
from .neuron import Neuron
from .ops.layout import Layout, layout_from, sizes_of
from .ops.library import COMPOSED, observed, way_of

_CARRIED = " (a stateful layer gives the potential of its last call: reset() it before another sequence)"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def lif_call(
    x: Tensor,
    neuron: Neuron,
    time_dim: int,
    v_init: Tensor | None,
    leaks: tuple[Tensor | None, Tensor | None],
    returned: tuple[bool, bool],
    channel_dim: int | None,
) -> Call:
    """The call of `lif`; ``leaks``: decay and tau."""
    check_neuron(neuron)
    sizes = check_input("x", x, time_dim)
    check_flag("return_v", returned[0])
    check_flag("return_sam", returned[1])
    leak, used = check_leak(x, neuron, *leaks), returned[1]
    if leak is not None:
        # A leak of one channel is one value; channel_dim may be given with it all the same.
        told_apart = channel_dim is not None and any(t is not None and t.dim() == 1 for t in leaks)
        used = used or told_apart or leak.dim() > 0
    channel_dim = check_optional_channel_dim(sizes, time_dim, channel_dim, used=used)
    check_leak_shape(leak, sizes, neuron, channel_dim)
    v_init = check_v_init(v_init, x, sizes, time_dim)
    return _call(x, None, None, None, v_init, leak, None, neuron, sizes, time_dim, channel_dim, returned)


def bn_lif_call(
    y: Tensor,
    affine: tuple[Tensor | None, Tensor | None],
    running: tuple[Tensor | None, Tensor | None],
    neuron: Neuron,
    training: bool,
    momentum: float,
    eps: float,
    residual: Tensor | None,
    time_dim: int,
    channel_dim: int,
    v_init: Tensor | None,
    leaks: tuple[Tensor | None, Tensor | None],
    returned: tuple[bool, bool],
    group: Any,
) -> Call:
    """The call of `bn_lif`; ``affine``: weight and bias."""
    check_neuron(neuron)
    sizes = check_input("y", y, time_dim)
    check_flag("return_v", returned[0])
    check_flag("return_sam", returned[1])
    channel_dim = check_channel_dim(sizes, time_dim, channel_dim)
    weight, bias, mean, var = check_channel_values(y, sizes[channel_dim], channel_dim, *affine, *running)
    check_normalisation(sizes, channel_dim, mean, var, training, momentum, eps, group)
    check_residual(residual, y)
    leak = check_leak(y, neuron, *leaks)
    check_leak_shape(leak, sizes, neuron, channel_dim)
    v_init = check_v_init(v_init, y, sizes, time_dim)
    moves = training and mean is not None and (0 not in sizes or group is not None)
    norm = Norm(None, None, mean, var, moves, momentum, eps, training, group if training else None)
    call = _call(y, weight, bias, residual, v_init, leak, norm, neuron, sizes, time_dim, channel_dim, returned)
    if norm.group is not None and (call.plan.way is COMPOSED or torch.jit.is_tracing()):
        raise RuntimeError(
            "process_group is not supported by torch.func's transforms, forward-mode derivatives and torch.jit.trace;"
            " leave it None there"
        )
    return call


def _call(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    v_init: Tensor | None,
    leak: Tensor | None,
    norm: Norm | None,
    neuron: Neuron,
    sizes: Sequence[int],
    time_dim: int,
    channel_dim: int,
    returned: tuple[bool, bool],
) -> Call:
    way, needs_grad, watched = way_of(x, weight, bias, residual, v_init, leak)
    steps = sizes[time_dim]
    save_checkpoints = needs_grad and checkpoint_count(steps) > 0
    plan = Plan(neuron.spec, requested(), time_dim, steps, channel_dim, *returned, save_checkpoints, way)
    layout = None
    if way is not COMPOSED:
        x, layout = dense(x, sizes, time_dim, channel_dim)
    return Call(x, weight, bias, residual, v_init, leak, norm, plan, None if watched else layout)


def _sizes_of(x: Tensor) -> Sequence[int]:
    sizes = x.shape
    return sizes_of(x) if sizes and type(sizes[0]) is Tensor else sizes


def check_neuron(neuron: Neuron) -> None:
    if not isinstance(neuron, Neuron):
        raise TypeError(f"neuron must be a ckd_kernels.Neuron, e.g. Neuron.paper(); got {type(neuron).__name__}")


def check_flag(name: str, value: bool) -> None:
    if value is not True and value is not False:
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_index(name: str, value: int, expected: str = "an integer") -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be {expected}, got {value!r}")


def check_number(name: str, value: float, *, low: float, high: float, expected: str) -> None:
    """Whether a number lies from ``low`` to ``high``; NaN does not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be {expected}, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def check_eps(eps: float) -> None:
    check_number("eps", eps, low=5e-324, high=sys.float_info.max, expected="a finite number > 0")


def check_momentum(momentum: float) -> None:
    check_number("momentum", momentum, low=0.0, high=1.0, expected="a number in [0, 1]")


def check_group(process_group: Any) -> None:
    kind = getattr(torch.distributed, "ProcessGroup", ())
    if process_group is not None and not isinstance(process_group, kind):
        raise TypeError(
            f"process_group must be a torch.distributed process group or None, got {type(process_group).__name__}"
        )


def check_input(name: str, x: Tensor, time_dim: int) -> Sequence[int]:
    """The sizes of an input that may be read."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in _DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {x.dtype}; convert it first")
    if x.layout is not torch.strided:
        raise _sparse(name, x)
    if type(time_dim) is not int:  # the short way for what is right
        check_index("time_dim", time_dim, "0 or 1")
    sizes = _sizes_of(x)
    if time_dim not in (0, 1) or time_dim >= len(sizes):
        raise ValueError(
            f"time_dim must be 0 or 1 and a dimension of {name}, got {time_dim} for {len(sizes)} dimensions"
        )
    return sizes


def _sparse(name: str, t: Tensor) -> TypeError:
    remedy = f"torch.nested.to_padded_tensor({name}, 0.0)" if t.is_nested else f"{name}.to_dense()"
    return TypeError(f"{name} must be a dense (strided) tensor, got layout {t.layout}; call {remedy}")


def check_optional_channel_dim(sizes: Sequence[int], time_dim: int, channel_dim: int | None, *, used: bool) -> int:
    """The dimension of channels, or -1 where channels are not told apart."""
    if used:
        return check_channel_dim(sizes, time_dim, 2 if channel_dim is None else channel_dim)
    if channel_dim is not None:
        raise ValueError(
            f"channel_dim={channel_dim!r} is only used with return_sam or a leak per channel; leave it out"
        )
    return -1


def check_channel_dim(sizes: Sequence[int], time_dim: int, channel_dim: int) -> int:
    """The dimension of channels."""
    check_index("channel_dim", channel_dim)
    if not -len(sizes) <= channel_dim < len(sizes):
        raise ValueError(f"channel_dim {channel_dim} is out of range for {len(sizes)} dimensions")
    channel_dim %= len(sizes)
    if channel_dim == time_dim:
        raise ValueError(f"channel_dim and time_dim are both {time_dim}; they must differ")
    return channel_dim


def check_leak(x: Tensor, neuron: Neuron, decay: Tensor | None, tau: Tensor | None) -> Tensor | None:
    """The learnable decay or tau that this neuron's charge uses, in the dtype of the arithmetic."""
    if decay is None and tau is None:
        return None
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
        if value.layout is not torch.strided:
            raise _sparse(name, value)
        if value.device != x.device:
            raise ValueError(f"{name} is on {value.device} but x is on {x.device}; move one of them")
        leak = (value.reshape(()) if math.prod(_sizes_of(value)) == 1 else value).to(state_dtype(x.dtype)).contiguous()
    return leak


def check_leak_shape(leak: Tensor | None, sizes: Sequence[int], neuron: Neuron, channel_dim: int) -> None:
    if leak is not None and leak.dim() > 0 and _sizes_of(leak) != (sizes[channel_dim],):
        raise ValueError(
            f"{neuron.leak_name} has shape {tuple(leak.shape)}; it must be one value, or one for each of the"
            f" {sizes[channel_dim]} channels (dimension {channel_dim} of x)"
        )


def check_v_init(v_init: Tensor | None, x: Tensor, sizes: Sequence[int], time_dim: int) -> Tensor | None:
    """The initial membrane potential in the dtype of the arithmetic."""
    if v_init is None:
        return None
    shape = (*sizes[:time_dim], *sizes[time_dim + 1 :])
    if not isinstance(v_init, Tensor):
        raise TypeError(f"v_init must be a tensor of shape {shape}, got {type(v_init).__name__}")
    if not v_init.dtype.is_floating_point:
        raise TypeError(f"v_init must be a floating-point tensor, got {v_init.dtype}")
    if v_init.layout is not torch.strided:
        raise _sparse("v_init", v_init)
    if _sizes_of(v_init) != shape:
        raise ValueError(f"v_init must have x's shape without time, {shape}; got {tuple(v_init.shape)}{_CARRIED}")
    if v_init.device != x.device:
        raise ValueError(f"v_init is on {v_init.device} but x is on {x.device}; move one of them{_CARRIED}")
    return v_init.to(state_dtype(x.dtype))


def check_channel_values(y: Tensor, channels: int, channel_dim: int, *given: Tensor | None) -> list[Tensor | None]:
    """Weight, bias, running_mean and running_var, one value a channel each, in the dtype of the arithmetic."""
    real, device = state_dtype(y.dtype), y.device
    found: list[Tensor | None] = []
    for name, values in zip(("weight", "bias", "running_mean", "running_var"), given, strict=True):
        if values is not None:
            if not isinstance(values, Tensor) or not values.dtype.is_floating_point:
                raise TypeError(f"{name} must be a floating-point tensor of {channels} values, got {_kind(values)}")
            if values.layout is not torch.strided:
                raise _sparse(name, values)
            if _sizes_of(values) != (channels,):
                raise ValueError(
                    f"{name} must have one value for each of the {channels} channels (dimension {channel_dim} of y);"
                    f" got shape {tuple(values.shape)}"
                )
            if values.device != device:
                raise ValueError(f"{name} is on {values.device} but y is on {device}; move one of them")
            if values.dtype != real or not values.is_contiguous():
                values = values.to(real).contiguous()
        found.append(values)
    return found


def check_normalisation(
    sizes: Sequence[int],
    channel_dim: int,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    process_group: Any,
) -> None:
    """Whether there is what y of these sizes is normalised by."""
    check_flag("training", training)
    if not (type(momentum) is float and 0.0 <= momentum <= 1.0):  # the short way for what is right
        check_momentum(momentum)
    if not (type(eps) is float and 0.0 < eps < math.inf):
        check_eps(eps)
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var belong together; give both or neither")
    if not training:
        if running_var is None:
            raise ValueError("training=False normalises by running_mean and running_var; give both, or training=True")
        # A GPU would have to be waited for.
        if running_var.is_cpu and not observed(running_var) and running_var.numel() > 0:
            least = running_var.min().item()
            if not least >= 0.0:
                raise ValueError(f"running_var must be >= 0, got {least}")
    if process_group is not None:
        check_group(process_group)
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise RuntimeError(
                "process_group was given, but torch.distributed is not initialised;"
                " call torch.distributed.init_process_group first, or leave process_group None"
            )
    elif training and math.prod(sizes) == sizes[channel_dim] != 0:
        raise ValueError(f"Expected more than 1 value per channel when training, got y of shape {tuple(sizes)}")


def check_residual(residual: Tensor | None, y: Tensor) -> None:
    if residual is None:
        return
    if not isinstance(residual, Tensor):
        raise TypeError(f"residual must be a tensor of y's shape {tuple(y.shape)}, got {type(residual).__name__}")
    if residual.layout is not torch.strided:
        raise _sparse("residual", residual)
    if _sizes_of(residual) != _sizes_of(y):
        raise ValueError(f"residual must have y's shape {tuple(y.shape)}, got {tuple(residual.shape)}")
    if residual.dtype != y.dtype:
        raise TypeError(f"residual is {residual.dtype} but y is {y.dtype}; convert one of them")
    if residual.device != y.device:
        raise ValueError(f"residual is on {residual.device} but y is on {y.device}; move one of them")


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def dense(x: Tensor, sizes: Sequence[int], time_dim: int, channel_dim: int) -> tuple[Tensor, Layout]:
    """x as the kernels see it in place, a copy where they cannot, or the single frame that it repeats; its layout."""
    time_steps, strides = sizes[time_dim], x.stride()
    if strides[time_dim] == 0 and time_steps > 1 and not _gradient_is_observed(x):
        x = _frame(x, time_dim)
        sizes, strides = _sizes_of(x), x.stride()
    layout = layout_from(sizes, strides, time_dim, time_steps, channel_dim)
    if layout is None:
        # Time outermost, the rest in the order of their indices: always seen in place.
        x = x.movedim(time_dim, 0).contiguous().movedim(0, time_dim)
        layout = layout_from(_sizes_of(x), x.stride(), time_dim, time_steps, channel_dim)
        assert layout is not None
    return x, layout


def _gradient_is_observed(x: Tensor) -> bool:
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
