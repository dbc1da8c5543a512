"""The digits canvas: a fixed split, seeded renderings, views."""

import math
from types import SimpleNamespace

import pytest
import torch

from ckdsnn.data import DigitsCanvas
from ckdsnn.data.digits import GLYPH, digits_split, render_canvas


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_split_is_fixed_and_disjoint():
    parts = digits_split()
    assert [len(part.targets) for part in parts] == [897, 300, 600]
    rows = torch.cat([part.images.flatten(1) for part in parts])
    assert len(rows) == 1797
    assert all(torch.bincount(part.targets, minlength=10).min() > 20 for part in parts)
    # Which digits are test digits must never change, or published numbers stop being comparable.
    assert parts.test.targets[:12].tolist() == FIRST_TEST_TARGETS


FIRST_TEST_TARGETS = [5, 1, 2, 1, 5, 5, 0, 3, 1, 9, 2, 3]


def test_digits_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    given = datasets.load_digits()
    wanted = sorted((image.tolist(), target) for image, target in zip(given.images / 16, given.target, strict=True))
    parts = digits_split()
    images, targets = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    assert (images.dtype, targets.dtype) == (torch.float32, torch.int64)
    assert sorted((image.tolist(), int(target)) for image, target in zip(images, targets, strict=True)) == wanted


def test_rendering_is_a_function_of_the_seed():
    digits = digits_split().test.images[:20]
    assert torch.equal(render_canvas(digits, generator(1)), render_canvas(digits, generator(1)))
    assert not torch.equal(render_canvas(digits, generator(1)), render_canvas(digits, generator(2)))


def test_noise_and_digit_are_where_they_should_be():
    data = DigitsCanvas(seed=3)
    data.setup("test")
    images = data.arrays("test").images[:, 0]
    corners, side = data.test_boxes()
    assert side == GLYPH
    assert corners.min() == 0
    assert corners.max() == 20 - GLYPH
    inside = torch.zeros_like(images, dtype=torch.bool)
    for number, (row, column) in enumerate(corners.tolist()):
        inside[number, row : row + side, column : column + side] = True
    # Outside there is noise and some clutter, inside a digit.
    assert images[inside].mean() > images[~inside].mean() + 0.15
    quiet = images[~inside][images[~inside] < 0]
    assert quiet.square().mean().sqrt() == pytest.approx(0.25, rel=0.05)


def test_clutter_comes_from_other_digits():
    # With one bright digit among empty ones, its fragments show on the others' canvases.
    digits = torch.zeros(40, 8, 8)
    digits[0] = 1
    canvas = render_canvas(digits, generator())
    alone = render_canvas(torch.zeros(40, 8, 8), generator())
    differing = (canvas - alone).flatten(1).abs().amax(1) > 0.5
    assert 1 <= differing[1:].sum() < 10


def test_canvas_has_the_size_clutter_and_noise_that_are_asked():
    """The digits' places are the first thing that is drawn, so the same canvas without clutter shows where it lies."""
    hard = {"size": 32, "fragment": 6, "noise": 0.0, "seed": 3}
    images = {}
    for clutter in (0, 1, 6):
        data = DigitsCanvas(clutter=clutter, **hard)
        data.setup("test")
        images[clutter] = data.arrays("test").images[:, 0]
    corners, side = data.test_boxes()
    assert corners.max() == 32 - side
    assert images[0].shape == (600, 32, 32)
    added = images[1] != images[0]
    for axis in (1, 2):
        assert int(added.any(axis).sum(1).max()) == 6  # rows and columns of a fragment
    assert (images[6] > 0).sum() > (images[1] > 0).sum() > (images[0] > 0).sum()
    for number, (row, column) in enumerate(corners.tolist()):
        images[0][number, row : row + side, column : column + side] = 0
    assert not images[0].any()


def test_an_epoch_passes_every_digit_once_in_the_next_rendering():
    data = DigitsCanvas(batch_size=10, train_samples=100, views=3)
    data.setup("fit")
    loader = data.train_dataloader()
    assert len(loader) == 10
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        seen = torch.cat([batch.indices for batch in loader])
        first = 100 * (epoch % 3)
        assert seen.sort().values.tolist() == list(range(first, first + 100))
        assert torch.equal(data.arrays("train").targets[seen], torch.cat([batch.targets for batch in loader]))


def test_batches_of_evaluation_and_where_the_data_lies_are_options():
    data = DigitsCanvas(eval_batch_size=70, where="host")
    data.trainer = SimpleNamespace(
        global_rank=0, world_size=1, strategy=SimpleNamespace(root_device=torch.device("meta"))
    )
    data.setup("test")
    loader = data.test_dataloader()
    assert (loader.images.device.type, loader.device.type) == ("cpu", "meta")
    assert len(loader) == math.ceil(600 / 70)


def test_subset_depends_on_the_seed_and_is_nested_in_no_test_data():
    chosen = [DigitsCanvas(train_samples=100, seed=seed) for seed in (0, 0, 1)]
    for data in chosen:
        data.setup("fit")
    a, b, c = (data.arrays("train") for data in chosen)
    assert torch.equal(a.images, b.images)
    assert not torch.equal(a.images, c.images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_samples": 1}, r"train_samples must lie in \[2, 897\].*got 1"),
        ({"train_samples": 898}, "got 898"),
        ({"views": 0}, "views must be at least 1, got 0"),
        ({"size": 11}, "size must be at least 12, the side of a digit, got 11"),
        ({"clutter": -1}, "clutter must be at least 0, got -1"),
        ({"fragment": 13}, r"fragment must lie in \[1, 12\], got 13"),
        ({"noise": -0.5}, "noise must be at least 0, got -0.5"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1, got 0"),
        ({"where": "disk"}, "where must be device or host, got 'disk'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DigitsCanvas(**options)


@pytest.mark.parametrize("name", ["train_samples", "views", "size", "clutter", "fragment"])
def test_part_of_a_digit_is_none(name):
    with pytest.raises(TypeError, match=f"{name} must be an integer, got 12.5"):
        DigitsCanvas(**{name: 12.5})
    with pytest.raises(TypeError, match=r"noise must be a number, got '0\.1'"):
        DigitsCanvas(noise="0.1")


def test_too_few_digits_for_a_class():
    data = DigitsCanvas(train_samples=2, batch_size=2)
    with pytest.raises(ValueError, match="has no sample of class"):
        data.setup("fit")


def test_render_needs_two_digits():
    with pytest.raises(ValueError, match=r"at least 2 images.*got 1"):
        render_canvas(torch.zeros(1, 8, 8), generator())
