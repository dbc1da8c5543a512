"""What every data set must keep to: who trains, validates and tests, in which order, and what is augmented."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from ckdsnn.data import CIFAR, Augmentation, DVSFrames, ImageFolder, folder
from ckdsnn.data.cifar import LAYOUTS
from ckdsnn.data.images import central_box
from ckdsnn.data.split import balanced_subset, split_off

AUGMENTATION = Augmentation(shift=2, flip=True)


def cifar(root, **options):
    rng = np.random.default_rng(0)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    layout, pixels = LAYOUTS["cifar10"], {}
    for name in (*layout.train, layout.test):
        pixels[name] = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        content = {"data": pixels[name], "labels": [i % 10 for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    train = torch.from_numpy(np.concatenate([pixels[name] for name in layout.train]))
    test = torch.from_numpy(pixels[layout.test])
    data = CIFAR(
        str(root), **{"validation": 20, "batch_size": 8, "eval_batch_size": 3, "augmentation": AUGMENTATION} | options
    )
    return data, train.view(-1, 3, 32, 32) / 255, test.view(-1, 3, 32, 32) / 255


def image_folder(root, **options):
    rng = np.random.default_rng(0)
    pixels = {"train": [], "val": []}
    for part, count in (("train", 30), ("val", 10)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(image).save(root / part / name / f"{number:02}.png")
                pixels[part].append(
                    Image.fromarray(image).resize((14, 14), Image.Resampling.BILINEAR, box=(1, 1, 15, 15))
                )
    options = {"validation": 10, "batch_size": 8, "size": 14, "workers": 0, "eval_batch_size": 3} | options
    data = ImageFolder(str(root), **{"augmentation": AUGMENTATION} | options)
    return data, *(torch.from_numpy(np.stack(pixels[part])).permute(0, 3, 1, 2) / 255 for part in ("train", "val"))


def frames(root, split, **options):
    rng = np.random.default_rng(0)
    made = {"train": [], "test": []}
    for name in ("bird", "ship"):
        for number in range(30):
            part = "train" if number < 20 else "test"
            place = (root / part.title() / name) if split else (root / name)
            place.mkdir(parents=True, exist_ok=True)
            frame = rng.integers(0, 9, (3, 2, 8, 8)).astype(np.float32)
            np.save(place / f"{number:02}.npy", frame)
            made[part].append(frame)
    options = {"validation": 10, "batch_size": 8, "time_steps": 3, "size": None, "eval_batch_size": 3} | options
    if not split:
        options["test"] = 1 / 3
    data = DVSFrames(str(root), **{"augmentation": AUGMENTATION} | options)
    return data, *(torch.from_numpy(np.stack(made[part])) for part in ("train", "test"))


MAKERS = {
    "cifar": cifar,
    "images": image_folder,
    "frames": lambda root, **options: frames(root, False, **options),
    "frames in train and test": lambda root, **options: frames(root, True, **options),
}


@pytest.fixture(params=MAKERS)
def made(request, tmp_path):
    """A data set, and the images that belong in its training part with validation, and in its test part."""
    data, train, test = MAKERS[request.param](tmp_path)
    data.setup("fit")
    data.setup("test")
    return data, normal(data, train), normal(data, test)


def normal(data, images):
    if data.mean is None:
        return images
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    return (images - mean) / std


def passed(loader, epoch=0):
    """All that a loader gives in an epoch: images sample by sample, targets and indices."""
    loader.sampler.set_epoch(epoch)
    images, targets, indices = zip(*loader, strict=True)
    images = torch.cat([batch if batch.ndim == 4 else batch.transpose(0, 1) for batch in images])
    return images, torch.cat(targets), torch.cat(indices)


def find(images, among):
    """The positions of `images` among others."""
    distance = torch.cdist(images.flatten(1).double(), among.flatten(1).double())
    assert (distance.min(1).values < 1e-3).all(), "they are not all there, or not as they are"
    return distance.argmin(1).tolist()


@pytest.fixture
def central(monkeypatch):
    """Training images are cropped as those for testing are, so that order and augmentation alone show."""
    monkeypatch.setattr(folder, "random_box", lambda width, height, generator: central_box(width, height))


@pytest.mark.parametrize("loader", ["test_dataloader", "predict_dataloader"])
def test_the_test_part_is_the_whole_test_part_in_order_as_it_is(made, loader):
    data, _, test = made
    for epoch in range(2):
        images, targets, indices = passed(getattr(data, loader)(), epoch)
        assert find(images, test) == list(range(len(test)))
        assert indices.tolist() == list(range(len(test)))
        assert len(targets) == len(test)
        assert torch.bincount(targets).tolist() == [len(test) // data.num_classes] * data.num_classes


def test_validation_is_taken_from_the_training_samples_and_is_as_it_is(made):
    data, train, _ = made
    images, targets, _ = passed(data.val_dataloader())
    held_out = find(images, train)
    assert held_out == sorted(held_out)
    assert torch.equal(passed(data.val_dataloader(), epoch=1)[0], images)
    assert torch.bincount(targets).tolist() == [len(images) // data.num_classes] * data.num_classes
    assert len(data.val_dataloader()) == -(-len(images) // 3)


@pytest.mark.parametrize("maker", MAKERS)
def test_training_passes_every_other_sample_once_in_a_new_order_every_epoch(tmp_path, central, maker):
    data, train, _ = MAKERS[maker](tmp_path, augmentation=Augmentation(), batch_size=10)
    data.setup("fit")
    train = normal(data, train)
    validation = passed(data.val_dataloader())
    orders = []
    for epoch in (0, 1, 0):
        images, targets, indices = passed(data.train_dataloader(), epoch)
        assert sorted(indices.tolist()) == list(range(len(train) - len(validation[0])))
        places = find(images, train)
        assert not set(places) & set(find(validation[0], train))
        assert len(set(places)) == len(places)
        orders.append((indices.tolist(), targets.tolist()))
    assert orders[0] == orders[2]
    assert orders[0][0] != orders[1][0]
    assert orders[0][0] != sorted(orders[0][0])
    assert orders[0][1] != orders[1][1]


def test_training_is_augmented_anew_every_epoch(made, central):
    data, _, _ = made
    epochs = []
    for epoch in (0, 1, 0):
        images, _, indices = passed(data.train_dataloader(), epoch)
        epochs.append(dict(zip(indices.tolist(), images, strict=True)))
    common = sorted(set(epochs[0]) & set(epochs[1]))
    changed = [not torch.equal(epochs[0][i], epochs[1][i]) for i in common]
    assert sum(changed) > 0.7 * len(common)
    assert all(torch.equal(epochs[0][i], epochs[2][i]) for i in epochs[0])


def test_the_seed_decides_order_and_augmentation_but_not_who_validates(tmp_path):
    first, _, _ = frames(tmp_path / "a", False)
    other, _, _ = frames(tmp_path / "b", False, seed=1)
    for data in (first, other):
        data.setup("fit")
    assert torch.equal(passed(first.val_dataloader())[0], passed(other.val_dataloader())[0])
    (images, _, order), (other_images, _, other_order) = (passed(data.train_dataloader()) for data in (first, other))
    assert order.tolist() != other_order.tolist()
    by_index = dict(zip(other_order.tolist(), other_images, strict=True))
    assert any(
        not torch.equal(by_index[i], image) for i, image in zip(order.tolist(), images, strict=True) if i in by_index
    )


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": "8"}, TypeError, "batch_size must be an integer, got '8'"),
        ({"batch_size": True}, TypeError, "batch_size must be an integer, got True"),
        ({"batch_size": 8.0}, TypeError, "batch_size must be an integer, got 8.0"),
        ({"eval_batch_size": -1}, ValueError, "eval_batch_size must be at least 1, got -1"),
        ({"validation": -1}, ValueError, "validation must be at least 0, got -1"),
        ({"validation": 0.1}, TypeError, r"validation must be an integer, got 0\.1"),
        ({"validation": "no"}, TypeError, "validation must be an integer, got 'no'"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": "0"}, TypeError, "seed must be an integer, got '0'"),
        ({"augmentation": None}, TypeError, "augmentation must be a ckdsnn.data.Augmentation, got None"),
        ({"augmentation": "flip"}, TypeError, "augmentation must be a ckdsnn.data.Augmentation, got 'flip'"),
    ],
)
def test_bad_options_are_named(tmp_path, maker, options, error, message):
    with pytest.raises(error, match=message):
        MAKERS[maker](tmp_path, **options)


@pytest.mark.parametrize(
    ("maker", "options", "error", "message"),
    [
        ("cifar", {"name": "cifar11"}, ValueError, "name must be one of cifar10, cifar100, got 'cifar11'"),
        ("cifar", {"train_samples": 0}, ValueError, "train_samples must be at least 1, got 0"),
        ("cifar", {"train_samples": "all"}, TypeError, "train_samples must be an integer, got 'all'"),
        ("images", {"size": -224}, ValueError, "size must be at least 1, got -224"),
        ("images", {"size": "224"}, TypeError, "size must be an integer, got '224'"),
        ("images", {"workers": -1}, ValueError, "workers must be at least 0, got -1"),
        ("images", {"workers": True}, TypeError, "workers must be an integer, got True"),
        ("images", {"prefetch_factor": 0}, ValueError, "prefetch_factor must be at least 1, got 0"),
        ("images", {"follow_symlinks": "no"}, TypeError, "follow_symlinks must be true or false, got 'no'"),
        (
            "images",
            {"augmentation": Augmentation(cutout=14)},
            ValueError,
            "cutout=14 leaves nothing of images of 14 x 14",
        ),
        ("frames", {"time_steps": 0}, ValueError, "time_steps must be at least 1, got 0"),
        ("frames", {"time_steps": "10"}, TypeError, "time_steps must be an integer, got '10'"),
        ("frames", {"size": 0}, ValueError, "size must be at least 1, got 0"),
        ("frames", {"size": 48.0}, TypeError, r"size must be an integer, got 48\.0"),
        ("frames in train and test", {"test": 0.0}, ValueError, r"test is a share between 0 and 1, got 0\.0"),
        ("frames in train and test", {"test": "0.1"}, TypeError, r"test must be a number, got '0\.1'"),
        ("frames", {"workers": -1}, ValueError, "workers must be at least 0, got -1"),
        ("frames", {"follow_symlinks": 1}, TypeError, "follow_symlinks must be true or false, got 1"),
        ("frames", {"split_by": "count"}, ValueError, "split_by must be number or time, got 'count'"),
        ("frames", {"duration": 0}, ValueError, "duration must be at least 1, got 0"),
        ("frames", {"duration": 0.1}, TypeError, r"duration must be an integer, got 0\.1"),
        ("frames", {"sensor_size": 128}, TypeError, r"sensor_size must be \[height, width\] in pixels, got 128"),
        ("frames", {"sensor_size": (0, 3)}, ValueError, "sensor_size must be at least 1, got 0"),
        (
            "frames",
            {"sensor_size": (3, 10**6)},
            ValueError,
            "sensor_size must be up to 2048 pixels a side, got 1000000",
        ),
    ],
)
def test_bad_options_of_one_data_set_are_named(tmp_path, maker, options, error, message):
    with pytest.raises(error, match=message):
        MAKERS[maker](tmp_path, **options)


@pytest.mark.parametrize("kind", [CIFAR, ImageFolder, DVSFrames])
@pytest.mark.parametrize(("root", "error"), [(None, TypeError), (3, TypeError), ("", ValueError)])
def test_a_root_that_is_no_folder_is_named(kind, root, error):
    with pytest.raises(error, match=r"^root "):
        kind(root)


@pytest.mark.parametrize(
    ("count", "error", "message"),
    [
        (-1, ValueError, "must be at least 0, got -1"),
        (7, ValueError, "count must be up to 6, the number of samples, got 7|leaves nothing of 6 training samples"),
        (2.0, TypeError, r"must be an integer, got 2\.0"),
        ("2", TypeError, "must be an integer, got '2'"),
    ],
)
@pytest.mark.parametrize("split", [balanced_subset, split_off])
def test_bad_numbers_of_samples_are_named(split, count, error, message):
    with pytest.raises(error, match=message):
        split(torch.tensor([0, 1, 0, 1, 0, 1]), count, 2)
