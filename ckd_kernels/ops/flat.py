"""The flat form of calls: what torch.library's schemas have, and with them the dispatcher, traced graphs and
torch.compile.  Nowhere else are a call's parts written out one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from ..call import Affine, Call, GradientCall, Gradients, Needs, Norm, Outputs, Plan
from ..neuron import Neuron
from .layout import Layout, dense_layout_of, layout_from, sizes_of
from .library import LIBRARY, OP, TAGS

_PLAN = "str neuron, str backend, int time_dim, SymInt time_steps, int channel_dim"
_RETURNED = "bool return_v, bool return_sam, bool save_checkpoints"
_STATE = "Tensor? residual, Tensor? v_init, Tensor? leak"
_UPSTREAM = "Tensor? checkpoints, Tensor? grad_spikes, Tensor? grad_v, Tensor? grad_sam"
for _schema in (
    f"lif_forward(Tensor x, Tensor? v_init, Tensor? leak, {_PLAN}, {_RETURNED}) -> Tensor[]",
    f"lif_backward(Tensor x, Tensor? v_init, Tensor? leak, {_UPSTREAM}, {_PLAN}, bool need_v_init, bool need_leak)"
    " -> Tensor[]",
    "bn_lif_forward(Tensor y, Tensor? folded, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var,"
    f" float momentum, float eps, {_STATE}, {_PLAN}, {_RETURNED}) -> Tensor[]",
    f"bn_lif_reduce(Tensor y, Tensor folded, {_STATE}, {_UPSTREAM}, {_PLAN}) -> Tensor",
    f"bn_lif_backward(Tensor y, Tensor folded, {_STATE}, {_UPSTREAM}, Tensor? coefficients, bool by_batch, {_PLAN},"
    " bool need_y, bool need_affine, bool need_residual, bool need_v_init, bool need_leak) -> Tensor[]",
):
    LIBRARY.define(_schema, tags=TAGS)


def pack(call: Call) -> tuple[Any, ...]:
    """The arguments of `lif_forward`, or with a normalisation of `bn_lif_forward`."""
    x, weight, bias, residual, v_init, leak, norm, plan, _ = call
    rest = *_pack_plan(plan), plan.return_v, plan.return_sam, plan.save_checkpoints
    if norm is None:
        return x, v_init, leak, *rest
    running = (norm.running_mean, norm.running_var) if norm.moves else (None, None)
    return x, norm.folded, weight, bias, *running, norm.momentum, norm.eps, residual, v_init, leak, *rest


def unpack_lif(x: Tensor, v_init: Tensor | None, leak: Tensor | None, *plan: Any) -> Call:
    """The call whose flat form are the arguments of `lif_forward`."""
    return Call(x, None, None, None, v_init, leak, None, *_decoded("x", x, *plan))


def unpack_bn_lif(
    y: Tensor,
    folded: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    residual: Tensor | None,
    v_init: Tensor | None,
    leak: Tensor | None,
    *plan: Any,
) -> Call:
    """The call whose flat form are the arguments of `bn_lif_forward`."""
    moves, by_batch = running_mean is not None, folded is None
    norm = Norm(folded, None, running_mean, running_var, moves, momentum, eps, by_batch, None)
    return Call(y, weight, bias, residual, v_init, leak, norm, *_decoded("y", y, *plan))


def pack_gradient(call: GradientCall, *, reduce: bool = False) -> tuple[Any, ...]:
    """The arguments of `lif_backward`, or with a normalisation of `bn_lif_backward` or `bn_lif_reduce`."""
    upstream = call.checkpoints, call.grad_spikes, call.grad_v, call.grad_sam
    plan, needs = _pack_plan(call.plan), call.needs
    if call.affine is None:
        return call.x, call.v_init, call.leak, *upstream, *plan, needs.v_init, needs.leak
    given = call.x, *call.affine, call.v_init, call.leak, *upstream
    return (*given, *plan) if reduce else (*given, call.coefficients, call.by_batch, *plan, *needs)


def unpack_lif_gradient(*flat: Any) -> GradientCall:
    """The call whose flat form are the arguments of `lif_backward`."""
    plan, layout = _decoded("x", flat[0], *flat[7:12])
    needs = Needs(True, False, False, *flat[12:])
    return GradientCall._make((*flat[:7], None, None, False, plan, needs, layout))


def unpack_bn_lif_gradient(y: Tensor, folded: Tensor, residual: Tensor | None, *flat: Any) -> GradientCall:
    """The call whose flat form are the arguments of `bn_lif_backward`."""
    coefficients, by_batch = flat[6:8]
    plan, layout = _decoded("y", y, *flat[8:13])
    affine, needs = Affine(folded, residual), Needs(*flat[13:])
    return GradientCall._make((y, *flat[:6], coefficients, affine, by_batch, plan, needs, layout))


def unpack_bn_lif_reduce(*flat: Any) -> GradientCall:
    """The call whose flat form are the arguments of `bn_lif_reduce`."""
    return unpack_bn_lif_gradient(*flat[:9], None, True, *flat[9:], *(False,) * 5)


def flatten(found: Iterable[Tensor | None]) -> list[Tensor]:
    """The results of an op, which are those that there are."""
    return [t for t in found if t is not None]


def outputs_of(call: Call, results: Sequence[Tensor]) -> Outputs:
    """What `flatten` made a list of."""
    plan, norm = call.plan, call.norm
    made = norm is not None and norm.folded is None
    wanted = made, True, plan.return_v, plan.return_sam, plan.save_checkpoints
    return Outputs._make(_spread(results, *wanted))


def gradients_of(call: GradientCall, results: Sequence[Tensor]) -> Gradients:
    """What `flatten` made a list of."""
    needs = call.needs
    return Gradients(
        *_spread(results, call.makes_coefficients(), call.writes_gradients(), needs.residual, needs.v_init, needs.leak)
    )


def _spread(results: Sequence[Tensor], *there: bool) -> list[Tensor | None]:
    given = iter(results)
    return [next(given) if is_there else None for is_there in there]


def _pack_plan(plan: Plan) -> tuple[str, str, int, int, int]:
    return plan.spec, plan.backend, plan.time_dim, plan.time_steps, plan.channel_dim


def _decoded(name: str, x: Tensor, *plan: Any) -> tuple[Plan, Layout]:
    """The plan of an op's arguments, and the layout of what it was given, which copies nothing."""
    given = sizes_of(x), x.stride(), *plan
    try:
        decoded, layout = _cached_decode(*given)
    except TypeError:  # symbols, which torch.compile traces with, have no hash
        decoded, layout = _decode(*given)
    return decoded, layout or layout_of_call(x, decoded, normalised=name == "y")


def _decode(
    sizes: Sequence[int],
    strides: Sequence[int],
    spec: str,
    backend: str,
    time_dim: int,
    time_steps: int,
    channel_dim: int,
    return_v: bool = False,
    return_sam: bool = False,
    save_checkpoints: bool = False,
) -> tuple[Plan, Layout | None]:
    dims, returned = (time_dim, time_steps, channel_dim), (return_v, return_sam, save_checkpoints)
    Neuron.from_spec(spec)  # raises where it is none
    return Plan(spec, backend, *dims, *returned, OP), layout_from(sizes, strides, *dims)


_cached_decode = functools.lru_cache(maxsize=4096)(_decode)


def layout_of_call(x: Tensor, plan: Plan, *, normalised: bool) -> Layout:
    """The layout of what an op was given; RuntimeError where it has none."""
    names = ("y", "bn_lif") if normalised else ("x", "lif")
    return dense_layout_of(x, *names, plan.time_dim, plan.time_steps, plan.channel_dim)
