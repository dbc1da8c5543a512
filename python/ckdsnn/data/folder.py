"""Folders of images, a folder a class, as ImageNet comes: read and cropped by worker processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ckdsnn.data.batches import Batch, EpochSampler, counter_generator
from ckdsnn.data.module import DataModule
from ckdsnn.data.split import split_off

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


class _Request(NamedTuple):
    epoch: int
    batch: int
    sample: int


def list_images(folder: Path) -> tuple[list[Path], list[int], list[str]]:
    """Image files under `folder/<class>/`, their class numbers and the classes' names, all in alphabetical order.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no folders of classes, or a class has no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: images are expected in {folder}/<class>/")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not names:
        raise ValueError(f"{folder} holds no folders: images are expected in {folder}/<class>/")
    paths, targets = [], []
    for number, name in enumerate(names):
        found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise ValueError(
                f"class {name} has no images in {folder / name} (looked for {', '.join(sorted(SUFFIXES))})"
            )
        paths += found
        targets += [number] * len(found)
    return paths, targets, names


def random_box(width: int, height: int, generator: torch.Generator) -> tuple[float, float, float, float]:
    """A box (left, upper, right, lower) of 8 to 100 % of the image at an aspect ratio of 3/4 to 4/3 (Szegedy et al.,
    arXiv 1409.4842), or the largest central one if ten draws do not fit."""
    for _ in range(10):
        draw = torch.rand(4, generator=generator).tolist()
        area = width * height * (0.08 + 0.92 * draw[0])
        ratio = math.exp(math.log(3 / 4) + draw[1] * (math.log(4 / 3) - math.log(3 / 4)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(draw[2] * (width - w + 1)), int(draw[3] * (height - h + 1))
            return left, upper, left + w, upper + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


class _Images(Dataset):
    """Decoded images by request; a training image's crop depends on (seed, epoch, index) alone, so it does not matter
    which worker makes it, or when."""

    def __init__(self, paths: list[Path], size: int, seed: int, *, train: bool) -> None:
        self.paths, self.size, self.seed, self.train = paths, size, seed, train

    def __getitem__(self, request: _Request) -> tuple[Tensor, _Request]:
        path = self.paths[request.sample]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise RuntimeError(f"{path} cannot be read as an image ({error}): replace or remove it") from error
        size = (self.size, self.size)
        if self.train:
            generator = counter_generator(self.seed, request.epoch, request.sample)
            box = random_box(image.width, image.height, generator)
            image = image.resize(size, Image.Resampling.BILINEAR, box=box)
            if torch.rand((), generator=generator) < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        else:
            side = min(image.size) * 0.875  # the centre of the image scaled to 256 where size is 224
            left, upper = (image.width - side) / 2, (image.height - side) / 2
            image = image.resize(size, Image.Resampling.BILINEAR, box=(left, upper, left + side, upper + side))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), request

    def __len__(self) -> int:
        return len(self.paths)


class FolderLoader:
    """Batches of images from worker processes, uint8 until they are on the device; resumes like `BatchLoader`."""

    def __init__(self, images: _Images, targets: Tensor, sampler: EpochSampler, workers: int) -> None:
        self.targets, self.sampler = targets, sampler
        self.batch_sampler = None  # Lightning looks for it wherever there is a sampler
        self._done = {"epoch": 0, "batch": 0}
        self._loader = DataLoader(
            images,
            batch_sampler=_Requests(sampler),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_collate,
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        for images, indices, number in self._loader:
            # Workers read ahead: what counts is what was handed on.
            self._done = {"epoch": self.sampler.epoch, "batch": number + 1}
            yield Batch(images, self.targets[indices], indices)

    def state_dict(self) -> dict[str, int]:
        return self._done

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.load_state_dict(state)


class _Requests:
    """The sampler's batches as requests to the workers."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[_Request]]:
        for number, indices in self.sampler:
            yield [_Request(self.sampler.epoch, number, index) for index in indices.tolist()]


def _collate(items: list[tuple[Tensor, _Request]]) -> tuple[Tensor, Tensor, int]:
    images, requests = zip(*items, strict=True)
    return torch.stack(images), torch.tensor([request.sample for request in requests]), requests[0].batch


class ImageFolder(DataModule):
    """Images in `root/train/<class>/` and `root/val/<class>/`, as ImageNet is usually laid out; 3 channels.

    Training images are cropped at random (8 to 100 % of the area) and mirrored; for the others the centre is taken.
    `root/val` is the test set: ImageNet's own test labels are not public. Validation is held out of `root/train`.

    Args:
        root: folder of the data set.
        batch_size: samples a batch and process.
        size: side of the images in pixels after cropping.
        validation: training samples held out for validation; 0: none.
        workers: processes that read images.
        seed: order and crops.

    Raises:
        FileNotFoundError, ValueError: a folder is missing or empty, or train and val have other classes.
    """

    in_channels = 3
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(
        self, root: str, batch_size: int = 64, size: int = 224, validation: int = 10000, workers: int = 4, seed: int = 0
    ) -> None:
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("size", size, 1), ("workers", workers, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.batch_size, self.size, self.workers, self.seed = batch_size, size, workers, seed
        train, targets, self.class_names = list_images(Path(root) / "train")
        test, test_targets, test_names = list_images(Path(root) / "val")
        if test_names != self.class_names:
            raise ValueError(f"{root}/train has {len(self.class_names)} classes, {root}/val other ones")
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
            len(paths), self.batch_size, shuffle=train, drop_last=train, seed=self.seed, **self.share
        )
        return FolderLoader(_Images(paths, self.size, self.seed, train=train), targets, sampler, self.workers)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        mean, std = (torch.tensor(v, device=batch.images.device).view(3, 1, 1) for v in (self.mean, self.std))
        return batch._replace(images=(batch.images.float() / 255 - mean) / std)
