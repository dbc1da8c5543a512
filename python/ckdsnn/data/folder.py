"""Folders of images, a folder a class, as ImageNet comes: decoded and cropped by worker processes, in batches."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ckdsnn.checkpoint import RunError
from ckdsnn.data.arguments import folder_name, of_batches, true_or_false, whole_number
from ckdsnn.data.augment import Augmentation
from ckdsnn.data.batches import Batch, EpochSampler, counter_generator
from ckdsnn.data.files import class_folders, list_files
from ckdsnn.data.images import SUFFIXES, central_box, random_box, read_crop
from ckdsnn.data.module import DataModule, register_data
from ckdsnn.data.split import split_off


class _Request(NamedTuple):
    """A batch that a worker is asked for."""

    epoch: int
    number: int
    samples: list[int]


class _Answer(NamedTuple):
    """The batch: uint8 [B, H, W, 3] and int64 [B], or what is wrong with a file."""

    pixels: Tensor
    indices: Tensor
    number: int
    error: str


def list_images(folder: Path, root: Path, *, follow_symlinks: bool = False) -> tuple[list[Path], list[int], list[str]]:
    """Image files under `folder/<class>/`, their class numbers and the classes' names, all in alphabetical order.

    Args:
        folder: a folder with a folder for each class.
        root: folder of the data set, which symbolic links must not leave unless `follow_symlinks`.
        follow_symlinks: links may lead anywhere.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no folders of classes, a class has no image, a link leads out of `root`, or something named
            like an image is no regular file.
    """
    names = class_folders(folder, f"images are expected in {folder}/<class>/")
    paths, targets = [], []
    for number, name in enumerate(names):
        found = list_files(folder / name, SUFFIXES, root, follow_symlinks=follow_symlinks)
        if not found:
            raise ValueError(
                f"class {name} has no images in {folder / name} (looked for {', '.join(sorted(SUFFIXES))})"
            )
        paths += found
        targets += [number] * len(found)
    return paths, targets, names


class _Crops(Dataset):
    """Batches of crops by request; a training image's crop depends on (seed, epoch, index) alone, so it does not matter
    which worker makes it, or when."""

    def __init__(self, paths: list[Path], size: int, seed: int, *, train: bool) -> None:
        self.paths, self.size, self.seed, self.train = paths, size, seed, train

    def __getitem__(self, request: _Request) -> _Answer:
        pixels = torch.empty(len(request.samples), self.size, self.size, 3, dtype=torch.uint8)
        if torch.utils.data.get_worker_info() is not None:
            pixels.share_memory_()  # it goes to the main process as it is
        rows, error = pixels.numpy(), ""
        try:
            for row, sample in zip(rows, request.samples, strict=True):
                row[:] = self.crop(sample, request.epoch)
        except (FileNotFoundError, ValueError) as problem:
            error = str(problem)  # raised where no worker's traceback is put in front of it
        return _Answer(pixels, torch.tensor(request.samples), request.number, error)

    def crop(self, sample: int, epoch: int) -> np.ndarray:
        if not self.train:
            return read_crop(self.paths[sample], self.size, central_box)
        generator = counter_generator(self.seed, epoch, sample)
        return read_crop(self.paths[sample], self.size, partial(random_box, generator=generator))

    def __len__(self) -> int:
        return len(self.paths)


class _Requests:
    """The sampler's batches as requests to the workers."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[_Request]:
        for number, indices in self.sampler:
            yield _Request(self.sampler.epoch, number, indices.tolist())


def _as_it_is(answer: Any) -> Any:
    return answer


