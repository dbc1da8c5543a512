"""The neurons composed of PyTorch's own functions, for derivatives that the kernels do not compute.

That is whatever goes beyond one backward pass: second and higher derivatives, forward-mode ones, and the transforms of
`torch.func`.  Spikes are those of the kernels, bit by bit; the derivative of a spike is the surrogate's, in derivatives
of any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends.reference.neuron import Step
from ..call import Plan, state_dtype
from ..neuron import Neuron
from .library import batched

Forward = Callable[..., tuple[Tensor | None, ...]]


def lif(
    inputs: Sequence[Any], plan: Plan, statistics: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Spikes, v and sam of a call's x, weight, bias, residual, v_init and leak; x need not be dense.

    With ``statistics``, the mean and the inverse of the standard deviation, x is normalised by them.
    """
    x, weight, bias, residual, v_init, leak = inputs
    real, channel_dim = state_dtype(x.dtype), plan.channel_dim
    current = x.to(real)
    if statistics is not None:
        mean, invstd = (t.to(real) for t in statistics)
        scale = invstd if weight is None else weight * invstd
        centre = mean * scale
        shift = 0.0 - centre if bias is None else bias - centre
        current = current * _along(scale, channel_dim, x) + _along(shift, channel_dim, x)
    if residual is not None:
        current = current + residual.to(real)
    return _fire(current, v_init, leak, plan, x.dtype)


