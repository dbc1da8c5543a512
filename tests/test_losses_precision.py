"""Losses are computed in float32 at least: neither autocast nor outputs of 2 bytes change that."""

import math

import pytest
import torch

from ckdsnn.losses import (
    METHODS,
    PRESETS,
    Method,
    build_method,
    class_activation_map,
    grad_cam,
    grad_cam_closed_form,
    grad_cam_spiking,
    kd_loss,
    nld_loss,
    normalise_map,
    saliency_map,
    samd_loss,
)
from ckdsnn.losses.methods.catkd import class_maps
from ckdsnn.losses.methods.dkd import dkd_loss
from ckdsnn.losses.methods.hta_kl import hta_kl_loss
from ckdsnn.losses.resize import resize_to
from ckdsnn.models import ANNOutput, SNNOutput

T, B, K, C, SIZE = 3, 4, 5, 8, 6
TARGET = torch.tensor([0, 4, 2, 2])


def outputs(dtype=torch.float32):
    """Of a student of one stage and a teacher, both with a linear head; features in `dtype`, weights in float32."""
    with torch.autocast("cpu", enabled=False):
        return _outputs(dtype)


def _outputs(dtype):
    torch.manual_seed(0)
    features = torch.rand(T, B, C, SIZE, SIZE, requires_grad=True)
    weight = torch.randn(K, C, requires_grad=True)
    made, matrix = features.to(dtype), weight.to(dtype)
    steps = made.mean((3, 4)) @ matrix.T
    sams = {1: made.float().mean((0, 2))}
    student = SNNOutput(steps.mean(0, dtype=torch.float32), steps, {1: made}, sams, weight)
    wanted, teacher_weight = torch.rand(B, C, SIZE, SIZE), torch.randn(K, C)
    wanted = wanted.to(dtype)
    teacher = ANNOutput(wanted.mean((2, 3)) @ teacher_weight.to(dtype).T, {1: wanted}, teacher_weight)
    return student, teacher, features


def generator():
    return torch.Generator().manual_seed(0)


def logits():
    student, teacher, _ = outputs()
    return student.logits.detach(), teacher.logits


def maps():
    torch.manual_seed(1)
    return torch.rand(B, SIZE, SIZE), torch.rand(B, 4, 4)


def ann_cam():
    features = torch.rand(B, C, SIZE, SIZE, generator=generator()).requires_grad_()
    weight = torch.randn(K, C, generator=generator())
    return grad_cam((features.mean((2, 3))[:, None] * weight).sum(2), features, TARGET)


