"""What the training step needs of Lightning's trainer and its strategies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn

from ckdsnn.checkpoint import RunError
from ckdsnn.data import BatchLoader, DataModule
from ckdsnn.losses import Method
from ckdsnn.models import ANN, SNN
from ckdsnn.optimisation import Schedule
from ckdsnn.training.feed import BatchFeed, EpochFeed, Feed
from ckdsnn.training.runner import why_not_captured


def check_classified(data: Any, network: ANN | SNN) -> None:
    """Raises RunError where the data has classes of pixels and the network predicts some of images, or the reverse."""
    if isinstance(data, DataModule) and data.dense != network.dense:
        each = ("image", "pixel")
        raise RunError(
            f"{type(data).__name__} has one class for each {each[data.dense]}, but {type(network).__name__} predicts "
            f"one for each {each[network.dense]}: name another network (snn_fcn_small and ann_fcn_small classify "
            "pixels), or other data"
        )


def own_backward(trainer: L.Trainer) -> None:
    """Leaves gradients to the step, which averages those of several processes in one flat tensor.

    DistributedDataParallel would hook into every gradient, on the stream on which it was made: a graph cannot be
    captured around that. And Lightning's loop would ask all processes at every step whether one was told to stop,
    which waits for the device; each looks at its own signal instead.

    Raises:
        RunError: a strategy that shares out more than batches.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        strategy._setup_model = lambda model: model  # type: ignore[method-assign, assignment, return-value]
        strategy._register_ddp_hooks = lambda: None  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    elif not isinstance(strategy, SingleDeviceStrategy):
        raise RunError(
            f"trainer.strategy {type(strategy).__name__} is not supported: ckdsnn trains on one device, or on several "
            "with trainer.strategy ddp"
        )


def share_state(modules: Iterable[nn.Module]) -> None:
    """Gives all processes the first one's parameters and buffers."""
    if dist.is_available() and dist.is_initialized():
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.detach(), 0)


def share_buffers(module: nn.Module) -> None:
    """Gives all processes the first one's running statistics, which its checkpoint holds and evaluation uses.

    Within an epoch each has its own, from training on its own batches.
    """
    if dist.is_available() and dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def loss_scaler(trainer: L.Trainer) -> torch.amp.GradScaler | None:
    """The scaler of precision 16-mixed, whose state the checkpoint holds."""
    return getattr(trainer.precision_plugin, "scaler", None)


def check_capture(
    trainer: L.Trainer, network: nn.Module, method: Method, schedule: Schedule, graph: bool | Literal["auto"]
) -> str | None:
    """Why the step is not to be captured, see `why_not_captured`.

    Raises:
        RunError: it cannot be and `graph` is true.
    """
    reason = why_not_captured(
        trainer.strategy.root_device,
        network,
        method,
        schedule,
        accumulate=trainer.accumulate_grad_batches,
        scaler=loss_scaler(trainer) is not None,
    )
    if reason is not None and graph is True:
        raise RunError(
            f"model.graph is true, but the training step cannot be captured: {reason}. Set model.graph to auto"
        )
    return reason


def make_feed(trainer: L.Trainer, device: torch.device, *, channels_last: bool) -> Feed:
    """An epoch at once where the data lies on the device, else batches as they come."""
    loader: Any = trainer.train_dataloader
    if isinstance(loader, BatchLoader) and loader.images.device == device:
        loader.gathers = False
        return EpochFeed(loader, channels_last=channels_last)
    return BatchFeed(device, int(trainer.num_training_batches))


def gathered(mine: Any) -> list[Any]:
    """`mine` of every process, in the order of their ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    return everyones
