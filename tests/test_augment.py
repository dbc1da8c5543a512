"""Augmentation of batches and whole epochs, and the draws behind it."""

import itertools
import math

import pytest
import torch

from ckdsnn.data import augment
from ckdsnn.data.augment import Augmentation
from ckdsnn.data.draws import FIRST, GAMMA, SECOND, Draw, Draws, mixed

EVERYTHING = Augmentation(auto_augment="cifar10", shift=3, flip=True, erase=0.5, cutout=4)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def pixels(count, channels=3, height=16, width=12):
    generator = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def apply(augmentation, images, indices=None, seed=0, epoch=0, **options):
    indices = torch.arange(len(images)) if indices is None else indices
    return augmentation.apply(images, indices, seed, epoch, **options)


def splitmix(state):
    state = (state ^ state >> 30) * FIRST % 2**64
    state = (state ^ state >> 27) * SECOND % 2**64
    return state ^ state >> 31


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (1, 0), (2**62, 399)])
def test_draws_are_those_of_splitmix64(seed, epoch):
    indices = [0, 1, 2, 49_999, 2**40]
    draws = Draws(seed, epoch, torch.tensor(indices))
    for draw in (Draw.SUB_POLICY, Draw.CUTOUT_X):
        streams = [splitmix((index * GAMMA + mixed(seed, epoch)) % 2**64) for index in indices]
        expected = [splitmix((stream + (draw + 1) * GAMMA) % 2**64) >> 40 for stream in streams]
        assert draws.bits(draw).tolist() == expected
        assert draws.uniform(draw).tolist() == [bits / 2**24 for bits in expected]
        assert draws.below(draw, 9).tolist() == [bits * 9 // 2**24 for bits in expected]


def test_draws_are_uniform_and_unrelated():
    count, indices = 2**16, torch.arange(2**16)
    streams = [
        (Draws(seed, epoch, indices), draw) for seed, epoch, draw in itertools.product((0, 1), (0, 1), (0, 1, 2))
    ]
    uniform = torch.stack([draws.uniform(draw) for draws, draw in streams])
    assert 0 <= uniform.min() < 0.001
    assert 0.999 < uniform.max() < 1
    for stream in uniform:
        chi_square = ((torch.histc(stream, 64, 0, 1) - count / 64) ** 2 / (count / 64)).sum()
        assert 35 < chi_square < 105  # 63 degrees of freedom
    # Of one sample in other streams, and of its neighbour in the same: standard deviation 1 / 256.
    related = torch.corrcoef(torch.cat([uniform, uniform.roll(1, 1)])) - torch.eye(2 * len(uniform))
    assert related.abs().max() < 0.02


@pytest.mark.parametrize("frames", [False, True])
def test_an_epoch_is_the_same_in_parts_in_any_order_and_by_any_process(frames, monkeypatch):
    images = pixels(60)
    if frames:
        images = images.view(20, 3, 3, 16, 12)
    count = len(images)
    whole = apply(EVERYTHING, images, seed=4, epoch=7, mean=MEAN, std=STD)
    for order in (torch.arange(count), torch.randperm(count, generator=torch.Generator().manual_seed(0))):
        for size in (1, 7, count):
            for part in order.split(size):
                assert torch.equal(apply(EVERYTHING, images[part], part, 4, 7, mean=MEAN, std=STD), whole[part])
    monkeypatch.setattr(augment, "_CHUNK_CPU", 5 * images[0].numel())
    assert torch.equal(apply(EVERYTHING, images, seed=4, epoch=7, mean=MEAN, std=STD), whole)
    for seed, epoch in ((4, 8), (5, 7)):
        other = apply(EVERYTHING, images, seed=seed, epoch=epoch, mean=MEAN, std=STD)
        assert sum(torch.equal(a, b) for a, b in zip(other, whole, strict=True)) < count / 10


def test_one_option_does_not_change_what_another_one_does():
    images = torch.ones(50, 1, 12, 12)
    shifted = apply(Augmentation(shift=3), images)
    both = apply(Augmentation(shift=3, flip=True), images)
    mirrored = [torch.equal(b, s.flip(-1)) for b, s in zip(both, shifted, strict=True)]
    assert all(m or torch.equal(b, s) for m, b, s in zip(mirrored, both, shifted, strict=True))
    erased = apply(Augmentation(shift=3, erase=0.5), images)
    assert all(torch.equal(e, s) for e, s in zip(erased, shifted, strict=True) if e.sum() == s.sum())
    assert torch.equal(erased * apply(Augmentation(erase=0.5), images), erased)


def test_frames_are_augmented_alike_at_all_times():
    images = pixels(30)
    out = apply(EVERYTHING, images[:, None].expand(-1, 4, -1, -1, -1))
    assert torch.equal(out, apply(EVERYTHING, images)[:, None].expand(-1, 4, -1, -1, -1))
    events = torch.rand(6, 5, 2, 8, 8)  # no images, but these can be moved and cut
    assert apply(Augmentation(shift=2, flip=True, erase=0.5), events).shape == events.shape


def test_nothing_waits_for_a_value_and_everything_lies_with_the_images():
    # Tensors on the meta device have no values, and mix with no tensors elsewhere.
    for images in (pixels(6), pixels(6)[:, None].expand(-1, 2, -1, -1, -1)):
        for policy in ("cifar10", "imagenet", "svhn"):
            augmentation = Augmentation(auto_augment=policy, shift=3, flip=True, erase=0.5, cutout=4)
            there = images.to("meta")
            out = apply(augmentation, there, torch.arange(6, device="meta"), mean=MEAN, std=STD)
            assert out.shape == images.shape
            assert out.device.type == "meta"
            apply(augmentation, there, torch.arange(6, device="meta"), out=torch.empty_like(out))


def test_images_are_normalised():
    images = pixels(5)
    out = apply(Augmentation(), images, mean=MEAN, std=STD)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    torch.testing.assert_close(out.double(), (images.double() / 255 - mean) / std, rtol=1e-6, atol=1e-6)
    scaled = apply(Augmentation(), images.float() / 255, mean=MEAN, std=STD)
    torch.testing.assert_close(scaled, out, rtol=1e-5, atol=1e-5)
    assert torch.equal(apply(Augmentation(), images, mean=(0.5,), std=(0.25,)), apply(
        Augmentation(), images, mean=(0.5,) * 3, std=(0.25,) * 3))  # fmt: skip
    torch.testing.assert_close(apply(Augmentation(), images), images / 255)


def test_auto_augment_comes_before_normalisation_and_the_rest_after():
    black = torch.zeros(200, 1, 16, 12, dtype=torch.uint8)
    out = apply(Augmentation(auto_augment="cifar10", shift=3), black, mean=(0.5,), std=(0.5,))
    # Black, white where it was inverted, and the mean where it was padded.
    assert out.unique().tolist() == [-1.0, 0.0, 1.0]


def test_results_go_where_and_in_the_type_that_is_asked_for():
    images, indices = pixels(9), torch.arange(9)
    before = images.clone()
    whole = EVERYTHING.apply(images, indices, 0, 0, MEAN, STD)
    rounded = EVERYTHING.apply(images, indices, 0, 0, MEAN, STD, torch.bfloat16)
    assert torch.equal(rounded, whole.to(torch.bfloat16))
    kept = torch.full_like(images, torch.nan, dtype=torch.bfloat16, memory_format=torch.channels_last)
    address, strides = kept.data_ptr(), kept.stride()
    assert EVERYTHING.apply(images, indices, 0, 0, MEAN, STD, torch.bfloat16, out=kept) is kept
    assert (kept.data_ptr(), kept.stride()) == (address, strides)
    assert torch.equal(kept, rounded)
    assert torch.equal(images, before)
    assert apply(EVERYTHING, images[:0]).shape == (0, 3, 16, 12)


def test_shift_is_a_crop_of_the_padded_image():
    images = torch.rand(200, 3, 8, 9) + 1  # no zeros, so that padding shows
    out = apply(Augmentation(shift=2), images)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    places = set()
    for sample, cropped in zip(padded, out, strict=True):
        crops = {(y, x): sample[:, y : y + 8, x : x + 9] for y in range(5) for x in range(5)}
        places.add(next(place for place, crop in crops.items() if torch.equal(crop, cropped)))
    assert len(places) == 25  # each sample for itself, and every place


def test_flip_mirrors_half():
    images = torch.rand(1000, 1, 3, 5)
    out = apply(Augmentation(flip=True), images)
    mirrored = [torch.equal(o, i.flip(-1)) for o, i in zip(out, images, strict=True)]
    same = [torch.equal(o, i) for o, i in zip(out, images, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 450 < sum(mirrored) < 550


def test_erase_clears_one_box_of_the_right_size():
    images = torch.ones(4000, 1, 40, 32)
    gone = apply(Augmentation(erase=0.25), images)[:, 0] == 0
    erased = gone[gone.flatten(1).any(1)]
    assert 900 < len(erased) < 1100
    rows, columns = erased.any(2), erased.any(1)
    assert torch.equal(erased, rows[:, :, None] & columns[:, None])  # boxes
    for lines in (rows, columns):  # without gaps
        assert ((lines[:, 1:] & ~lines[:, :-1]).sum(1) <= 1).all()
    height, width = rows.sum(1), columns.sum(1)
    area, ratio = height * width / 1280, height / width
    assert 0.015 < area.min() < 0.03
    assert 0.30 < area.max() < 0.34
    assert abs(area.mean() - 0.175) < 0.01
    assert 0.25 < ratio.min() < 0.4
    assert 2.5 < ratio.max() < 3.7
    assert abs(ratio.log().mean()) < 0.05
    for lines, size, side in ((rows, height, 40), (columns, width, 32)):  # everywhere
        first = lines.int().argmax(1)
        assert first.min() == 0
        assert (first + size).max() == side
    assert (apply(Augmentation(erase=1.0), images[:100])[:, 0] == 0).flatten(1).any(1).all()


def test_cutout_clears_a_square_around_every_place():
    gone = apply(Augmentation(cutout=6), torch.ones(2000, 1, 16, 16))[:, 0] == 0
    rows, columns = gone.any(2), gone.any(1)
    assert torch.equal(gone, rows[:, :, None] & columns[:, None])
    sides = [torch.bincount(lines.sum(1), minlength=7).tolist() for lines in (rows, columns)]
    for counts in sides:  # clipped at the border at 5 of the 16 centres: to 3, 4 and 5 above, to 5 and 4 below
        assert counts[:3] == [0, 0, 0]
        assert [round(count / 125) for count in counts[3:]] == [1, 2, 2, 11]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"auto_augment": "cifar100"}, ValueError, "one of none, cifar10, imagenet, svhn, got 'cifar100'"),
        ({"auto_augment": None}, ValueError, "auto_augment must be one of none.*got None"),
        ({"shift": -1}, ValueError, "shift is a number of pixels >= 0.*shift=-1"),
        ({"shift": 1.5}, TypeError, "shift must be an integer, got 1.5"),
        ({"shift": True}, TypeError, "shift must be an integer, got True"),
        ({"cutout": -3}, ValueError, "cutout=-3"),
        ({"cutout": "8"}, TypeError, "cutout must be an integer, got '8'"),
        ({"flip": "no"}, TypeError, "flip must be true or false, got 'no'"),
        ({"flip": 1}, TypeError, "flip must be true or false, got 1"),
        ({"erase": 1.5}, ValueError, r"erase is a probability in \[0, 1\], got 1.5"),
        ({"erase": math.nan}, ValueError, r"erase is a probability in \[0, 1\], got nan"),
        ({"erase": True}, TypeError, "erase must be a number.*got True"),
        ({"erase": "0.5"}, TypeError, "erase must be a number.*got '0.5'"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        Augmentation(**options)


@pytest.mark.parametrize(
    ("augmentation", "changed", "error", "message"),
    [
        (Augmentation(), {"images": pixels(4)[0]}, ValueError, r"images must be uint8 or floating.*\[3, 16, 12\]"),
        (Augmentation(), {"images": pixels(4).long()}, ValueError, "images must be uint8 or floating.*torch.int64"),
        (EVERYTHING, {"images": pixels(4).float()}, ValueError, "auto_augment=cifar10 is for uint8.*torch.float32"),
        (EVERYTHING, {"images": pixels(4, channels=2)}, ValueError, "of 1 or 3 channels.*set auto_augment to none"),
        (
            Augmentation(auto_augment="svhn"),
            {"images": torch.zeros(4, 1, 1, 16385, dtype=torch.uint8)},
            ValueError,
            "auto_augment is for up to 16384 pixels a side, got 1 x 16385",
        ),
        (Augmentation(shift=12), {}, ValueError, "shift=12 leaves nothing of images of 16 x 12: lower shift"),
        (Augmentation(cutout=20), {}, ValueError, "cutout=20 leaves nothing.*lower cutout"),
        (Augmentation(), {"indices": torch.arange(3)}, ValueError, r"indices must be int64 \[4\].*\[3\]"),
        (Augmentation(), {"indices": torch.arange(4).int()}, ValueError, "indices must be int64.*torch.int32"),
        (Augmentation(), {"seed": 1.0}, TypeError, "seed must be an integer, got 1.0"),
        (Augmentation(), {"epoch": torch.tensor(3)}, TypeError, r"epoch must be an integer, got tensor\(3\)"),
        (Augmentation(), {"mean": (0.5, 0.5)}, ValueError, "mean must be one finite number, or one for each of 3"),
        (Augmentation(), {"mean": (math.nan,)}, ValueError, r"mean must be one finite number.*got \(nan,\)"),
        (Augmentation(), {"std": (0.5, 0.0, 0.5)}, ValueError, "std must be > 0"),
        (Augmentation(), {"out_dtype": torch.uint8}, ValueError, "out_dtype must be a floating type, got torch.uint8"),
        (Augmentation(), {"out": torch.empty(4, 3, 12, 16)}, ValueError, r"out must be .*\[4, 3, 16, 12\] on cpu, got"),
        (Augmentation(), {"out": torch.empty(4, 3, 16, 12).half()}, ValueError, "out must be torch.float32.*float16"),
    ],
)
def test_bad_arguments_are_named(augmentation, changed, error, message):
    arguments = {"images": pixels(4), "indices": torch.arange(4), "seed": 0, "epoch": 0} | changed
    with pytest.raises(error, match=message):
        augmentation.apply(**arguments)


def test_whether_anything_is_on():
    assert not Augmentation().active
    for options in ({"auto_augment": "svhn"}, {"shift": 1}, {"flip": True}, {"erase": 0.1}, {"cutout": 1}):
        assert Augmentation(**options).active