FUNCTIONS = {
    "kd": lambda: kd_loss(*logits()),
    "dkd": lambda: dkd_loss(*logits(), TARGET, 1.0, 8.0, 4.0),
    "hta_kl": lambda: hta_kl_loss(*logits(), 4.0, 0.5),
    "nld": lambda: nld_loss(*logits(), generator=generator()),
    "nld probabilities": lambda: nld_loss(*logits(), generator=generator(), mixing="probabilities"),
    "samd": lambda: samd_loss(*maps()),
    "samd l2": lambda: samd_loss(*maps(), scaling="l2"),
    "normalise_map": lambda: normalise_map(maps()[0], "zscore"),
    "resize_to": lambda: resize_to(maps()[0], (3, 3)),
    "class_activation_map": lambda: class_activation_map(
        outputs()[1].features[1], outputs()[1].classifier_weight, TARGET
    ),
    "grad_cam_closed_form": lambda: grad_cam_closed_form(
        outputs()[1].features[1], outputs()[1].classifier_weight, TARGET
    ),
    "saliency_map": lambda: saliency_map("grad_cam", outputs()[1], -1, TARGET),
    "grad_cam": ann_cam,
    "class_maps": lambda: class_maps(outputs()[1].features[1], outputs()[1].classifier_weight, 2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_no_function(name, dtype):
    expected = FUNCTIONS[name]()
    with torch.autocast("cpu", dtype):
        actual = FUNCTIONS[name]()
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


def test_autocast_changes_no_map_of_a_student():
    student, _, _ = outputs()
    expected = grad_cam_spiking(student.step_logits, student.features[1], TARGET)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(grad_cam_spiking(student.step_logits, student.features[1], TARGET), expected)


VARIANTS = [(name, {}) for name in sorted(METHODS)] + [
    *(("ckd", {"preset": preset}) for preset in PRESETS),
    ("samd", {"student_map": "grad_cam"}),
    ("samd", {"scaling": "l2"}),
]


def bound(name, options):
    """A method with its modules, for the channels of `outputs`."""
    method = build_method(name, **options)
    torch.manual_seed(2)
    method.make_modules(*[type("Network", (), {"num_stages": 1, "stage_channels": (C,), "classifier_weight": 1})] * 2)
    return method


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_autocast_changes_no_method(name, options):
    student, teacher, features = outputs()
    results = []
    for enabled in (False, True):
        method = bound(name, options)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            parts = method(student, teacher, TARGET)
        assert all(part.dtype == torch.float32 for part in parts.values())
        loss = torch.stack(list(parts.values())).sum()
        results.append((loss, *torch.autograd.grad(loss, features, retain_graph=True)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_outputs_of_two_bytes_are_compared_in_four(name, options):
    """As if they had been cast by hand; nothing of the loss itself is rounded to 2 bytes."""
    student, teacher, _ = outputs(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        actual = bound(name, options)(student, teacher, TARGET)
    wide = ANNOutput(teacher.logits.float(), {1: teacher.features[1].float()}, teacher.classifier_weight)
    spikes = student.features[1].detach().float().requires_grad_()
    steps = student.step_logits.detach().float()
    if name == "e2kd" or "student_map" in options:  # differentiates by its features: from the graph of the student
        expected = bound(name, options)(student, wide, TARGET)
    else:
        own = SNNOutput(student.logits, steps, {1: spikes}, student.sams, student.classifier_weight)
        expected = bound(name, options)(own, wide, TARGET)
    for key, part in expected.items():
        assert actual[key].dtype == torch.float32
        assert torch.equal(actual[key], part), key


def test_maps_that_two_bytes_cannot_tell_apart():
    """cos([1, 1.1], [1, 1]) is 1 in bfloat16."""
    features = torch.tensor([[[[[1.0, 1.1]]]]], requires_grad=True)
    steps = features.sum((3, 4)).repeat(1, 1, 2)
    student = SNNOutput(steps.mean(0), steps, {1: features}, {})
    teacher = ANNOutput(torch.zeros(1, 2), {}, None, {-1: torch.ones(1, 1, 2)})
    with torch.autocast("cpu", torch.bfloat16):
        part = build_method("e2kd")(student, teacher, torch.tensor([0]))["explanation"]
    assert part.item() == pytest.approx(1 - 2.1 / math.sqrt(2 * 2.21), rel=1e-3)


class Product(Method):
    """A user's method with a matrix product of its own."""

    def distill(self, student, teacher, target, epoch):
        return {"product": (student.logits @ teacher.logits.T).sum()}


def test_autocast_changes_no_users_method():
    student, teacher, _ = outputs()
    with torch.autocast("cpu", torch.bfloat16):
        part = Product()(student, teacher, TARGET)["product"]
    assert torch.equal(part, (student.logits @ teacher.logits.T).sum())


def test_a_users_method_gets_logits_and_maps_in_four_bytes():
    seen = {}

    class Looking(Method):
        def distill(self, student, teacher, target, epoch):
            seen.update(student=student.logits, steps=student.step_logits, sam=student.sams[1])
            seen.update(teacher=teacher.logits, cam=teacher.cams[1])
            return {}

    student, teacher, _ = outputs(torch.bfloat16)
    cam = torch.rand(B, SIZE, SIZE).bfloat16()
    student.sams[1], teacher.cams[1] = student.sams[1].bfloat16(), cam
    student.logits = student.logits.bfloat16()
    Looking()(student, teacher, TARGET)
    assert {name: tensor.dtype for name, tensor in seen.items()} == dict.fromkeys(seen, torch.float32)
    assert len(seen) == 5
