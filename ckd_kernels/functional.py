"""Spiking neurons as functions: all time steps in one call, differentiable, on every backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, overload

import torch
from torch import Tensor

from .arguments import bn_lif_call, check_channel_dim, check_input, dense, lif_call
from .backend import requested
from .memory import note_spikes
from .neuron import Neuron
from .normalisation import composed_statistics, move_statistics, with_statistics
from .ops import composed
from .ops.library import COMPOSED, FUNCTION, way_of
from .ops.lif import run
from .ops.sam import SAMFunction
from .ops.sam import sam as sam_of

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LIFOutput(NamedTuple):
    """What `lif` returns when asked for more than spikes; what was not asked for is None."""

    spikes: Tensor
    v: Tensor | None
    sam: Tensor | None


class _Options(TypedDict, total=False):
    time_dim: int
    v_init: Tensor | None
    decay: Tensor | None
    tau: Tensor | None


class _LIFOptions(_Options, total=False):
    channel_dim: int | None


class _BNOptions(_Options, total=False):
    training: bool
    momentum: float
    eps: float
    residual: Tensor | None
    channel_dim: int
    process_group: Any


@overload
def lif(
    x: Tensor,
    neuron: Neuron,
    *,
    return_v: Literal[False] = ...,
    return_sam: Literal[False] = ...,
    **options: Unpack[_LIFOptions],
) -> Tensor: ...
@overload
def lif(
    x: Tensor, neuron: Neuron, *, return_v: bool = ..., return_sam: bool = ..., **options: Unpack[_LIFOptions]
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

    What goes beyond one backward pass, second derivatives (``create_graph``), forward mode and the transforms of
    `torch.func`, is composed of PyTorch's own functions: slower, and every time step's potential is kept.
    `torch.jit.trace` records the op, for inputs of any size but another number of time steps.

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
    call = lif_call(x, neuron, time_dim, v_init, (decay, tau), (return_v, return_sam), channel_dim)
    out = run(call)
    note_spikes(out[0])
    return LIFOutput(out[0], *out[2:]) if return_v or return_sam else out[0]


@overload
def bn_lif(
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    neuron: Neuron,
    *,
    return_v: Literal[False] = ...,
    return_sam: Literal[False] = ...,
    **options: Unpack[_BNOptions],
) -> Tensor: ...
@overload
def bn_lif(
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    neuron: Neuron,
    *,
    return_v: bool = ...,
    return_sam: bool = ...,
    **options: Unpack[_BNOptions],
) -> Tensor | LIFOutput: ...
def bn_lif(
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    neuron: Neuron,
    *,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    time_dim: int = 0,
    channel_dim: int = 2,
    v_init: Tensor | None = None,
    decay: Tensor | None = None,
    tau: Tensor | None = None,
    return_v: bool = False,
    return_sam: bool = False,
    process_group: Any = None,
) -> Tensor | LIFOutput:
    """Batch normalisation, an optional residual and a spiking neuron in one.

    What ``lif(batch_norm(y) + residual, neuron)`` computes, with the normalisation over time, batch and
    space of a channel (nn.BatchNorm2d on time and batch taken together), but the normalised tensor exists
    nowhere: y is read once for its statistics and once for the neuron, and is all that is kept for the backward
    pass, with the residual and vectors of one value a channel.

    The statistics have the same bits run to run, within 2 ulp of float64; given the same statistics, spikes are
    bit-identical on every backend.  Normalisation is ``y*scale + shift`` with ``scale = weight/sqrt(var + eps)``
    and ``shift = bias - mean*scale``, each operation rounded once, in float32 (float64 for float64).

    Args:
        y: what is normalised, e.g. a convolution's output, ``[T, B, C, ...]`` or ``[B, T, C, ...]``; dtypes and
            memory as :func:`lif`'s x.  One frame that `torch.Tensor.expand` repeats over time is read once.
        weight: ``[C]``, learnable; None for ones.
        bias: ``[C]``, learnable; None for zeros.
        running_mean: ``[C]``, moved towards the batch's in training, used in its place otherwise; None to keep none.
        running_var: likewise; both or neither.
        neuron: how it charges, fires and resets, see :class:`Neuron`.
        training: normalise by the batch's statistics; else by the running ones.
        momentum: share of the batch's statistics in the running ones, in [0, 1].
        eps: added to the variance, > 0.
        residual: added to the normalised y, of y's shape and dtype.
        time_dim: 0 or 1, where time is.
        channel_dim: where channels are, counted with time.
        v_init: membrane potential before the first step, as :func:`lif`.
        decay: learnable decay, as :func:`lif`.
        tau: learnable time constant, as :func:`lif`.
        return_v: also return the membrane potential after the last step, as :func:`lif`.
        return_sam: also return the spike activation map, as :func:`lif`.
        process_group: a `torch.distributed` process group whose processes share their statistics (as
            nn.SyncBatchNorm); None: each its own.

    Returns:
        As :func:`lif`.

    Raises:
        TypeError, ValueError: an argument of a wrong type, shape or range; one value a channel in training.
        RuntimeError: the backend asked for cannot run this call, or ``process_group`` without an initialised
            `torch.distributed`.

    Example:
        >>> import torch
        >>> from ckd_kernels import Neuron, bn_lif
        >>> y = torch.randn(4, 2, 8, 5, 5)  # [T, B, C, H, W]
        >>> weight, bias, mean, var = torch.ones(8), torch.zeros(8), torch.zeros(8), torch.ones(8)
        >>> bn_lif(y, weight, bias, mean, var, Neuron.paper()).shape
        torch.Size([4, 2, 8, 5, 5])
    """
    call = bn_lif_call(
        *(y, (weight, bias), (running_mean, running_var), neuron, training, momentum, eps, residual),
        *(time_dim, channel_dim, v_init, (decay, tau), (return_v, return_sam), process_group),
    )
    norm = call.norm
    assert norm is not None
    if call.plan.way is COMPOSED:
        statistics, moved = composed_statistics(call, norm)
        spikes, v, sam = composed.lif(call[:6], call.plan, statistics)
        if norm.moves and running_mean is not None and running_var is not None:
            move_statistics(running_mean, running_var, *moved)
        return LIFOutput(spikes, v, sam) if return_v or return_sam else spikes
    given = None
    if norm.group is not None or not norm.by_batch:
        given, call = with_statistics(call, norm)
    out = run(call)
    if norm.moves and running_mean is not None and running_var is not None:
        folded = out[1] if given is None else given
        with torch.no_grad():
            running_mean.copy_(folded[4])
            running_var.copy_(folded[5])
    note_spikes(out[0])
    return LIFOutput(out[0], *out[2:]) if return_v or return_sam else out[0]


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
    sizes = check_input("spikes", spikes, time_dim)
    channel_dim = check_channel_dim(sizes, time_dim, channel_dim)
    way, _, _ = way_of(spikes)
    if way is COMPOSED:
        return composed.sam(spikes, time_dim, channel_dim)
    function = SAMFunction.apply if way is FUNCTION else sam_of
    spikes, layout = dense(spikes, sizes, time_dim, channel_dim)
    return function(spikes, requested(), time_dim, layout.steps, channel_dim)
