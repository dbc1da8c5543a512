"""The LIF ops, `bn_lif`'s with them, and their autograd function.

One op runs all time steps forward and one runs them backward.  The backward op recomputes the membrane potential from
x, so x is all that is saved; sequences of more than ``CHECKPOINT_EVERY`` steps add the potential at every such step.

With a normalisation, forward: statistics of a channel (one read), then normalisation, residual, neuron and map in one
pass.  Backward: a first pass over y and the upstream gradient sums what the statistics' gradient needs, a second one
writes dL/dy; both recompute the current and the potential from y and the residual, which with vectors of one value a
channel are all that is kept.  What lies between the passes, arithmetic on such vectors, is in batch_norm.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backend import LEARNT, Backend, resolve
from ..call import (
    CHECKPOINT_EVERY,
    Affine,
    Backward,
    Call,
    Fold,
    Forward,
    GradientCall,
    Gradients,
    Needs,
    Norm,
    Outputs,
    Plan,
    checkpoint_count,
    state_dtype,
)
from . import composed, flat
from .batch_norm import bn_coefficients, channel_pairs, coefficients, empty_folded, fold, statistics
from .layout import Layout, layout_from
from .library import COMPOSED, FUNCTION, beyond_kernels, register, requires_grad, watched

OPS = torch.ops.ckd_kernels

# --- forward


def run(call: Call) -> tuple[Any, ...]:
    """Spikes, what statistics were folded into, where the op did, v and sam; by whom the call's plan says.

    Autograd takes its time for every argument and every result, those that are None, too: so these may end early.
    """
    way = call.plan.way
    if way is FUNCTION:
        alone = call.norm is None and call.v_init is None and call.leak is None
        return LIFFunction.apply(call.norm, call.plan, call.layout, *(call[:1] if alone else call[:6]))
    if way is COMPOSED:
        spikes, v, sam = composed.lif(call[:6], call.plan)
        return spikes, None, v, sam
    folded, spikes, v, sam, _ = _forward(call)
    return spikes, folded, v, sam


def _forward(call: Call) -> Outputs:
    """By the kernels, without a gradient."""
    if call.layout is not None:
        return _compute(call)
    op = OPS.lif_forward if call.norm is None else OPS.bn_lif_forward
    return flat.outputs_of(call, op(*flat.pack(call)))


def _compute(call: Call) -> Outputs:
    x, plan, norm, layout = call.x, call.plan, call.norm, call.layout
    assert layout is not None
    folded = made = affine = None
    if norm is not None:
        folded = norm.folded
        if folded is None:
            folded = made = _fold_own(call, norm, layout)
        affine = Affine(folded, layout.aligned(call.residual))
    out = _allocate(call, layout, made)
    if out.spikes.numel() > 0:
        v_init, leak = call.v_init, call.leak
        if v_init is not None:
            v_init = layout.aligned(v_init, plan.time_dim)
        forward = Forward(plan.neuron, layout, x, v_init, leak, affine, *out[1:])
        _backend(x, leak, affine, plan).lif_forward(forward)
    else:  # no time step changed the potential
        if out.v is not None:
            out.v.copy_(call.v_init) if call.v_init is not None else out.v.fill_(plan.neuron.rest)
        if out.sam is not None:
            out.sam.zero_()
    return out


def _fold_own(call: Call, norm: Norm, layout: Layout) -> Tensor:
    """What y's own statistics are folded into."""
    values = layout.outer * layout.steps * layout.rows * layout.inner
    running = (norm.running_mean, norm.running_var) if norm.moves else (None, None)
    backend = resolve(call.plan.backend, "bn_lif", call.x.device, call.x.dtype)
    moments = statistics(layout, call.x, backend)
    given = Fold(moments, call.weight, call.bias, *running, None, values, norm.momentum, norm.eps)
    return fold(given, state_dtype(call.x.dtype), backend)


def _backend(x: Tensor, leak: Tensor | None, affine: Affine | None, plan: Plan) -> Backend:
    spec = plan.spec if leak is None else LEARNT
    return resolve(plan.backend, "lif" if affine is None else "bn_lif", x.device, x.dtype, spec)


