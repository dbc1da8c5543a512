"""Order, sharding, resumption and augmentation of in-memory batches."""

import sys
from itertools import chain, product

import pytest
import torch

from ckdsnn.data import augment
from ckdsnn.data.augment import Augmentation, cutout, random_erase, random_flip, random_shift
from ckdsnn.data.batches import BatchLoader, EpochSampler, counter_generator


def batches(sampler, epoch):
    sampler.set_epoch(epoch)
    return [indices.tolist() for _, indices in sampler]


def loader(augment=None, **options):
    images = torch.arange(20 * 3 * 8 * 8, dtype=torch.uint8).reshape(20, 3, 8, 8)
    sampler = EpochSampler(20, 4, shuffle=True, drop_last=True, seed=5)
    return BatchLoader(images, torch.arange(20), sampler, augment=augment, **options)


def test_every_epoch_is_a_new_permutation_that_the_seed_decides():
    a, b = (EpochSampler(50, 8, shuffle=True, seed=1) for _ in range(2))
    first, second = batches(a, 0), batches(a, 1)
    assert sorted(chain(*first)) == list(range(50)) == sorted(chain(*second))
    assert first != second
    assert batches(b, 1) == second  # without having passed epoch 0
    assert batches(EpochSampler(50, 8, shuffle=True, seed=2), 0) != first


@pytest.mark.parametrize("length", [64, 67, 49])  # 49: one process has 17 samples, which is a batch more than 16
def test_processes_share_the_samples(length):
    training = [EpochSampler(length, 8, shuffle=True, drop_last=True, rank=r, world_size=3) for r in range(3)]
    assert len({len(sampler) for sampler in training}) == 1
    assert [len(batches(sampler, 4)) for sampler in training] == [len(training[0])] * 3
    seen = [i for sampler in training for batch in batches(sampler, 4) for i in batch]
    assert len(seen) == len(set(seen))
    testing = [EpochSampler(length, 8, shuffle=False, rank=r, world_size=3) for r in range(3)]
    assert sorted(i for s in testing for batch in batches(s, 0) for i in batch) == list(range(length))
    assert len({len(sampler) for sampler in testing}) == 1
    assert [len(batches(sampler, 0)) for sampler in testing] == [len(testing[0])] * 3
    assert all(0 < len(batch) <= 8 for sampler in testing for batch in batches(sampler, 0))


def test_resumes_in_the_middle_of_an_epoch():
    whole = loader(Augmentation(shift=2, flip=True))
    whole.sampler.set_epoch(3)
    expected = [batch.images for batch in whole]

    interrupted = loader(Augmentation(shift=2, flip=True))
    interrupted.sampler.set_epoch(3)
    iterator = iter(interrupted)
    for _ in range(2):
        next(iterator)
    state = interrupted.state_dict()

    resumed = loader(Augmentation(shift=2, flip=True))
    resumed.load_state_dict(state)
    resumed.sampler.set_epoch(3)
    rest = [batch.images for batch in resumed]
    assert len(rest) == 3
    assert all(torch.equal(a, b) for a, b in zip(rest, expected[2:], strict=True))
    resumed.sampler.set_epoch(4)
    assert len(list(resumed)) == 5  # the next epoch is whole


def test_a_state_from_another_epoch_does_not_shorten_this_one():
    resumed = loader()
    resumed.load_state_dict({"epoch": 2, "batch": 5})
    resumed.sampler.set_epoch(3)
    assert len(list(resumed)) == 5