class FolderLoader:
    """Batches of images from worker processes, augmented and normalised on the device; resumes like `BatchLoader`.

    Args:
        crops: what the workers do.
        targets: int64 [N].
        sampler: order and batches.
        device: where batches go; nothing waits for their copies.
        mean, std: per channel.
        augment: of the crops, which depends on the sampler's seed, its epoch and the sample alone.
        workers: processes that decode; 0: this one does.
        prefetch_factor: batches that each worker makes ahead.

    Raises:
        RunError: there is no shared memory for the batches that wait.
    """

    def __init__(
        self,
        crops: _Crops,
        targets: Tensor,
        sampler: EpochSampler,
        *,
        device: torch.device,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augment: Augmentation,
        workers: int,
        prefetch_factor: int,
    ) -> None:
        _check_shared_memory(workers * prefetch_factor * sampler.batch_size * crops.size**2 * 3)
        self.sampler, self.augment, self.device = sampler, augment, device
        self.targets, self.mean, self.std = targets.to(device), mean, std
        self.batch_sampler = None  # Lightning looks for it wherever there is a sampler
        self._done = {"epoch": 0, "batch": 0}
        self._loader = DataLoader(
            crops,
            sampler=_Requests(sampler),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=prefetch_factor if workers else None,
            pin_memory=device.type == "cuda",
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        for answer in self._loader:
            if answer.error:
                raise RunError(answer.error)
            epoch = self.sampler.epoch
            pixels, indices = (part.to(self.device, non_blocking=True) for part in (answer.pixels, answer.indices))
            images = self.augment.apply(
                pixels.permute(0, 3, 1, 2), indices, self.sampler.seed, epoch, self.mean, self.std
            )
            # Workers read ahead: what counts is what was handed on.
            self._done = {"epoch": epoch, "batch": answer.number + 1}
            yield Batch(images, self.targets[indices], indices)

    def state_dict(self) -> dict[str, int]:
        return self._done

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.load_state_dict(state)


def _check_shared_memory(needed: int) -> None:
    """Workers that find none are killed, without a word that says why."""
    place = Path("/dev/shm")
    if needed and place.is_dir() and needed > (free := shutil.disk_usage(place).free):
        raise RunError(
            f"batches that wait take {needed / 1e6:,.0f} MB of shared memory, and {place} has {free / 1e6:,.0f} MB "
            "free: give it more (docker run --shm-size), or lower workers, prefetch_factor, batch_size or "
            "eval_batch_size"
        )


@register_data("ImageFolder")
class ImageFolder(DataModule):
    """Images in `root/train/<class>/` and `root/val/<class>/`, as ImageNet is usually laid out; 3 channels.

    Worker processes decode and crop: training images at random (8 to 100 % of the area), of the others the centre is
    taken. Augmentation and normalisation happen in batches on the training device. `root/val` is the test set:
    ImageNet's own test labels are not public. Validation is held out of `root/train`.

    JPEG, PNG, BMP and WebP files of up to 2^26 pixels are read.

    Args:
        root: folder of the data set.
        batch_size: training samples a batch and process.
        size: side of the images in pixels after cropping.
        validation: training samples held out for validation; 0: none.
        workers: processes that decode, for each process that trains; None: as many as there are cores for it.
        seed: order, crops and augmentation.
        augmentation: of training batches, after cropping.
        eval_batch_size: samples a batch in validation, test and prediction.
        prefetch_factor: batches that each worker makes ahead, in shared memory.
        follow_symlinks: symbolic links may lead out of `root`, say to other data sets' classes.

    Raises:
        TypeError, ValueError, FileNotFoundError: an option of another type or out of range; a folder is missing or
            empty, or train and val have other classes; a file is no regular one.
    """

    in_channels = 3
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        root: str,
        batch_size: int = 64,
        size: int = 224,
        validation: int = 10000,
        workers: int | None = None,
        seed: int = 0,
        augmentation: Augmentation = Augmentation(flip=True),
        eval_batch_size: int = 256,
        prefetch_factor: int = 2,
        follow_symlinks: bool = False,
    ) -> None:
        super().__init__()
        of_batches(batch_size, eval_batch_size, seed, augmentation)
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self.size = whole_number("size", size, 1)
        self.workers = None if workers is None else whole_number("workers", workers, 0)
        self.prefetch_factor = whole_number("prefetch_factor", prefetch_factor, 1)
        whole_number("validation", validation, 0)
        true_or_false("follow_symlinks", follow_symlinks)
        augmentation.check(torch.empty(1, 3, size, size, dtype=torch.uint8, device="meta"))
        self.augmentation = augmentation
        home = folder_name("root", root)
        train, targets, self.class_names = list_images(home / "train", home, follow_symlinks=follow_symlinks)
        test, test_targets, test_names = list_images(home / "val", home, follow_symlinks=follow_symlinks)
        if test_names != self.class_names:
            differing = sorted(set(self.class_names) ^ set(test_names))
            raise ValueError(
                f"{root}/train has {len(self.class_names)} classes, {root}/val other ones ({', '.join(differing[:5])})"
            )
        self.num_classes = len(self.class_names)
        self.has_validation = validation > 0
        self._parts = {"train": (train, torch.tensor(targets)), "test": (test, torch.tensor(test_targets))}
        if validation:
            kept, held_out = split_off(torch.tensor(targets), validation, self.num_classes)
            for part, chosen in (("train", kept), ("validation", held_out)):
                self._parts[part] = ([train[i] for i in chosen.tolist()], torch.tensor(targets)[chosen])

    def train_dataloader(self) -> FolderLoader:
        return self._loader("train")

    def val_dataloader(self) -> FolderLoader | list:
        return self._loader("validation") if self.has_validation else []

    def test_dataloader(self) -> FolderLoader:
        return self._loader("test")

    def predict_dataloader(self) -> FolderLoader:
        return self._loader("test")

    def _loader(self, part: str) -> FolderLoader:
        train = part == "train"
        paths, targets = self._parts[part]
        sampler = EpochSampler(
            len(paths),
            self.batch_size if train else self.eval_batch_size,
            shuffle=train,
            drop_last=train,
            seed=self.seed,
            **self.share,
        )
        return FolderLoader(
            _Crops(paths, self.size, self.seed, train=train),
            targets,
            sampler,
            device=torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device,
            mean=self.mean,
            std=self.std,
            augment=self.augmentation if train else Augmentation(),
            workers=self._default_workers() if self.workers is None else self.workers,
            prefetch_factor=self.prefetch_factor,
        )

    def _default_workers(self) -> int:
        here = 1 if self.trainer is None else self.trainer.num_devices  # processes that train on this machine
        return max(1, len(os.sched_getaffinity(0)) // here)
