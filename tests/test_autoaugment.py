"""Image operations against Pillow's, and which of them AutoAugment's policies draw."""

import hashlib
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from ckdsnn.data import operations
from ckdsnn.data.autoaugment import POLICIES, Step, amount, auto_augment, matrix, sub_policies
from ckdsnn.data.draws import Draw, Draws

ENHANCEMENTS = ["Brightness", "Color", "Contrast", "Sharpness"]
GEOMETRY = ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"]
SIGNED = [*GEOMETRY, *ENHANCEMENTS]
PLAIN = ["Posterize", "Solarize", "AutoContrast", "Equalize", "Invert"]


def to_pillow(image):
    return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())


def from_pillow(image):
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def by_pillow(name, magnitude, sign, image):
    """An operation with Pillow, magnitudes as torchvision defines them."""

    def level(largest):
        return sign * torch.linspace(0.0, largest, 10)[magnitude].item()

    width, height = image.size
    moves = {
        "ShearX": lambda: (1, level(0.3), 0, 0, 1, 0),
        "ShearY": lambda: (1, 0, 0, level(0.3), 1, 0),
        "TranslateX": lambda: (1, 0, -int(level(150.0 / 331.0 * width)), 0, 1, 0),
        "TranslateY": lambda: (1, 0, 0, 0, 1, -int(level(150.0 / 331.0 * height))),
    }
    if name in moves:
        return image.transform(image.size, Image.Transform.AFFINE, moves[name](), Image.Resampling.NEAREST, fillcolor=0)
    if name == "Rotate":
        return image.rotate(level(30.0), Image.Resampling.NEAREST)
    if name in ENHANCEMENTS:
        return getattr(ImageEnhance, name)(image).enhance(1.0 + level(0.9))
    if name == "Posterize":
        return ImageOps.posterize(image, int((8 - (torch.arange(10) / (9 / 4)).round().int())[magnitude]))
    if name == "Solarize":
        return ImageOps.solarize(image, torch.linspace(255.0, 0.0, 10)[magnitude].item())
    return getattr(ImageOps, name.lower())(image)


def by_us(name, magnitude, sign, images):
    height, width = images.shape[-2:]
    moved = matrix(name, magnitude, sign, width, height)
    if moved is not None:
        return operations.affine(images, torch.tensor([moved] * len(images), dtype=torch.int32))
    operation = getattr(operations, name.lower())
    if name in ("AutoContrast", "Equalize", "Invert"):
        return operation(images)
    return operation(images, torch.full((len(images),), amount(name, magnitude, sign)))


def pictures(channels, height, width):
    """Noise, noise of low contrast, few values, slopes, half black, constants: uint8 [B, C, H, W]."""
    generator = torch.Generator().manual_seed(channels * height * width)
    shape = (channels, height, width)

    def noise(low, high):
        return torch.randint(low, high, shape, generator=generator)

    slope = torch.arange(math.prod(shape)).view(shape)
    made = [noise(0, 256), noise(100, 131), noise(7, 9), noise(0, 2) * 255, slope % 256, slope // 7 % 256]
    made += [torch.where(noise(0, 2) > 0, noise(0, 256), 0), noise(0, 256) ** 2 // 255]
    made += [torch.full(shape, value) for value in (0, 1, 77, 254, 255)]
    return torch.stack(made).to(torch.uint8)


def assert_like_pillow(name, magnitude, sign, images):
    ours = by_us(name, magnitude, sign, images)
    assert ours.dtype == torch.uint8
    for image, result in zip(images, ours, strict=True):
        expected = from_pillow(by_pillow(name, magnitude, sign, to_pillow(image)))
        assert torch.equal(result, expected), (name, magnitude, sign, image)


@pytest.mark.parametrize("name", [*SIGNED, *PLAIN])
@pytest.mark.parametrize("size", [(32, 32), (31, 17), (17, 31), (28, 28), (3, 3), (2, 5), (5, 1), (1, 1)])
def test_operation_equals_pillow(name, size):
    for channels in (1, 3):
        images = pictures(channels, *size)
        before = images.clone()
        for magnitude in range(10) if name not in ("AutoContrast", "Equalize", "Invert") else [0]:
            for sign in (-1, 1) if name in SIGNED else [1]:
                assert_like_pillow(name, magnitude, sign, images)
        assert torch.equal(images, before)


@pytest.mark.parametrize("name", [*SIGNED, *PLAIN])
def test_operation_equals_pillow_at_the_size_of_imagenet(name):
    images = pictures(3, 224, 224)[[0, 5]]
    for magnitude, sign in [(9, 1), (5, -1)] if name in SIGNED else [(5, 1)]:
        assert_like_pillow(name, magnitude, sign, images)


@pytest.mark.parametrize("name", [*ENHANCEMENTS, *PLAIN])
def test_operation_equals_pillow_at_every_value(name):
    everything = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    constant = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).expand(-1, 1, 3, 3)
    for images in (everything, everything.expand(-1, 3, -1, -1), constant):
        for magnitude in (1, 6, 9):
            for sign in (-1, 1) if name in SIGNED else [1]:
                assert_like_pillow(name, magnitude, sign, images)


def test_blends_equal_pillow_for_all_pairs_of_values():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256).expand(1, 1, 256, 256)
    degenerate = images.transpose(2, 3)
    for factor in [1 + sign * 0.9 * magnitude / 9 for magnitude in range(10) for sign in (-1, 1)] + [0.0, 2.5]:
        ours = operations._blend(degenerate.float(), images, torch.tensor([factor]))
        assert torch.equal(ours[0], from_pillow(Image.blend(to_pillow(degenerate[0]), to_pillow(images[0]), factor)))