def test_batches_are_normalised_and_indexed():
    made = loader(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    batch = next(iter(made))
    raw = made.images[batch.indices].double() / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    torch.testing.assert_close(batch.images.double(), (raw - mean) / std, rtol=1e-6, atol=1e-6)
    assert torch.equal(batch.targets, batch.indices)


def test_frames_come_time_first():
    frames = torch.rand(6, 5, 2, 4, 4)
    made = BatchLoader(frames, torch.zeros(6, dtype=torch.long), EpochSampler(6, 3, shuffle=False))
    batch = next(iter(made))
    assert batch.images.shape == (5, 3, 2, 4, 4)
    assert torch.equal(batch.images[:, 1], frames[1])


def test_counter_generators_are_unrelated():
    numbers = [(s, *counters) for s in range(4) for n in range(3) for counters in product(range(4), repeat=n)]
    firsts = {torch.rand(1, generator=counter_generator(*seed_and_counters)).item() for seed_and_counters in numbers}
    assert len(firsts) == len(numbers) == 84


@pytest.mark.parametrize("frames", [False, True])
def test_shift_is_a_crop_of_the_padded_image(frames):
    images = torch.rand(6, 3, 8, 9) + 1  # no zeros, so that padding shows
    if frames:
        images = torch.stack([images, 2 * images])
    out = random_shift(images, counter_generator(0), padding=2)
    assert out.shape == images.shape
    single_in, single_out = (images[0], out[0]) if frames else (images, out)
    padded = torch.nn.functional.pad(single_in, (2, 2, 2, 2))
    places = []
    for sample, cropped in zip(padded, single_out, strict=True):
        crops = {(y, x): sample[:, y : y + 8, x : x + 9] for y in range(5) for x in range(5)}
        places.append(next(place for place, crop in crops.items() if torch.equal(crop, cropped)))
    assert len(set(places)) > 2  # each sample for itself
    if frames:
        assert torch.equal(out[1], 2 * out[0])  # all time steps alike


def test_flip_mirrors_some():
    images = torch.rand(40, 1, 3, 5)
    out = random_flip(images, counter_generator(1))
    mirrored = [torch.equal(o, i.flip(-1)) for o, i in zip(out, images, strict=True)]
    same = [torch.equal(o, i) for o, i in zip(out, images, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 10 < sum(mirrored) < 30


def test_erase_clears_one_box_of_the_right_size():
    images = torch.ones(200, 2, 32, 32)
    gone = random_erase(images, counter_generator(2), probability=0.5)[:, 0] == 0
    erased = gone.flatten(1).any(1)
    assert 60 < erased.sum() < 140
    for mask in gone[erased]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns[None])  # a box
        assert 0.015 * 1024 < mask.sum() < 0.36 * 1024
    assert images.min() == 1  # the argument stays


def test_cutout_clears_a_square():
    gone = cutout(torch.ones(50, 1, 16, 16), counter_generator(3), size=6)[:, 0] == 0
    areas = gone.flatten(1).sum(1)
    assert areas.max() == 36
    assert areas.min() >= 9  # a corner


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": -1}, "pixels >= 0.*shift=-1"),
        ({"erase": 1.5}, r"probability in \[0, 1\], got 1.5"),
        ({"cutout": -3}, "cutout=-3"),
    ],
)
def test_bad_augmentation_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)


def test_too_small_a_data_set_for_one_batch():
    with pytest.raises(ValueError, match=r"10 training samples do not fill one batch of 16.*lower batch_size to 10"):
        EpochSampler(10, 16, shuffle=True, drop_last=True)


def test_auto_augment_goes_image_by_image_from_the_given_generator(monkeypatch):
    monkeypatch.setattr(augment, "_auto_augment", lambda policy: lambda image: image + torch.randint(1, 9, ()).byte())
    augmentation = Augmentation(auto_augment="cifar10")
    assert augmentation.active
    pixels = torch.zeros(30, 3, 4, 4, dtype=torch.uint8)
    before = torch.get_rng_state()
    out = augmentation.on_pixels(pixels, counter_generator(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(out, augmentation.on_pixels(pixels, counter_generator(0)))
    assert not torch.equal(out, augmentation.on_pixels(pixels, counter_generator(1)))
    assert len({image.flatten()[0].item() for image in out}) > 3
    with pytest.raises(ValueError, match=r"needs uint8 images .*float32"):
        augmentation.on_pixels(pixels.float(), counter_generator(0))


def test_auto_augment_without_torchvision(monkeypatch):
    augment._auto_augment.cache_clear()
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    with pytest.raises(ImportError, match=r"auto_augment is torchvision's.*or set auto_augment to none"):
        Augmentation(auto_augment="cifar10")


def test_on_a_batch_pixels_come_first(monkeypatch):
    monkeypatch.setattr(augment, "_auto_augment", lambda policy: lambda image: image * 0)
    batch = next(iter(loader(Augmentation(auto_augment="cifar10", shift=1), mean=(0.5,), std=(1.0,))))
    assert batch.images.unique().tolist() == [-0.5, 0.0]  # black where there was an image, the mean where it was padded
