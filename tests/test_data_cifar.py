"""CIFAR from files in the official layout, and files that are not."""

import os
import pickle

import numpy as np
import pytest
import torch

from ckdsnn.data import CIFAR
from ckdsnn.data.cifar import LAYOUTS, read_batch
from ckdsnn.data.split import split_off

TRAIN = LAYOUTS["cifar10"].train


def write(path, count, seed, labels=None, key=b"labels", protocol=2, **changes):
    rng = np.random.default_rng(seed)
    labels = [i % 10 for i in range(count)] if labels is None else labels
    content = {b"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8), key: labels, **changes}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return content


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate((*TRAIN, "test_batch")):
        write(tmp_path / "cifar-10-batches-py" / name, 40, number)
    return tmp_path


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pixels_and_labels(tmp_path, protocol):
    # The official files were written by Python 2: their keys read as str, those of a Python 3 writer as bytes.
    path = tmp_path / "batch"
    content = write(path, 20, 0, protocol=protocol)
    path.write_bytes(pickle.dumps({k.decode(): v for k, v in content.items()}, protocol=protocol))
    images, targets = read_batch(path, "labels", 10)
    assert images.dtype == torch.uint8
    assert torch.equal(images, torch.from_numpy(content[b"data"]).reshape(20, 3, 32, 32))
    assert targets.tolist() == content[b"labels"]


def as_official(root):
    for path in (root / "cifar-10-batches-py").iterdir():
        content = pickle.loads(path.read_bytes())
        path.write_bytes(pickle.dumps({k.decode(): v for k, v in content.items()}, protocol=2))


def test_validation_is_held_out_of_training(root, capsys):
    as_official(root)
    data = CIFAR(str(root), validation=50, batch_size=10)
    data.setup("fit")
    data.setup("test")
    train, validation = data.arrays("train"), data.arrays("validation")
    assert (len(train.targets), len(validation.targets), len(data.arrays("test").targets)) == (150, 50, 40)
    assert torch.bincount(validation.targets).tolist() == [5] * 10
    rows = {tuple(image.flatten()[:20].tolist()) for image in (*train.images, *validation.images)}
    assert len(rows) == 200  # no image in both
    other = CIFAR(str(root), validation=50, batch_size=10, seed=7)
    other.setup("fit")
    assert torch.equal(other.arrays("validation").images, validation.images)
    assert "note: not the official files in" in capsys.readouterr().out


def test_a_part_of_the_training_samples(root):
    as_official(root)
    options = {"validation": 50, "batch_size": 10}
    (whole, part), (validation, same) = (
        [data.load(which) for data in (CIFAR(str(root), **options), CIFAR(str(root), train_samples=60, **options))]
        for which in ("train", "validation")
    )
    assert torch.equal(validation.images, same.images)
    assert torch.bincount(part.targets).tolist() == [6] * 10
    rows = {tuple(image.flatten()[:20].tolist()) for image in whole.images}
    assert {tuple(image.flatten()[:20].tolist()) for image in part.images} < rows
    with pytest.raises(ValueError, match="train_samples is 151, but there are 150 to train on"):
        CIFAR(str(root), train_samples=151, **options).load("train")
    with pytest.raises(ValueError, match="train_samples must be at least 1 or None for all, got 0"):
        CIFAR(str(root), train_samples=0, **options)


def test_without_validation_there_is_no_loader_for_it(root):
    as_official(root)
    data = CIFAR(str(root), validation=0, batch_size=10)
    data.setup("fit")
    assert len(data.arrays("train").targets) == 200
    assert data.val_dataloader() == []
    assert not data.has_validation


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_code_in_a_file_does_not_run(root, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = root / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(pickle.dumps({"data": Malicious(), "labels": []}))
    with pytest.raises(ValueError, match=r"data_batch_3 .* cannot be read: it wants to call posix.mkdir"):
        read_batch(path, "labels", 10)
    assert not (tmp_path / "owned").exists()


def test_files_that_are_not_whole(root, tmp_path):
    as_official(root)
    folder = root / "cifar-10-batches-py"
    whole = (folder / "data_batch_2").read_bytes()
    (folder / "data_batch_2").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"data_batch_2 .*cut short"):
        CIFAR(str(root), validation=0).setup("fit")
    (folder / "data_batch_2").unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_2 is missing"):
        CIFAR(str(root), validation=0).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"no folder cifar-100-python: download https://.*md5 eb90"):
        CIFAR(str(root), name="cifar100")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": list(range(20))}, r"labels from 0 to 19, they must lie in \[0, 9\]"),
        ({"key": b"fine_labels"}, "no 'data' and 'labels'"),
        ({"labels": [0] * 19}, r"must hold uint8 \[19, 3072\].*got uint8 \[20, 3072\]"),
    ],
)
def test_content_that_does_not_fit(tmp_path, changes, message):
    content = write(tmp_path / "batch", 20, 0, **changes)
    (tmp_path / "batch").write_bytes(pickle.dumps({k.decode(): v for k, v in content.items()}))
    with pytest.raises(ValueError, match=message):
        read_batch(tmp_path / "batch", "labels", 10)


def test_split_takes_the_same_share_of_every_class():
    targets = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    kept, held_out = split_off(targets, 33, num_classes=3)
    assert len(kept) + len(held_out) == 100
    assert set(kept.tolist()).isdisjoint(held_out.tolist())
    assert torch.bincount(targets[held_out]).tolist() == [23, 7, 3]
    with pytest.raises(ValueError, match="leaves nothing of 100"):
        split_off(targets, 100, 3)
    with pytest.raises(ValueError, match="leaves no sample of class 1"):
        split_off(targets, 99, 3)
