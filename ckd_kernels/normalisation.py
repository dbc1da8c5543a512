"""What `bn_lif` normalises by: the batch's own statistics, over processes where wanted, or the running ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .call import Call, Fold, Norm, state_dtype
from .ops.batch_norm import bn_fold, bn_statistics
from .ops.composed import batch_statistics


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


def with_statistics(call: Call, norm: Norm) -> tuple[Tensor, Call]:
    """What running statistics or those of all processes are folded into, and the call with that."""
    plan, y = call.plan, call.x
    total, values, mean, var = None, 1, None, None
    with torch.no_grad():
        if norm.by_batch:
            own = bn_statistics(y, plan.backend, plan.time_dim, plan.time_steps, plan.channel_dim)
            moments, total = _over_processes(own, y.numel() // max(y.shape[plan.channel_dim], 1), norm.group)
            values = plan.time_steps // y.shape[plan.time_dim] if y.shape[plan.time_dim] > 0 else 1
            if norm.moves:
                mean, var = norm.running_mean, norm.running_var
        else:
            assert norm.running_mean is not None  # checked at the door
            assert norm.running_var is not None
            moments = torch.stack([norm.running_mean, norm.running_var]).double()
        fold = Fold(moments, call.weight, call.bias, mean, var, total, values, norm.momentum, norm.eps)
        folded = bn_fold(*fold, state_dtype(y.dtype), plan.backend)
    return folded, call._replace(norm=norm._replace(folded=folded, total=total))


def composed_statistics(call: Call, norm: Norm) -> tuple[tuple[Tensor, Tensor], tuple[Any, Any]]:
    """What `composed.lif` normalises by, and the running statistics after this batch."""
    y, mean, var = call.x, norm.running_mean, norm.running_var
    if not norm.by_batch and mean is not None and var is not None:
        return (mean, 1.0 / torch.sqrt(var.double() + norm.eps)), (mean, var)
    batch_mean, batch_var, invstd = batch_statistics(y, call.plan.channel_dim, norm.eps)
    if mean is not None and var is not None:
        values = y.numel() // max(y.shape[call.plan.channel_dim], 1)
        unbiased = batch_var.detach() * (values / max(values - 1, 1))
        mean = (mean * (1.0 - norm.momentum) + batch_mean.detach() * norm.momentum).to(mean.dtype)
        var = (var * (1.0 - norm.momentum) + unbiased * norm.momentum).to(var.dtype)
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