def _allocate(call: Call, layout: Layout, folded: Tensor | None) -> Outputs:
    x, plan = call.x, call.plan
    # Of all time steps, in x's memory format; empty_like is the shorter way.
    spikes = layout.empty(x.dtype, x.device) if layout.repeated else torch.empty_like(x)
    if not (plan.return_v or plan.return_sam or plan.save_checkpoints):
        return Outputs(folded, spikes, None, None, None)
    state, device, time_dim = state_dtype(x.dtype), x.device, plan.time_dim
    v = layout.empty(state, device, (time_dim,)) if plan.return_v else None
    sam = layout.empty(torch.float32, device, (time_dim, plan.channel_dim)) if plan.return_sam else None
    checkpoints = None
    if plan.save_checkpoints:
        size = checkpoint_count(layout.steps), layout.outer, layout.frame
        checkpoints = torch.empty(size, dtype=state, device=device)
    return Outputs(folded, spikes, v, sam, checkpoints)


def _allocate_fake(call: Call) -> Outputs:
    layout, norm = call.layout, call.norm
    assert layout is not None
    folded = None
    if norm is not None and norm.folded is None:
        folded = empty_folded(call.x, layout, 6 if norm.moves else 4)
    return _allocate(call, layout, folded)


# --- backward


def _backward(call: GradientCall) -> Gradients:
    """By the kernels."""
    if not watched(*call[:8], *(call.affine or ())):
        return _compute_gradients(call)
    op = OPS.lif_backward if call.affine is None else OPS.bn_lif_backward
    return flat.gradients_of(call, op(*flat.pack_gradient(call)))


