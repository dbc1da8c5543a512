"""Folders of images and of event frames."""

import numpy as np
import pytest
import torch
from PIL import Image

from ckdsnn.data import DVSFrames, ImageFolder
from ckdsnn.data.folder import random_box
from ckdsnn.data.frames import read_frames


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
    batch = data.on_after_batch_transfer(batches[0], 0)
    assert batch.images.shape == (4, 3, 16, 16)
    assert batch.images.dtype == torch.float32
    assert abs(batch.images.mean()) < 0.5
    assert sum(len(b.targets) for b in data.val_dataloader()) == 4
    assert torch.cat([b.targets for b in data.test_dataloader()]).tolist() == [0, 0, 0, 1, 1, 1]
    assert folder(images, validation=0).val_dataloader() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_depend_on_seed_epoch_and_sample_alone(images, workers):
    def epoch(number, skip=0, **options):
        loader = folder(images, workers=workers, **options).train_dataloader()
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
    assert not torch.equal(epoch(2)[0].images, whole[0].images)
    assert not torch.equal(epoch(1, seed=5)[0].images, whole[0].images)


def test_reading_ahead_is_not_having_trained(images):
    loader = folder(images, workers=2).train_dataloader()
    iterator = iter(loader)
    next(iterator)
    assert loader.state_dict() == {"epoch": 0, "batch": 1}


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


@pytest.fixture
def recordings(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("airplane", "bird"):
        (tmp_path / name).mkdir()
        for number in range(10):
            frames = rng.integers(0, 5, (4, 2, 16, 16)).astype(np.uint8)
            if number % 2:
                np.save(tmp_path / name / f"{number}.npy", frames)
            else:
                np.savez(tmp_path / name / f"{number}.npz", frames=frames)
    return tmp_path


def frames(root, **options):
    return DVSFrames(str(root), **{"time_steps": 4, "batch_size": 4, "size": 8, "validation": 4, **options})


def test_recordings_become_time_first_batches(recordings):
    data = frames(recordings, test=0.2)
    data.setup("fit")
    data.setup("test")
    sizes = [len(data.arrays(part).targets) for part in ("train", "validation", "test")]
    assert sizes == [12, 4, 4]
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (4, 4, 2, 8, 8)
    counts = read_frames(recordings / "bird" / "9.npy", 4)
    pooled = counts.reshape(4, 2, 8, 2, 8, 2).mean((3, 5))
    torch.testing.assert_close(data.arrays("test").images[-1], pooled)


def test_bad_recordings(recordings, tmp_path):
    with pytest.raises(ValueError, match=r"holds an array \[4, 2, 16, 16\], expected \[T=10, 2, H, W\]"):
        frames(recordings, time_steps=10).setup("fit")
    np.save(recordings / "bird" / "0.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"0.npy cannot be read as frames"):
        frames(recordings).setup("fit")
    with pytest.raises(ValueError, match=r"share between 0 and 1, got 1\.0"):
        frames(recordings, test=1.0)
    with pytest.raises(FileNotFoundError, match="nowhere is missing"):
        frames(tmp_path / "nowhere")
