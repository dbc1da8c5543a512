"""What `bn_lif` normalises by: the batch's own statistics, over processes where wanted, or the running ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .ops.bn_fold import bn_fold
from .ops.bn_lif import bn_statistics
from .ops.composed import batch_statistics
from .ops.lif import state_dtype


def module_arguments(norm: Any) -> dict[str, Any]:
    """The arguments of `bn_lif` that a batch normalisation holds, for one call; `count_batch` afterwards."""
    running = norm.running_mean, norm.running_var
    momentum: float = 0.0
    if norm.training and norm.track_running_stats:
        momentum = 1.0 / (float(norm.num_batches_tracked) + 1.0) if norm.momentum is None else norm.momentum
    elif norm.training:
        # As nn.BatchNorm2d: in training without tracking, buffers that are there stay as they are.
        running = None, None
    return {
        "weight": norm.weight,
        "bias": norm.bias,
        "running_mean": running[0],
        "running_var": running[1],
        "training": norm.training or norm.running_mean is None,
        "momentum": momentum,
        "eps": norm.eps,
    }


def count_batch(norm: Any) -> None:
    """Counts a batch whose statistics are in the running ones: not before, as a call may end early.

    Activation checkpointing computes a layer a second time, and no further than it needs to.
    """
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)


def sharing_group(process_group: Any) -> Any:
    """A layer's process group now: of all processes for ``"world"``, None where there are no others."""
    if process_group != "world":
        return process_group
    distributed = torch.distributed
    there = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    return distributed.group.WORLD if there else None


def fold_shared_statistics(
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    group: Any,
    backend: str,
    time_dim: int,
    time_steps: int,
    channel_dim: int,
) -> tuple[Tensor, Tensor]:
    """Statistics of the y of all processes, folded (see ops/bn_fold.py), and the number of values a channel."""
    own = bn_statistics(y, backend, time_dim, time_steps, channel_dim)
    moments, count = _over_processes(own, y.numel() // max(y.shape[channel_dim], 1), group)
    affine = weight, bias, running_mean, running_var
    repeats = time_steps // y.shape[time_dim] if y.shape[time_dim] > 0 else 1
    return bn_fold(moments, *affine, count, repeats, momentum, eps, state_dtype(y.dtype), backend), count


def fold_running_statistics(
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    backend: str,
) -> Tensor:
    """The running statistics, which do not depend on y, folded."""
    moments = torch.stack([running_mean, running_var]).double()
    real = state_dtype(y.dtype)
    return bn_fold(moments, weight, bias, None, None, None, 1, 0.0, eps, real, backend)


def composed_statistics(
    y: Tensor,
    running: tuple[Tensor | None, Tensor | None],
    training: bool,
    momentum: float,
    eps: float,
    channel_dim: int,
) -> tuple[tuple[Tensor, Tensor], tuple[Any, Any]]:
    """What `composed.bn_lif` normalises by, and the running statistics after this batch."""
    mean, var = running
    if not training and mean is not None and var is not None:
        return (mean, 1.0 / torch.sqrt(var.double() + eps)), running
    batch_mean, batch_var, invstd = batch_statistics(y, channel_dim, eps)
    if mean is not None and var is not None:
        values = y.numel() // max(y.shape[channel_dim], 1)
        unbiased = batch_var.detach() * (values / max(values - 1, 1))
        mean = (mean * (1.0 - momentum) + batch_mean.detach() * momentum).to(mean.dtype)
        var = (var * (1.0 - momentum) + unbiased * momentum).to(var.dtype)
    return (batch_mean, invstd), (mean, var)


def move_statistics(running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor) -> None:
    """Writes running statistics under a transform of `torch.func` or in forward mode."""
    try:
        with torch.no_grad(), forward_ad._set_fwd_grad_enabled(False):
            running_mean.copy_(mean)
            running_var.copy_(var)
    except RuntimeError as error:
        raise RuntimeError(
            "running_mean and running_var cannot hold the statistics of what torch.vmap or another transform of"
            " torch.func made of y; give None for both (track_running_stats=False, or"
            " torch.func.replace_all_batch_norm_modules_), or call eval() first"
        ) from error


def _over_processes(moments: Tensor, values: int, group: Any) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of all processes' values together, always added up in the order of their ranks."""
    distributed = torch.distributed
    own = torch.cat([moments.flatten(), moments.new_full((1,), values)])
    every = own.new_empty(distributed.get_world_size(group) * own.numel())
    distributed.all_gather_into_tensor(every, own, group=group)
    every = every.view(-1, own.numel())
    counts = every[:, -1]
    means, variances = every[:, :-1].unflatten(1, (2, -1)).unbind(1)
    total = counts.sum()
    weights = (counts / total).unsqueeze(1)
    mean = (weights * means).sum(0)
    var = (weights * (variances + (means - mean) ** 2)).sum(0)
    return torch.stack([mean, var]), total
