"""Where a training step finds its batch: always in the same tensors, so that the step may be captured."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ckdsnn.checkpoint import RunError
from ckdsnn.data import Batch, BatchLoader

RESERVE = 0.8  # of the device's free memory, that an epoch may take; the networks need the rest


class Feed:
    """Base of the feeds: where in training the step is, as tensors on the device.

    Args:
        device: of the step.
        batches: batches an epoch.

    Attributes:
        epoch: number of the epoch, int64 [1].
        position: number of the batch within the epoch, int64 [1].
    """

    def __init__(self, device: torch.device, batches: int) -> None:
        self.batches = batches
        self.epoch, self.position = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
        self.started: int | None = None

    def start(self, epoch: int, position: int) -> None:
        """Goes to batch `position` of epoch `epoch`."""
        self.started = epoch
        self.epoch.fill_(epoch)
        self.position.fill_(position)

    def load(self, batch: Batch) -> None:
        """Takes what the loader gave for the next step."""

    def batch(self) -> Batch:
        """The batch of the step, by device operations alone."""
        raise NotImplementedError(f"{type(self).__name__} must implement batch")

    def progress(self) -> Tensor:
        """Epochs done so far, with fraction, float64 0-dim."""
        return (self.epoch.double() + self.position.double() / self.batches)[0]

    def advance(self) -> None:
        """On to the next batch."""
        self.position += 1


class EpochFeed(Feed):
    """A whole epoch lies on the device, shuffled, augmented and normalised when it starts; a step takes its rows.

    Args:
        loader: of the training data, which lies on the step's device.
        channels_last: memory format of images [B, C, H, W].

    Raises:
        RunError: the device has no memory for an epoch.
    """

    def __init__(self, loader: BatchLoader, *, channels_last: bool = False) -> None:
        images, sampler = loader.images, loader.sampler
        device = images.device
        super().__init__(device, len(sampler))
        self.loader, self.batch_size = loader, sampler.batch_size
        count = len(sampler) * sampler.batch_size
        shape = tuple(images.shape[1:])
        self.channels_last = channels_last and len(shape) == 3
        if self.channels_last:
            shape = (*shape[1:], shape[0])
        _check_memory(4 * count * math.prod(shape), device)
        self._rows = torch.zeros((count, *shape), device=device)  # sample by sample, in the order of the epoch
        self._targets = torch.zeros((count, *loader.targets.shape[1:]), dtype=torch.int64, device=device)
        self._indices = torch.zeros(count, dtype=torch.int64, device=device)
        self._within = torch.arange(self.batch_size, device=device)

    def start(self, epoch: int, position: int) -> None:
        if self.started != epoch:
            order = self.loader.sampler.order(epoch)[: len(self._rows)].to(self._rows.device)
            self._indices.copy_(order)
            self._targets.copy_(self.loader.targets.index_select(0, order))
            out = self._rows.permute(0, 3, 1, 2) if self.channels_last else self._rows
            self.loader.fill(order, epoch, out)
        super().start(epoch, position)

    def batch(self) -> Batch:
        rows = self.position * self.batch_size + self._within
        images = self._rows.index_select(0, rows)
        if self.channels_last:
            images = images.permute(0, 3, 1, 2)
        elif images.ndim == 5:  # the models take time first
            images = images.transpose(0, 1)
        return Batch(images, self._targets.index_select(0, rows), self._indices.index_select(0, rows))


def _check_memory(needed: int, device: torch.device) -> None:
    if device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(device)
    if needed > RESERVE * free:
        raise RunError(
            f"an augmented epoch takes {needed / 1e9:.1f} GB of {device}, which has {free / 1e9:.1f} of "
            f"{total / 1e9:.1f} GB free: set data.where to host, and batches are gathered there and augmented on the "
            "device one at a time, or train on fewer samples"
        )


class BatchFeed(Feed):
    """Batches that a loader brings one at a time are copied into tensors that stay.

    Args:
        device: of the step.
        batches: batches an epoch.
    """

    def __init__(self, device: torch.device, batches: int) -> None:
        super().__init__(device, batches)
        self._static: Batch | None = None

    def load(self, batch: Batch) -> None:
        if self._static is None:
            self._static = Batch(*(torch.empty_like(part) for part in batch))
        for static, part in zip(self._static, batch, strict=True):
            if static.shape != part.shape:
                raise RunError(
                    f"a training batch is {list(part.shape)}, the ones before were {list(static.shape)}: all batches "
                    "of a training must be alike (drop_last)"
                )
            static.copy_(part, non_blocking=True)

    def batch(self) -> Batch:
        assert self._static is not None
        return self._static
