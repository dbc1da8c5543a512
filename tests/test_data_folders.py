"""Folders of images."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ckdsnn.checkpoint import RunError
from ckdsnn.data import Augmentation, ImageFolder
from ckdsnn.data.images import central_box, random_box, read_crop


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 10), ("val", 3)):
        for name in ("cat", "dog"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path


def folder(root, **options):
    return ImageFolder(str(root), **{"batch_size": 4, "size": 16, "validation": 4, "workers": 0, **options})


def test_parts_and_shapes(images):
    data = folder(images)
    assert (data.num_classes, data.class_names) == (2, ["cat", "dog"])
    batches = list(data.train_dataloader())
    assert len(batches) == 4  # 16 of 20 are left to train on
    batch = batches[0]
    assert batch.images.shape == (4, 3, 16, 16)
    assert batch.images.dtype == torch.float32
    assert abs(batch.images.mean()) < 0.5
    assert sum(len(b.targets) for b in data.val_dataloader()) == 4
    assert torch.cat([b.targets for b in data.test_dataloader()]).tolist() == [0, 0, 0, 1, 1, 1]
    assert folder(images, validation=0).val_dataloader() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_depend_on_seed_epoch_and_sample_alone(images, workers):
    def epoch(number, skip=0, **options):
        loader = folder(images, workers=workers, augmentation=Augmentation(), **options).train_dataloader()
        loader.load_state_dict({"epoch": number, "batch": skip})
        loader.sampler.set_epoch(number)
        found = list(loader)
        assert loader.state_dict() == {"epoch": number, "batch": 4}
        return found

    whole = epoch(1)
    rest = epoch(1, skip=3)
    assert len(rest) == 1
    assert torch.equal(rest[0].images, whole[3].images)
    assert torch.equal(rest[0].indices, whole[3].indices)
    by_sample = {i: image for batch in whole for i, image in zip(batch.indices.tolist(), batch.images, strict=True)}
    for others in (epoch(2), epoch(1, seed=5)):
        pairs = [(by_sample[i], image) for b in others for i, image in zip(b.indices.tolist(), b.images, strict=True)]
        assert not any(torch.equal(one, other) for one, other in pairs)


def test_reading_ahead_is_not_having_trained(images):
    loader = folder(images, workers=2).train_dataloader()
    iterator = iter(loader)
    next(iterator)
    assert loader.state_dict() == {"epoch": 0, "batch": 1}


def test_every_sample_has_a_crop_of_its_own(images):
    for path in (images / "train").rglob("*.png"):
        path.write_bytes((images / "train" / "cat" / "0.png").read_bytes())
    crops = torch.cat([b.images for b in folder(images, augmentation=Augmentation()).train_dataloader()])
    assert len({tuple(crop.flatten().tolist()) for crop in crops}) == len(crops) == 16


def test_training_batches_are_full(images):
    batches = list(folder(images, validation=2).train_dataloader())
    assert [len(batch.targets) for batch in batches] == [4] * 4  # of 18


def test_boxes_lie_in_the_image():
    for seed in range(50):
        left, upper, right, lower = random_box(40, 25, torch.Generator().manual_seed(seed))
        assert 0 <= left < right <= 40
        assert 0 <= upper < lower <= 25
        assert 0.05 < (right - left) * (lower - upper) / 1000 <= 1
    assert random_box(400, 1, torch.Generator().manual_seed(0)) == (199.5, 0, 200.5, 1)


def test_bad_folders(images, tmp_path):
    with pytest.raises(FileNotFoundError, match="train is missing"):
        folder(tmp_path / "nowhere")
    (images / "train" / "empty").mkdir()
    with pytest.raises(ValueError, match="class empty has no images"):
        folder(images)
    (images / "train" / "empty").rmdir()
    (images / "train" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(RuntimeError, match=r"0\.png cannot be read as an image .*replace or remove"):
        list(folder(images, validation=0).train_dataloader())
    (images / "val" / "dog").rename(images / "val" / "wolf")
    with pytest.raises(ValueError, match="other ones"):
        folder(images)


def crop(tmp_path, image, name="x.png", size=8, box=None, **options):
    image.save(tmp_path / name, **options)
    return read_crop(tmp_path / name, size, lambda width, height: box or (0, 0, width, height))


def test_grey_of_16_bits_becomes_grey_of_8(tmp_path):
    values = np.array(
        [[0, 255, 256, 32767], [32768, 40000, 65534, 65535], [128, 129, 257, 514], [1, 2, 3, 4]], np.uint16
    )
    expected = np.array([[0, 1, 1, 127], [128, 156, 255, 255], [0, 1, 1, 2], [0, 0, 0, 0]])
    pixels = crop(tmp_path, Image.fromarray(values), size=4)
    assert np.array_equal(pixels, expected[:, :, None].repeat(3, axis=2))
    with Image.open(tmp_path / "x.png") as image:
        assert image.mode.startswith("I")  # it was kept with 16 bits


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_kind_of_pixels_becomes_rgb(tmp_path, mode):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).convert(mode)
    name = "x.jpg" if mode == "CMYK" else "x.png"
    pixels = crop(tmp_path, image, name)
    assert pixels.dtype == np.uint8
    with Image.open(tmp_path / name) as saved:
        assert saved.mode == mode
        assert np.array_equal(pixels, np.asarray(saved.convert("RGB")))


def test_boxes_are_what_is_cut_out(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    pixels = crop(tmp_path, image, size=5, box=(3, 7, 8, 12))
    assert np.array_equal(pixels, np.asarray(image)[7:12, 3:8])
    assert central_box(30, 16) == (8, 1, 22, 15)


@pytest.mark.parametrize(
    ("box", "decoded"),
    [
        ((0, 0, 640, 480), (160, 120)),  # 1/4: 160 x 120 still hold 100 x 100
        ((0, 0, 399, 480), (320, 240)),  # at 1/4 the box would have less than 100 columns
        ((100, 100, 300, 300), (320, 240)),
        ((100, 100, 299, 300), (640, 480)),
    ],
)
def test_jpegs_are_decoded_no_larger_than_their_crop_needs(tmp_path, monkeypatch, box, decoded):
    x, y = np.meshgrid(np.arange(640), np.arange(480))
    image = Image.fromarray(np.stack([x / 2.6, y / 2, (x + y) / 5], axis=2).astype(np.uint8))
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *a, **o: sizes.append(self.size) or resize(self, *a, **o))
    pixels = crop(tmp_path, image, "x.jpg", size=100, box=box, quality=95)
    assert sizes == [decoded]
    expected = np.asarray(resize(image, (100, 100), Image.Resampling.BILINEAR, box=box)).astype(int)
    assert abs(pixels.astype(int) - expected).max() < 6
    assert abs(pixels.astype(int) - expected).mean() < 1.5


def test_as_many_workers_as_there_are_cores_for_each_process(images, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**40))
    data = folder(images, workers=None)
    assert data.train_dataloader()._loader.num_workers == 12
    data.trainer = SimpleNamespace(
        num_devices=4, global_rank=0, world_size=4, strategy=SimpleNamespace(root_device=torch.device("cpu"))
    )
    assert data.train_dataloader()._loader.num_workers == 3
    data.trainer.num_devices = 16
    assert data.train_dataloader()._loader.num_workers == 1
    loader = folder(images, workers=2, prefetch_factor=5).train_dataloader()._loader
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (2, 5, True)


def test_too_little_shared_memory_is_said_before_training(images, monkeypatch):
    needed = 2 * 3 * 4 * 16 * 16 * 3
    for free in (needed - 1, needed):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        data = folder(images, workers=2, prefetch_factor=3)
        if free < needed:
            with pytest.raises(RunError, match=r"of shared memory, and /dev/shm has .*--shm-size.*lower workers"):
                data.train_dataloader()
        else:
            data.train_dataloader()
        folder(images, workers=0).train_dataloader()


def test_augmentation_is_by_seed_epoch_and_sample(images, monkeypatch):
    augmentation = Augmentation(flip=True, auto_augment="imagenet", erase=0.5)
    loader = folder(images, augmentation=augmentation, seed=3).train_dataloader()
    loader.sampler.set_epoch(2)
    for batch in loader:
        pixels = np.stack([loader._loader.dataset.crop(index, 2) for index in batch.indices.tolist()])
        raw = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        expected = augmentation.apply(raw, batch.indices, 3, 2, ImageFolder.mean, ImageFolder.std)
        assert batch.images.is_contiguous()
        assert torch.equal(batch.images, expected)
