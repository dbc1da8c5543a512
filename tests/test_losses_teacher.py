"""No method lets gradients reach the teacher, and each reaches the student; what changes with the epoch does."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ckdsnn.losses import METHODS, FrozenTeacher, build_method
from ckdsnn.losses.methods.base import NoiseSource
from ckdsnn.models import build_model

VARIANTS = [
    *((name, {}) for name, method in sorted(METHODS.items()) if method.needs_teacher),
    ("nld", {"preset": "released-code"}),
    ("nld", {"noise": "none"}),
    ("samd", {"scaling": "l2"}),
]


def leaves(tree):
    return {key: value.detach().clone().requires_grad_() for key, value in tree.items()}


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_no_gradient_reaches_the_teacher(name, options):
    torch.manual_seed(0)
    method = build_method(name, **options)
    asked = dict(method.student_options) | ({"sam_stages": method.sam_stages} if method.sam_stages else {})
    student = build_model("snn_resnet_small", 4, time_steps=2, widths=(3, 4, 5), **asked)
    teacher = build_model("ann_resnet_small", 4, widths=(3, 4, 6))
    frozen = FrozenTeacher(teacher, method.bind(student, teacher))
    images, target = torch.rand(3, 1, 12, 12), torch.tensor([0, 3, 1])
    answer = frozen(images, target)
    answer = dataclasses.replace(
        answer,
        logits=answer.logits.clone().requires_grad_(),
        features=leaves(answer.features),
        cams=leaves(answer.cams),
        classifier_weight=answer.classifier_weight.clone().requires_grad_(),
    )
    output = student(images)
    parts = method(output, answer, target)
    given = [answer.logits, answer.classifier_weight, *answer.features.values(), *answer.cams.values()]
    for part, loss in list(parts.items())[1:]:
        assert torch.autograd.grad(loss, given, retain_graph=True, allow_unused=True) == (None,) * len(given), part
        grads = torch.autograd.grad(loss, list(student.parameters()), retain_graph=True, allow_unused=True)
        assert any(g is not None and g.any() for g in grads), part


@pytest.mark.parametrize("as_tensor", [False, True])
def test_dkd_rises_to_its_full_weight(as_tensor):
    method, like = build_method("dkd", warmup=4), torch.zeros(())
    epochs = (0.0, 0.9, 1.0, 2.5, 3.0, 9.0)
    risen = [method._rise(torch.tensor(epoch) if as_tensor else epoch, like) for epoch in epochs]
    assert [float(weight) for weight in risen] == [0.25, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_processes_draw_noise_of_their_own():
    drawn = []
    for process in (0, 1, 2):
        source = NoiseSource(7)
        source.restart(process)
        drawn.append(torch.rand(1, generator=source.generator).item())
    assert len(set(drawn)) == 3
    assert drawn[0] == torch.rand(1, generator=torch.Generator().manual_seed(7)).item()
