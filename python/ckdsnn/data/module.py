"""What the data modules have in common, and the ones whose data fits in memory."""

from __future__ import annotations

from typing import Literal, NamedTuple

import lightning as L
import torch
from torch import Tensor

from ckdsnn.data.arguments import of_batches
from ckdsnn.data.augment import Augmentation
from ckdsnn.data.batches import BatchLoader, EpochSampler
from ckdsnn.registry import Registry


class Arrays(NamedTuple):
    """A part of a data set: `images` [N, C, H, W] or frames [N, T, C, H, W], uint8 or float32; `targets` int64 [N], or
    [N, H, W] of a dense data set."""

    images: Tensor
    targets: Tensor


class DataModule(L.LightningDataModule):
    """Base of all data sets; its loaders yield batches, see `Batch`.

    Attributes of a subclass or its instances: `num_classes`, `in_channels`, `has_validation`, `mean`, `std` per channel
    where images are to be normalised, and `dense` where every pixel has a class.
    """

    num_classes: int
    in_channels: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    has_validation: bool = True
    dense: bool = False

    @property
    def share(self) -> dict[str, int]:
        """This process and the number of processes, as arguments of `EpochSampler`."""
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}


DATA: Registry[type[DataModule]] = Registry("data set", DataModule)
register_data = DATA.register


class ArrayDataModule(DataModule):
    """Base of the in-memory data sets: a subclass says what they are and implements `load`.

    The whole data set lies on the training device, and so does a whole augmented epoch of it, in float32, while a
    network trains on it.

    Args:
        batch_size: training samples a batch and process.
        seed: order of the samples and augmentation.
        augmentation: applied to training samples only.
        eval_batch_size: samples a batch in validation, test and prediction; None: 256 on a CPU, 1000 on other devices.
        where: "device", or "host" for data that does not fit there: batches are then gathered in the host's memory and
            augmented on the device one at a time.
    """

    def __init__(
        self,
        batch_size: int,
        seed: int = 0,
        augmentation: Augmentation = Augmentation(),
        eval_batch_size: int | None = None,
        where: Literal["device", "host"] = "device",
    ) -> None:
        super().__init__()
        of_batches(batch_size, eval_batch_size, seed, augmentation)
        if self.dense and augmentation.active:
            raise ValueError(
                f"augmentation of {type(self).__name__} would move pixels and leave their classes where they are: "
                "leave it out"
            )
        if where not in ("device", "host"):
            raise ValueError(f"where must be device or host, got {where!r}")
        self.batch_size, self.eval_batch_size, self.where = batch_size, eval_batch_size, where
        self.seed, self.augmentation = seed, augmentation
        self.views = 1
        self._parts: dict[str, Arrays] = {}

    def load(self, part: str) -> Arrays | None:
        """The arrays of `part`, one of "train", "validation", "test"; None where there is no validation part."""
        raise NotImplementedError(f"{type(self).__name__} must implement load")

    def setup(self, stage: str) -> None:
        wanted = {"fit": ("train", "validation"), "validate": ("validation",)}.get(stage, ("test",))
        for part in wanted:
            if part in self._parts:
                continue
            arrays = self.load(part)
            if arrays is None:
                continue
            self._check_shapes(part, arrays)
            self._check_targets(part, arrays.targets)
            device = self.device if self.where == "device" else torch.device("cpu")
            self._parts[part] = Arrays(arrays.images.to(device), arrays.targets.to(device))

    @property
    def device(self) -> torch.device:
        """Where batches are wanted: the trainer's device, or the CPU without one."""
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")

    @property
    def _evaluated_at_once(self) -> int:
        return self.eval_batch_size or (256 if self.device.type == "cpu" else 1000)

    def _check_shapes(self, part: str, arrays: Arrays) -> None:
        images, targets = arrays
        wanted = (len(images), *images.shape[-2:]) if self.dense else (len(images),)
        if targets.shape != wanted:
            raise ValueError(
                f"the {part} part of {type(self).__name__} has targets {list(targets.shape)}, they must be "
                f"{list(wanted)}: one a {'pixel' if self.dense else 'sample'}"
            )

    def _check_targets(self, part: str, targets: Tensor) -> None:
        if len(targets) == 0:
            raise ValueError(f"the {part} part of {type(self).__name__} is empty")
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f"the {part} part of {type(self).__name__} has labels from {low} to {high}; with "
                f"{self.num_classes} classes they must lie in [0, {self.num_classes - 1}]"
            )
        counts = torch.bincount(targets.flatten(), minlength=self.num_classes)
        if part == "train" and (empty := (counts == 0).nonzero().flatten().tolist()):
            raise ValueError(
                f"the training part of {type(self).__name__} has no sample of class(es) "
                f"{', '.join(map(str, empty[:10]))}: use more samples, or fewer classes"
            )

    def arrays(self, part: str) -> Arrays:
        """The loaded arrays of "train", "validation" or "test" (after `setup`)."""
        if part not in self._parts:
            raise RuntimeError(f"the {part} part is not loaded: call setup first (loaded: {sorted(self._parts)})")
        return self._parts[part]

    def train_dataloader(self) -> BatchLoader:
        return self._loader("train", train=True)

    def val_dataloader(self) -> BatchLoader | list:
        # Lightning takes an empty list as "no validation".
        return self._loader("validation", train=False) if "validation" in self._parts else []

    def test_dataloader(self) -> BatchLoader:
        return self._loader("test", train=False)

    def predict_dataloader(self) -> BatchLoader:
        return self._loader("test", train=False)

    def in_order(self, part: str) -> BatchLoader:
        """All samples of a part (all renderings of the training part too), once, in order, as they are."""
        images, targets = self.arrays(part)
        sampler = EpochSampler(len(targets), self._evaluated_at_once, shuffle=False)
        return BatchLoader(images, targets, sampler, mean=self.mean, std=self.std, device=self.device)

    def _loader(self, part: str, *, train: bool) -> BatchLoader:
        images, targets = self.arrays(part)
        views = self.views if train else 1
        sampler = EpochSampler(
            len(targets) // views,
            self.batch_size if train else self._evaluated_at_once,
            shuffle=train,
            drop_last=train,
            seed=self.seed,
            views=views,
            **self.share,
        )
        augment = self.augmentation if train and self.augmentation.active else None
        return BatchLoader(images, targets, sampler, mean=self.mean, std=self.std, augment=augment, device=self.device)