def _compute_gradients(call: GradientCall) -> Gradients:
    x, affine, plan, through, made = call.x, call.affine, call.plan, call.coefficients, None
    given, layout = _aligned(call)
    if affine is not None:
        if call.makes_coefficients():
            sums, values = _sums(call, given, layout), max(x.numel() // max(layout.channels, 1), 1)
            through = made = coefficients(sums, affine.folded[1], None, values, plan.backend)
        if not call.writes_gradients():
            return Gradients(made, None, None, None, None)
        through = through if call.by_batch else None
    out = _allocate_gradients(call, layout, made)
    if x.numel() > 0 and layout.steps > 0:
        _backend(x, call.leak, affine, plan).lif_backward(Backward._make((*given, through, *out[1:], None)))
    else:  # no time step changed the potential
        for gradient in flat.flatten(out[1:]):
            gradient.zero_()
        if out.v_init is not None and call.grad_v is not None:
            out.v_init.copy_(call.grad_v)
    return out


def _aligned(call: GradientCall) -> tuple[tuple[Any, ...], Layout]:
    """What a `Backward` is given, all of it dense in the layout of x, which is returned, too."""
    x, v_init, leak, checkpoints, grad_spikes, grad_v, grad_sam, _, affine, _, plan, _, layout = call
    if layout is None:  # x as autograd kept it, whose memory format hooks on saved tensors may have changed
        layout = layout_from(x.shape, x.stride(), plan.time_dim, plan.time_steps, plan.channel_dim)
        layout = layout or flat.layout_of_call(x, plan, normalised=affine is not None)
    if layout.steps > CHECKPOINT_EVERY and x.numel() > 0:
        _check_checkpoints(checkpoints, layout, x.dtype)
    if affine is not None:
        affine = Affine(affine.folded, layout.aligned(affine.residual))
    if v_init is not None:
        v_init = layout.aligned(v_init, plan.time_dim)
    if grad_v is not None:
        grad_v = layout.aligned(grad_v, plan.time_dim)
    if grad_sam is not None:
        grad_sam = layout.aligned(grad_sam, plan.time_dim, plan.channel_dim)
    grad_spikes = layout.aligned(grad_spikes)
    return (plan.neuron, layout, x, v_init, leak, affine, checkpoints, grad_spikes, grad_v, grad_sam), layout


def _sums(call: GradientCall, given: tuple[Any, ...], layout: Layout) -> Tensor:
    """The first backward pass: gradients of the current, and their products with y - mean, summed a channel."""
    sums = channel_pairs(call.x, layout)
    if call.x.numel() > 0:
        _backend(call.x, call.leak, call.affine, call.plan).lif_backward(Backward._make((*given, *(None,) * 5, sums)))
    else:
        sums.zero_()
    return sums


def _check_checkpoints(checkpoints: Tensor | None, layout: Layout, dtype: torch.dtype) -> None:
    """Raises ValueError unless a backward pass is given the potentials that its kernels read; `lif` and `bn_lif` give
    them, who calls the op itself may not."""
    wanted = checkpoint_count(layout.steps)
    if checkpoints is None or checkpoints.shape != (wanted, layout.outer, layout.frame):
        got = "None" if checkpoints is None else list(checkpoints.shape)
        raise ValueError(
            f"checkpoints must be {[wanted, layout.outer, layout.frame]} for {layout.steps} time steps, got {got}: "
            "pass what the forward op returned with save_checkpoints=True"
        )
    if checkpoints.dtype != state_dtype(dtype):
        raise ValueError(f"checkpoints must be {state_dtype(dtype)}, got {checkpoints.dtype}")


def _allocate_gradients(call: GradientCall, layout: Layout, made: Tensor | None) -> Gradients:
    x, needs, leak = call.x, call.needs, call.leak
    residual = None
    if needs.residual:
        residual = layout.empty(x.dtype, x.device) if layout.repeated else torch.empty_like(x)
    v_init = layout.empty(state_dtype(x.dtype), x.device, (call.plan.time_dim,)) if needs.v_init else None
    grad_leak = torch.empty_like(leak) if needs.leak and leak is not None else None
    return Gradients(made, torch.empty_like(x), residual, v_init, grad_leak)


def _allocate_gradients_fake(call: GradientCall) -> Gradients:
    layout = call.layout
    assert layout is not None
    made = empty_folded(call.x, layout, 4) if call.makes_coefficients() else None
    return _allocate_gradients(call, layout, made) if call.writes_gradients() else Gradients(made, *(None,) * 4)


# --- both


class LIFFunction(torch.autograd.Function):
    """A `Call` with its gradient: spikes, what statistics were folded into, where the op did that, v and sam.

    Without ``setup_context``, for which PyTorch inspects the signature at every call; that takes longer than all else
    here.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        norm: Norm | None,
        plan: Plan,
        layout: Layout | None,
        x: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        v_init: Tensor | None = None,
        leak: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        tensors, total = (x, weight, bias, residual, v_init, leak), None
        folded, spikes, v, sam, checkpoints = _forward(Call(*tensors, norm, plan, layout))
        ctx.norm = None
        if norm is not None:
            ctx.norm, total = (norm.by_batch, norm.group, norm.eps), norm.total
            if folded is not None:
                ctx.mark_non_differentiable(folded)
        kept = folded if norm is None or norm.folded is None else norm.folded
        ctx.save_for_backward(*tensors, kept, checkpoints, total)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        if v is None and sam is None:
            return (spikes,) if folded is None else (spikes, folded)
        return spikes, folded, v, sam

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any,
        grad_spikes: Tensor | None,
        _: None = None,
        grad_v: Tensor | None = None,
        grad_sam: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        grads, needs = (grad_spikes, grad_v, grad_sam), ctx.needs_input_grad[3:]
        given = len(needs)
        if grad_spikes is None and grad_v is None and grad_sam is None:
            return (None,) * (3 + given)
        saved, plan, norm, needs = ctx.saved_tensors, ctx.plan, ctx.norm, (*needs, *(False,) * (6 - given))
        if not beyond_kernels(grads):
            return None, None, None, *_gradients(saved, grads, needs, plan, norm)[:given]
        if norm is not None and norm[1] is not None:
            raise RuntimeError(
                "second derivatives through bn_lif with a process_group are not supported;"
                " leave out create_graph or process_group"
            )
        found = composed.backward(
            functools.partial(_composed, saved[6], plan, norm),
            lambda: _gradients(saved, grads, needs, plan, norm),
            *(saved[:6], grads, needs),
        )
        return None, None, None, *found[:given]


def _composed(folded: Tensor | None, plan: Plan, norm: Any, *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
    """The forward pass of PyTorch's own functions, through y's statistics where they are its own."""
    if norm is None or folded is None:
        return composed.lif(inputs, plan)
    by_batch, _, eps = norm
    statistics = folded[0], folded[1]
    if by_batch and inputs[0] is not None:
        mean, _, invstd = composed.batch_statistics(inputs[0], plan.channel_dim, eps)
        statistics = mean, invstd
    return composed.lif(inputs, plan, statistics)


def _gradients(
    saved: Sequence[Any], grads: Sequence[Tensor | None], needs: Sequence[bool], plan: Plan, norm: Any
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias, residual, v_init and leak where they are needed, by the kernels."""
    x, _, _, residual, v_init, leak, folded, checkpoints, total = saved
    need_x, need_weight, need_bias, need_residual, need_v_init, need_leak = needs
    by_batch, group, _ = (False, None, None) if norm is None else norm
    affine = None if norm is None else Affine(folded, residual)
    wanted = Needs(need_x, need_weight or need_bias, need_residual, need_v_init, need_leak)
    grad_spikes, grad_v, grad_sam = grads
    given = x, v_init, leak, checkpoints, grad_spikes, grad_v, grad_sam, None
    call = GradientCall(*given, affine, by_batch, plan, wanted, None)
    own = None
    if group is not None and call.makes_coefficients():
        # Each process has its own part of dL/dweight and dL/dbias; dL/dy takes the sums of all.
        sums = bn_lif_reduce(*flat.pack_gradient(call, reduce=True))
        own = bn_coefficients(sums, folded[1], None, 1, plan.backend)
        torch.distributed.all_reduce(sums, group=group)
        call = call._replace(coefficients=bn_coefficients(sums, folded[1], total, 1, plan.backend))
    made, grad_x, grad_residual, grad_v_init, grad_leak = _backward(call)
    own = made if own is None else own
    return (
        grad_x if need_x else None,
        own[2] if need_weight and own is not None else None,
        own[3] if need_bias and own is not None else None,
        grad_residual,
        grad_v_init,
        grad_leak,
    )


# --- as PyTorch knows them


def _differentiable(unpack: Callable, below_autograd: Callable, *given: Any) -> list[Tensor]:
    """A forward op with its gradient."""
    save_checkpoints = given[-1]
    if save_checkpoints or not requires_grad(*given):
        return below_autograd(*given)
    call = unpack(*given)
    plan = call.plan._replace(way=FUNCTION, save_checkpoints=checkpoint_count(call.plan.time_steps) > 0)
    layout = None if watched(*call[:6]) else call.layout
    spikes, folded, v, sam = (*run(call._replace(plan=plan, layout=layout)), None, None, None)[:4]
    return flat.flatten((folded, spikes, v, sam))


def _register(name: str, unpack: Callable, compute: Callable, allocate: Callable, *differentiable: Callable) -> None:
    register(
        name,
        lambda *given: flat.flatten(compute(unpack(*given))),
        lambda *given: flat.flatten(allocate(unpack(*given))),
        *differentiable,
    )


for _name, _unpack in (("lif", flat.unpack_lif), ("bn_lif", flat.unpack_bn_lif)):
    _register(f"{_name}_forward", _unpack, _compute, _allocate_fake, functools.partial(_differentiable, _unpack))
for _name, _unpack_gradient in (("lif", flat.unpack_lif_gradient), ("bn_lif", flat.unpack_bn_lif_gradient)):
    _register(f"{_name}_backward", _unpack_gradient, _compute_gradients, _allocate_gradients_fake)


def _reduce(*given: Any) -> Tensor:
    call = flat.unpack_bn_lif_reduce(*given)
    return _sums(call, *_aligned(call))


def _reduce_fake(*given: Any) -> Tensor:
    call = flat.unpack_bn_lif_reduce(*given)
    assert call.layout is not None
    return channel_pairs(call.x, call.layout)


bn_lif_reduce = register("bn_lif_reduce", _reduce, _reduce_fake)
