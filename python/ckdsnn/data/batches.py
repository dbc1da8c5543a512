"""In-memory batches whose order depends on (seed, epoch), and their augmentation on (seed, epoch, sample), alone.

Because no random state is carried from one batch to the next, training that resumes in the middle of an epoch sees
exactly the batches that it would have seen without the interruption.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ckdsnn.data.augment import Augmentation
from ckdsnn.data.draws import mixed


class Batch(NamedTuple):
    """One batch: `images` float32 [B, C, H, W] (or [T, B, C, H, W] frames), `targets` int64 [B] (or [B, H, W], classes
    of pixels) and `indices` int64 [B], the samples' positions in the data set."""

    images: Tensor
    targets: Tensor
    indices: Tensor


def counter_generator(seed: int, *counters: int) -> torch.Generator:
    """A CPU generator whose stream is a function of `seed` and `counters` (epoch, batch, sample ...) alone.

    Example:
        >>> a, b = counter_generator(0, 3, 1), counter_generator(0, 3, 1)
        >>> bool(torch.equal(torch.rand(4, generator=a), torch.rand(4, generator=b)))
        True
    """
    # The CPU's generator takes 32 bits and ignores the rest.
    return torch.Generator().manual_seed(mixed(seed, *counters) >> 32)


class EpochSampler:
    """The order of the samples in one epoch, cut into batches and shared out over processes.

    Args:
        length: number of samples an epoch.
        batch_size: samples a batch and process.
        shuffle: a new order every epoch.
        drop_last: leave out a last batch that is not full.
        seed: with the epoch, decides the order.
        views: the data set holds the `length` samples this many times over, in different renderings one after the
            other; epoch e passes rendering e modulo `views`.
        rank, world_size: this process takes every `world_size`-th sample from `rank` on. All processes get the same
            number of batches, since one that had another would leave the others waiting. With `drop_last` the batches
            are full (what training needs); without it they are of nearly equal size, and no sample is left out or comes
            twice (what evaluation needs).
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        shuffle: bool,
        drop_last: bool = False,
        seed: int = 0,
        views: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if drop_last and length < batch_size * world_size:
            raise ValueError(
                f"{length} training samples do not fill one batch of {batch_size} on {world_size} process(es): "
                f"lower batch_size to {max(1, length // world_size)} or less"
            )
        self.length, self.batch_size, self.shuffle, self.drop_last = length, batch_size, shuffle, drop_last
        self.seed, self.views, self.rank, self.world_size = seed, views, rank, world_size
        self.epoch = 0
        self._resume: tuple[int, int] | None = None
        self._handed_out = 0

    def __len__(self) -> int:
        if self.drop_last:
            return self.length // self.world_size // self.batch_size
        largest_share = -(-self.length // self.world_size)
        return -(-largest_share // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def order(self, epoch: int) -> Tensor:
        """Indices of this process's samples in an epoch, one after the other, int64."""
        order = torch.arange(self.length)
        if self.shuffle:
            order = torch.randperm(self.length, generator=counter_generator(self.seed, epoch))
        return order[self.rank :: self.world_size] + self.length * (epoch % self.views)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Yields (number of the batch in the epoch, sample indices int64)."""
        # Evaluated at the first batch, not when the iterator is made: Lightning sets the epoch in between.
        order = self.order(self.epoch)
        batches = order.split(self.batch_size) if self.drop_last else order.tensor_split(len(self))
        first = 0
        if self._resume is not None and self._resume[0] == self.epoch:
            first = self._resume[1]
        self._resume = None
        for number in range(first, len(self)):
            self._handed_out = number + 1
            yield number, batches[number]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._resume = (state["epoch"], state["batch"])


class BatchLoader:
    """Batches of a data set that lies in memory, gathered where it lies and augmented on the device.

    Set `gathers` to False where something else gathers the samples, with `fill`: batches then hold indices alone.

    Args:
        images: [N, C, H, W] uint8 or float32 (or frames [N, T, C, H, W]); on `device`, or in pinned memory of the host.
        targets: int64 [N], or [N, H, W].
        sampler: order and batches.
        mean, std: per channel; images become `(image / 255 - mean) / std` if they are uint8, else
            `(image - mean) / std`. None leaves the values (uint8 are still divided by 255).
        augment: random augmentation, which depends on the sampler's seed, its epoch and the sample alone.
        device: of the batches; None: where the images are.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        sampler: EpochSampler,
        *,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        augment: Augmentation | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.images, self.targets = images, targets
        self.device = images.device if device is None else device
        self.gathers = True
        self.sampler, self.augment = sampler, augment or Augmentation()
        self.mean, self.std = mean, std
        self.batch_sampler = None  # Lightning looks for it wherever there is a sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def fill(self, order: Tensor, epoch: int, out: Tensor) -> None:
        """Writes the samples `order` of an epoch, as its batches hold them, into `out` [N, C, H, W] (or
        [N, T, C, H, W])."""
        pixels = self._gathered(self.images, order)
        self.augment.apply(pixels, order, self.sampler.seed, epoch, self.mean, self.std, out=out)

    def __iter__(self) -> Iterator[Batch]:
        for _, indices in self.sampler:
            if not self.gathers:
                yield Batch(self.targets[:0], self.targets[:0], indices)
                continue
            order = indices.to(self.device)
            pixels, sampler = self._gathered(self.images, indices), self.sampler
            images = self.augment.apply(pixels, order, sampler.seed, sampler.epoch, self.mean, self.std)
            if images.ndim == 5:  # frames lie sample by sample in memory; the models take time first
                images = images.transpose(0, 1)
            yield Batch(images, self._gathered(self.targets, indices), order)

    def _gathered(self, rows: Tensor, indices: Tensor) -> Tensor:
        gathered = rows.index_select(0, indices.to(rows.device))
        if gathered.device != self.device:  # without waiting, from memory that the device reads by itself
            gathered = gathered.pin_memory().to(self.device, non_blocking=True)
        return gathered

    def state_dict(self) -> dict[str, int]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.load_state_dict(state)