def batch_statistics(y: Tensor, channel_dim: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and inverse of the standard deviation of every channel of y, in double precision."""
    dims = [d for d in range(y.dim()) if d != channel_dim]
    values = y.double()
    mean = values.mean(dims)
    var = (values - _along(mean, channel_dim, y)).square().mean(dims)
    return mean, var, 1.0 / torch.sqrt(var + eps)


def sam(spikes: Tensor, time_dim: int, channel_dim: int) -> Tensor:
    """The spike activation map, as `ops.sam`."""
    real = state_dtype(spikes.dtype)
    first, second = sorted((time_dim, channel_dim))
    count = spikes.to(real).sum((first, second))
    return _share(count, spikes.shape[first] * spikes.shape[second], real)


def backward(
    forward: Forward,
    by_kernels: Callable[[], tuple[Tensor | None, ...]],
    inputs: Sequence[Tensor | None],
    upstream: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of the inputs of ``forward`` that are needed, which can be differentiated, or of a batch of gradients.

    ``by_kernels`` gives the same numbers, where there is one upstream gradient.
    """
    if batched(tuple(upstream)):
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            found = _gradients(forward, [_link(t) for t in inputs], upstream, create_graph)
        return [g if need else None for g, need in zip(found, needs, strict=True)]
    found = iter(_Backward.apply(by_kernels, forward, len(inputs), *inputs, *upstream))
    return [next(found) if need else None for need in needs]


class _Backward(torch.autograd.Function):
    """A backward pass by the kernels whose own is that of ``forward``."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        by_kernels: Callable[[], tuple[Tensor | None, ...]],
        forward: Forward,
        count: int,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        found = by_kernels()
        ctx.save_for_backward(*tensors)
        ctx.run, ctx.count, ctx.given = forward, count, [g is not None for g in found]
        ctx.set_materialize_grads(False)
        return tuple(g for g in found if g is not None)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> tuple:  # type: ignore[override]
        tensors, count, create_graph = ctx.saved_tensors, ctx.count, torch.is_grad_enabled()
        with torch.enable_grad():
            taken = [_link(t) for t in tensors]
            first = _gradients(ctx.run, taken[:count], taken[count:], create_graph=True)
            ends = [g for g, given in zip(first, ctx.given, strict=True) if given]
            second = _pull(ends, outer, taken, create_graph)
        return None, None, None, *second


def _gradients(
    forward: Forward, inputs: Sequence[Tensor | None], upstream: Sequence[Tensor | None], create_graph: bool
) -> list[Tensor | None]:
    return _pull(forward(*inputs), upstream, inputs, create_graph)


def _pull(
    ends: Sequence[Tensor | None], upstream: Sequence[Tensor | None], by: Sequence[Tensor | None], create_graph: bool
) -> list[Tensor | None]:
    """Gradients of ``ends`` with respect to each of ``by``, None where there are none."""
    pairs = [(e, g) for e, g in zip(ends, upstream, strict=True) if e is not None and g is not None and e.requires_grad]
    targets = [t for t in by if t is not None]
    if not pairs:
        return [None] * len(by)
    outputs, weights = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, targets, weights, create_graph=create_graph, allow_unused=True))
    return [None if t is None else next(found) for t in by]


def _link(t: Tensor | None) -> Tensor | None:
    """A tensor of its own to differentiate by, whose history is t's: an input may depend on another one."""
    if t is None:
        return None
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()


def _fire(
    x: Tensor, v_init: Tensor | None, leak: Tensor | None, plan: Plan, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The neuron on currents in the dtype of the arithmetic; spikes in ``dtype``."""
    neuron, time_dim, steps, channel_dim = plan.neuron, plan.time_dim, plan.time_steps, plan.channel_dim
    # One frame may stand for all of them.
    x = x.expand(*x.shape[:time_dim], steps, *x.shape[time_dim + 1 :])
    start = torch.full_like(x.select(time_dim, 0) if steps > 0 else x.sum(time_dim), neuron.rest)
    at = channel_dim - (channel_dim > time_dim)  # where a frame has its channels
    step = _Step(neuron, leak if leak is None or leak.dim() == 0 else _along(leak, at, start), start)
    v = start if v_init is None else v_init
    count = torch.zeros_like(start)
    spikes = []
    for current in x.unbind(time_dim):
        h = step.charge(v, current)
        spikes.append(step.spike(h))
        count = count + spikes[-1]
        v = step.reset(h)
    stacked = torch.stack(spikes, time_dim) if spikes else x
    sam = _share(count.sum(at), max(steps, 1) * start.shape[at], torch.float32) if plan.return_sam else None
    return stacked.to(dtype), v if plan.return_v else None, sam


def _share(count: Tensor, total: int, dtype: torch.dtype) -> Tensor:
    return torch.div(count.to(dtype), torch.full((), total, dtype=dtype, device=count.device))


class _Step(Step):
    """One time step whose spikes have a derivative."""

    def spike(self, h: Tensor) -> Tensor:
        # What is traced, for ONNX, has no backward pass.
        return self.fires(h).to(h.dtype) if torch._C._is_tracing() else _Spike.apply(h, self.neuron)

    def _resetting(self, h: Tensor) -> Tensor:
        return self.spike(h).detach() if self.neuron.detach_reset else self.spike(h)

    def lost(self, h: Tensor) -> Tensor:
        return self._resetting(h) * self.threshold

    def to_rest(self, h: Tensor) -> Tensor:
        s = self._resetting(h)
        return (1.0 - s) * h + s * self.rest


class _Spike(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, neuron: Neuron) -> Tensor:  # type: ignore[override]
        return (h >= neuron.fire_level(h.dtype)).to(h.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Neuron], output: Tensor) -> None:
        h, ctx.neuron = inputs
        ctx.save_for_backward(h)
        ctx.save_for_forward(h)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (h,) = ctx.saved_tensors
        return grad * ctx.neuron.surrogate.derivative(h - ctx.neuron.threshold), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:  # type: ignore[override]
        (h,) = ctx.saved_tensors
        return tangent * ctx.neuron.surrogate.derivative(h - ctx.neuron.threshold)


def _along(values: Tensor, dim: int, like: Tensor) -> Tensor:
    """One value a channel, ready to broadcast over ``like``, whose channels are in ``dim``."""
    return values.reshape([-1 if d == dim else 1 for d in range(like.dim())])
