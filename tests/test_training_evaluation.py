"""What an evaluation measures, and what it leaves alone."""

import pytest
import torch

from ckdsnn.losses import FrozenTeacher, build_method
from ckdsnn.models import build_model
from ckdsnn.training.evaluation import Evaluation, metric_names

CPU = torch.device("cpu")
IMAGES, TARGET = torch.rand(5, 1, 20, 20, generator=torch.Generator().manual_seed(0)), torch.arange(5)
LOGITS = 3 * torch.randn(5, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return build_model("ann_resnet_small", 10, widths=(4, 6, 8))


def evaluated(evaluation, again=False):
    """By two batches, [0:3] and [3:5]."""
    evaluation.start(CPU, again=again)
    for number, part in enumerate((slice(0, 3), slice(3, 5))):
        evaluation.add(LOGITS[part], IMAGES[part], TARGET[part], number)
    return evaluation.means(evaluation.sums)


def test_the_divergence_is_that_of_the_predictions(teacher):
    method = build_method("kd", tau=4.0)
    found = evaluated(Evaluation(method, FrozenTeacher(teacher, method)))
    p = teacher.eval()(IMAGES).logits.double().softmax(1)
    q = LOGITS.double().softmax(1)
    assert found.keys() == {"accuracy", "kl"}
    assert found["accuracy"] == (LOGITS.argmax(1) == TARGET).double().mean()
    assert found["kl"] == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-5)


def test_the_noise_is_the_methods_and_the_same_every_time(teacher):
    method = build_method("ckd", nld={"strength": 0.5, "distribution": "laplace", "temperature": 4.0}, seed=3)
    evaluation = Evaluation(method, FrozenTeacher(teacher, method))
    before = method.nld.noise.get_extra_state()
    found = evaluated(evaluation)
    assert evaluated(evaluation) == found
    assert torch.equal(method.nld.noise.get_extra_state(), before)
    generator = torch.Generator().manual_seed(0)
    noisy = torch.cat(
        [method.nld.smoothed(LOGITS[part], generator, 1.0) for part in (slice(0, 3), slice(3, 5))]
    ).double()
    p = teacher.eval()(IMAGES).logits.double().log_softmax(1)
    assert found["kl_noisy"] == pytest.approx((p.exp() * (p - noisy)).sum(1).mean().item(), rel=1e-5)
    assert found["kl_noisy"] != found["kl"]


def test_a_strength_that_is_learnt_is_told(teacher):
    method = build_method("nld", learnable_strength=True, strength=0.25)
    found = evaluated(Evaluation(method, FrozenTeacher(teacher, method)))
    assert found["noise_strength"] == pytest.approx(0.25)
    assert "kl_noisy" not in evaluated(Evaluation(build_method("nld", noise="none"), FrozenTeacher(teacher, method)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ce", {}),
        ("kd", {}),
        ("nld", {"noise": "none"}),
        ("nld", {"learnable_strength": True}),
        ("ckd", {"nld": {"noise": "fixed", "sigma": 0.5}}),
    ],
)
@pytest.mark.parametrize("dense", [False, True])
def test_what_will_be_measured_is_known_before(name, options, dense, teacher):
    method = build_method(name, **options)
    evaluation = Evaluation(method, FrozenTeacher(teacher, method) if method.needs_teacher else None)
    found = list(evaluated(evaluation))
    assert [metric for metric in metric_names(method, dense=dense) if metric != "mean_iou"] == found
    assert ("mean_iou" in metric_names(method, dense=dense)) == dense


def test_without_a_teacher_and_without_samples():
    evaluation = Evaluation(build_method("ce"), None)
    assert evaluated(evaluation).keys() == {"accuracy"}
    evaluation.start(CPU, again=False)
    assert evaluation.means(evaluation.sums) == {}


@pytest.mark.parametrize(("preset", "asked"), [("default", [2, 2, 4]), ("released-code", [2, 4, 6])])
def test_a_teacher_is_asked_once_and_not_moved(teacher, preset, asked):
    """One whose statistics move with training answers anew, in eval mode, and they move by training alone."""
    method = build_method("ckd", preset=preset)
    frozen, calls = FrozenTeacher(teacher, method), []
    teacher.register_forward_hook(lambda module, *_: calls.append(module.training))
    before = {name: value.clone() for name, value in teacher.named_buffers()}
    evaluation = Evaluation(method, frozen)
    for again, count in zip((False, True, False), asked, strict=True):
        evaluated(evaluation, again)
        assert calls == [False] * count
    assert all(torch.equal(value, before[name]) for name, value in teacher.named_buffers())
    assert teacher.training == (preset == "released-code")


def test_new_weights_of_a_teacher_are_seen(teacher):
    """A training that ends lets go of the answers."""
    method = build_method("kd")
    evaluation = Evaluation(method, FrozenTeacher(teacher, method))
    evaluated(evaluation, True)
    with torch.no_grad():
        teacher.classifier.bias[0] += 5
    stale = evaluated(evaluation, True)
    evaluation.forget()
    assert evaluated(evaluation, True)["kl"] != stale["kl"]