def test_autocontrast_equals_pillow_between_all_kinds_of_limits():
    pairs = [(low, high) for low in range(0, 256, 5) for high in range(low, 256, 3)]
    images = torch.stack([torch.arange(256).clamp(low, high) for low, high in pairs]).to(torch.uint8)
    assert_like_pillow("AutoContrast", 0, 1, images.view(-1, 1, 16, 16))


@pytest.mark.parametrize("degrees", [0, 90, 180, 270, 359.9, -45, 1e-9, 30, 123.456])
def test_rotation_by_any_angle(degrees):
    for height, width in ((31, 17), (32, 32)):
        images = pictures(3, height, width)[:1]
        turned = operations.affine(
            images, torch.tensor([operations.rotation(degrees, width, height)], dtype=torch.int32)
        )
        assert torch.equal(turned[0], from_pillow(to_pillow(images[0]).rotate(degrees)))


def test_parameters_are_each_samples_own():
    images = pictures(3, 16, 16)[[0, 0, 0]]
    together = operations.color(images, torch.tensor([0.1, 1.0, 1.9]))
    alone = [operations.color(images[:1], torch.tensor([factor])) for factor in (0.1, 1.0, 1.9)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together[1], images[1])


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_are_made_of_known_parts(policy):
    steps = [step for sub_policy in sub_policies(policy) for step in sub_policy]
    assert len(steps) == 50
    for step in steps:
        assert step.name in SIGNED + PLAIN
        assert 0 <= step.magnitude <= 9
        assert round(step.probability * 10, 9) in range(11)


def test_policies_are_the_published_ones():
    assert sub_policies("cifar10")[1] == (Step("Rotate", 0.7, 2), Step("TranslateX", 0.3, 9))
    assert sub_policies("imagenet")[0] == (Step("Posterize", 0.4, 8), Step("Rotate", 0.6, 9))
    assert sub_policies("svhn")[-1] == (Step("ShearX", 0.7, 2), Step("Invert", 0.1, 0))
    # Of the tables that were compared with torchvision's entry by entry.
    tables = [repr([[tuple(step) for step in sub_policy] for sub_policy in sub_policies(p)]) for p in POLICIES]
    digests = [hashlib.sha256(table.encode()).hexdigest()[:16] for table in tables]
    assert digests == [
        "5056aff8acd15e40",
        "68828d735cf8517a",
        "b5ecefb012c58b66",
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_sample_goes_through_the_sub_policy_that_it_draws(policy):
    count = 600
    images = pictures(3, 12, 10)[torch.arange(count) % 8]
    draws = Draws(3, 1, torch.arange(count))
    augmented = auto_augment(images, draws, policy, pick=True)
    assert torch.equal(augmented, auto_augment(images, draws, policy, pick=False))
    chosen, table = draws.below(Draw.SUB_POLICY, 25).tolist(), sub_policies(policy)
    uniform = [draws.uniform(number).tolist() for number in (Draw.FIRST_APPLIED, Draw.SECOND_APPLIED)]
    positive = [draws.below(number, 2).tolist() for number in (Draw.FIRST_SIGN, Draw.SECOND_SIGN)]
    for sample in range(count):
        expected = to_pillow(images[sample])
        for step, part in enumerate(table[chosen[sample]]):
            if uniform[step][sample] < part.probability:
                sign = 1 if positive[step][sample] else -1
                expected = by_pillow(part.name, part.magnitude, sign, expected)
        assert torch.equal(augmented[sample], from_pillow(expected)), (sample, table[chosen[sample]])


def test_draws_are_spread_as_the_policy_says():
    count = 100_000
    draws = Draws(0, 0, torch.arange(count))
    chosen = draws.below(Draw.SUB_POLICY, 25)
    frequencies = torch.bincount(chosen, minlength=25)
    chi_square = ((frequencies - count / 25) ** 2 / (count / 25)).sum()
    assert 10 < chi_square < 43  # 24 degrees of freedom: within 0.6 and 99 %
    probabilities = torch.tensor([[s.probability for s in sub_policy] for sub_policy in sub_policies("cifar10")])
    for step in range(2):
        applied = draws.uniform(Draw.FIRST_APPLIED + step) < probabilities[chosen, step]
        share = torch.zeros(25).index_add_(0, chosen, applied.float()) / frequencies
        assert (share - probabilities[:, step]).abs().max() < 0.03
        assert share[probabilities[:, step] == 0].sum() == 0
        positive = draws.below(Draw.FIRST_SIGN + step, 2).bool()
        assert abs(positive.float().mean() - 0.5) < 0.01
        assert abs(applied[positive].float().mean() - applied[~positive].float().mean()) < 0.01
