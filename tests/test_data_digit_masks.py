"""The digits canvas with a class for each pixel."""

import pytest
import torch
import torch.nn.functional as F

from ckdsnn.data import Augmentation, DigitMasks, DigitsCanvas
from ckdsnn.data.digits import digits_split


def test_masks_are_of_the_same_images_as_the_canvas():
    canvas, masks = (kind(batch_size=10, train_samples=100, views=2, seed=3) for kind in (DigitsCanvas, DigitMasks))
    for part, stage in (("train", "fit"), ("validation", "fit"), ("test", "test")):
        for data in (canvas, masks):
            data.setup(stage)
        assert torch.equal(canvas.arrays(part).images, masks.arrays(part).images)
        labels, digits = masks.arrays(part).targets, canvas.arrays(part).targets
        assert labels.shape == (len(digits), 20, 20)
        assert torch.equal(labels.flatten(1).amax(1), digits + 1)
        assert ((labels == 0) | (labels == digits[:, None, None] + 1)).all()
        assert 0.08 < (labels > 0).float().mean() < 0.14


def test_a_mask_is_the_ink_of_its_digit_where_it_lies():
    data = DigitMasks(seed=5)
    data.setup("test")
    corners, side = data.test_boxes()
    digits = digits_split().test.images
    for number in (0, 17, 599):
        row, column = corners[number].tolist()
        enlarged = F.interpolate(digits[number][None, None], size=(side, side), mode="bilinear")[0, 0]
        mask = torch.zeros(20, 20, dtype=torch.bool)
        mask[row : row + side, column : column + side] = enlarged >= 0.5
        assert torch.equal(data.arrays("test").targets[number] > 0, mask)


def test_masks_have_the_options_of_the_canvas():
    options = {"size": 26, "clutter": 5, "fragment": 7, "noise": 0.1, "eval_batch_size": 7, "where": "host", "seed": 2}
    canvas, masks = DigitsCanvas(**options), DigitMasks(**options)
    for data in (canvas, masks):
        data.setup("validate")
    assert torch.equal(canvas.arrays("validation").images, masks.arrays("validation").images)
    labels = masks.arrays("validation").targets
    assert labels.shape == (300, 26, 26)
    assert torch.equal(labels.flatten(1).amax(1), canvas.arrays("validation").targets + 1)
    assert (masks.where, next(iter(masks.val_dataloader())).targets.shape) == ("host", (7, 26, 26))


def test_targets_that_do_not_fit_and_augmentation_are_refused():
    class Flat(DigitMasks):
        def render(self, digits, targets, generator):
            return super().render(digits, targets, generator)._replace(targets=targets)

    with pytest.raises(ValueError, match=r"targets \[300\], they must be \[300, 20, 20\]: one a pixel"):
        Flat().setup("validate")

    class Moving(DigitMasks):
        def __init__(self):
            super(DigitsCanvas, self).__init__(10, augmentation=Augmentation(flip=True))

    with pytest.raises(ValueError, match="augmentation of Moving would move pixels"):
        Moving()
