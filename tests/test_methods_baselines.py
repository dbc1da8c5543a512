"""Baselines against values and gradients worked out by hand."""

import math

import pytest
import torch

from ckdsnn.losses import build_method, grad_cam, kd_loss
from ckdsnn.losses.methods.catkd import class_maps
from ckdsnn.losses.methods.dkd import dkd_loss
from ckdsnn.losses.methods.hta_kl import hta_kl_loss
from ckdsnn.models import ANNOutput, SNNOutput, build_model

DOUBLE = torch.float64


def outputs(steps=3, batch=4, classes=5, channels=(2, 3), size=4, teacher_size=4):
    """A student of one stage with a linear head, and a teacher, as plain tensors."""
    torch.manual_seed(0)
    features = torch.rand(steps, batch, channels[0], size, size, requires_grad=True)
    weight = torch.randn(classes, channels[0], requires_grad=True)
    step_logits = features.mean((3, 4)) @ weight.T
    student = SNNOutput(step_logits.mean(0), step_logits, {1: features}, {}, weight)
    wanted = torch.rand(batch, channels[1], teacher_size, teacher_size)
    teacher_weight = torch.randn(classes, channels[1])
    teacher = ANNOutput(wanted.mean((2, 3)) @ teacher_weight.T, {1: wanted, -1: wanted}, teacher_weight)
    return student, teacher, torch.randint(0, classes, (batch,))


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def softmax(z, tau=1.0):
    e = [math.exp(v / tau) for v in z]
    return [v / sum(e) for v in e]


def test_dkd_by_hand():
    z_st, z_te, tau, alpha, beta = [0.5, 1.0, -1.0], [2.0, 0.0, 1.0], 4.0, 1.5, 8.0
    p, q = softmax(z_te, tau), softmax(z_st, tau)
    tckd = kl([p[1], p[0] + p[2]], [q[1], q[0] + q[2]])
    nckd = kl(softmax([z_te[0], z_te[2]], tau), softmax([z_st[0], z_st[2]], tau))
    loss = dkd_loss(
        torch.tensor([z_st], dtype=DOUBLE), torch.tensor([z_te], dtype=DOUBLE), torch.tensor([1]), alpha, beta, tau
    )
    assert loss.item() == pytest.approx(tau**2 * (alpha * tckd + beta * nckd), rel=1e-12)


def test_dkd_recomposes_kd():
    """KD = TCKD + (1 - p_target) * NCKD, equation 6 of the paper; one sample, tau 1."""
    student, teacher = torch.randn(1, 5, dtype=DOUBLE), torch.randn(1, 5, dtype=DOUBLE)
    rest = 1 - torch.softmax(teacher, 1)[0, 2].item()
    target = torch.tensor([2])
    torch.testing.assert_close(dkd_loss(student, teacher, target, 1.0, rest, 1.0), kd_loss(student, teacher, 1.0))


def test_dkd_gradient():
    student = torch.randn(3, 5, dtype=DOUBLE, requires_grad=True)
    teacher, target = torch.randn(3, 5, dtype=DOUBLE), torch.tensor([0, 2, 4])
    assert torch.autograd.gradcheck(lambda z: dkd_loss(z, teacher, target, 1.0, 8.0, 4.0), student)


def test_dkd_is_finite_where_the_teacher_is_certain():
    student, teacher = torch.zeros(1, 3, requires_grad=True), torch.tensor([[1000.0, 0.0, 1.0]])
    loss = dkd_loss(student, teacher, torch.tensor([0]), 1.0, 8.0, 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(("epoch", "rise"), [(0.0, 0.25), (0.9, 0.25), (1.0, 0.5), (3.0, 1.0), (50.0, 1.0)])
def test_dkd_warms_up(epoch, rise):
    student, teacher, target = outputs()
    full = dkd_loss(student.logits, teacher.logits, target, 1.0, 8.0, 4.0)
    method = build_method("dkd", warmup=4)
    torch.testing.assert_close(method(student, teacher, target, epoch=epoch)["dkd"], rise * full)


def bound(name, **options):
    """A method with the modules for 2 student and 3 teacher channels."""
    student = build_model("snn_resnet_small", num_classes=5, widths=(2,), blocks=(1,))
    teacher = build_model("ann_resnet_small", num_classes=5, widths=(3,), blocks=(1,))
    return build_method(name, **options).bind(student, teacher)


def test_kdsnn_features_by_hand():
    student, teacher, target = outputs()
    method = bound("kdsnn", feature_weight=0.5, weight=2.0, tau=3.0)
    with torch.no_grad():
        method.projections[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])[:, :, None, None])
        method.projections[0].bias.copy_(torch.tensor([0.0, 0.0, 0.5]))
    mean = student.features[1].mean(0)
    projected = torch.stack([mean[:, 0], mean[:, 1], mean[:, 0] + mean[:, 1] + 0.5], dim=1)
    parts = method(student, teacher, target)
    torch.testing.assert_close(parts["features"], 0.5 * (projected - teacher.features[1]).pow(2).mean())
    torch.testing.assert_close(parts["kd"], 2 * kd_loss(student.logits, teacher.logits, 3.0))


def test_kdsnn_and_bkdsnn_take_teachers_of_another_size():
    student, teacher, target = outputs(teacher_size=7)
    for name in ("kdsnn", "bkdsnn"):
        assert torch.isfinite(bound(name)(student, teacher, target)["features"])


@pytest.mark.parametrize("name", ["kdsnn", "bkdsnn"])
def test_modules_must_be_made_first(name):
    student, teacher, target = outputs()
    with pytest.raises(RuntimeError, match=r"call method.bind\(student, teacher\) first"):
        build_method(name)(student, teacher, target)


def test_bkdsnn_by_hand():
    student, teacher, target = outputs()
    method = bound("bkdsnn", weight=0.1, drop=0.5, seed=2)
    parts = method(student, teacher, target)
    aligned = method.align(student.features[1].mean(0))
    keep = torch.rand(4, 3, generator=torch.Generator().manual_seed(2)) >= 0.5
    assert 0 < keep.sum() < 12
    restored = method.restore(torch.where(keep[:, :, None, None], aligned, 0.0))
    wanted = teacher.features[1] / teacher.features[1].max() * aligned.max()
    torch.testing.assert_close(parts["features"], 0.1 * (restored - wanted).pow(2).sum() / 4)


def test_bkdsnn_aligns_only_where_it_must():
    student = build_model("snn_resnet_small", num_classes=5, widths=(3,), blocks=(1,))
    teacher = build_model("ann_resnet_small", num_classes=5, widths=(3,), blocks=(1,))
    assert isinstance(build_method("bkdsnn").bind(student, teacher).align, torch.nn.Identity)


def test_tser_by_hand():
    student, teacher, target = outputs()
    parts = build_method("tser", alpha=0.3, tau=2.0, entropy=0.2)(student, teacher, target)
    ce = kd = entropy = 0.0
    for z in student.step_logits.tolist():
        for row, wanted, label in zip(z, teacher.logits.tolist(), target.tolist(), strict=True):
            q = softmax(row)
            ce -= math.log(q[label]) / 12
            kd += 4 * kl(softmax(wanted, 2.0), softmax(row, 2.0)) / 12
            entropy -= sum(v * math.log(v) for v in q) / 12
    assert parts["ce"].item() == pytest.approx(0.7 * ce, rel=1e-5)
    assert parts["kd"].item() == pytest.approx(0.3 * kd, rel=1e-4)
    assert parts["entropy"].item() == pytest.approx(-0.2 * entropy, rel=1e-5)


def test_decoupled_by_hand():
    student, teacher, target = outputs()
    parts = build_method("decoupled")(student, teacher, target)
    ce = kd = own = 0.0
    for z in student.step_logits.tolist():
        rows = zip(z, teacher.logits.tolist(), student.logits.tolist(), target.tolist(), strict=True)
        for row, wanted, mean, label in rows:
            ce -= math.log(softmax(row)[label]) / 12
            kd += 9 * kl(softmax(wanted, 3.0), softmax(row, 3.0)) / 12
            own += 9 * kl(softmax(mean, 3.0), softmax(row, 3.0)) / 12
    assert parts["ce"].item() == pytest.approx(ce, rel=1e-5)
    assert parts["kd"].item() == pytest.approx(0.2 * kd, rel=1e-4)
    assert parts["self"].item() == pytest.approx(0.5 * own, rel=1e-3)


def test_decoupled_target_has_no_gradient():
    """At equal steps the average is every step's own distribution, and the self-distillation rests."""
    step = torch.randn(4, 5, requires_grad=True)
    step_logits = torch.stack([step, step.detach() + 1.0 * torch.eye(4, 5)])
    _, teacher, target = outputs()
    student = SNNOutput(step_logits.mean(0), step_logits, {}, {})
    (gradient,) = torch.autograd.grad(build_method("decoupled")(student, teacher, target)["self"], step)
    mean = step_logits.mean(0).detach()
    expected = 0.5 * 3 * (torch.softmax(step / 3, 1) - torch.softmax(mean / 3, 1)) / 8
    torch.testing.assert_close(gradient, expected.detach())


def test_hta_kl_by_hand():
    """Teacher (.5, .3, .2): the head at mass .6 is the first two classes."""
    p, q = [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]
    student, teacher = torch.tensor([q], dtype=DOUBLE).log(), torch.tensor([p], dtype=DOUBLE).log()
    head = (0.3 + 0.1) / (0.3 + 0.1 + 0.4)
    expected = head * kl(p, q) + (1 - head) * kl(q, p)
    assert hta_kl_loss(student, teacher, tau=1.0, head_mass=0.6).item() == pytest.approx(expected, rel=1e-12)
    head = 0.3 / 0.8  # mass .5 is reached by the first class alone
    expected = head * kl(p, q) + (1 - head) * kl(q, p)
    assert hta_kl_loss(student, teacher, tau=1.0, head_mass=0.5).item() == pytest.approx(expected, rel=1e-12)


def test_hta_kl_weights_have_no_gradient():
    z = torch.tensor([[0.2, 0.35, 0.45]], dtype=DOUBLE).log().requires_grad_()
    teacher = torch.tensor([[0.5, 0.3, 0.2]], dtype=DOUBLE).log()
    hta_kl_loss(z, teacher, tau=1.0, head_mass=0.6).backward()
    gradient = z.grad.clone()
    head = (0.3 + 0.05) / (0.3 + 0.05 + 0.25)
    p, log_q = teacher.exp(), torch.log_softmax(z, 1)
    forward, reverse = (p * (teacher - log_q)).sum(), (log_q.exp() * (log_q - teacher)).sum()
    (expected,) = torch.autograd.grad(head * forward + (1 - head) * reverse, z)
    torch.testing.assert_close(gradient, expected)


def test_catkd_by_hand():
    student, teacher, target = outputs()
    parts = build_method("catkd", weight=3.0)(student, teacher, target)

    def maps(features, weight):
        pooled = torch.stack([(features * row[None, :, None, None]).sum(1) for row in weight], dim=1)
        pooled = pooled.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
        return pooled / pooled.pow(2).sum((2, 3), keepdim=True).sqrt()

    ours = maps(student.features[1].mean(0), student.classifier_weight)
    theirs = maps(teacher.features[1], teacher.classifier_weight)
    torch.testing.assert_close(parts["catkd"], 3 * (ours - theirs).pow(2).mean())
    assert class_maps(teacher.features[1], teacher.classifier_weight, 2).shape == (4, 5, 2, 2)


def test_catkd_needs_linear_heads():
    student = build_model("snn_resnet_small", num_classes=10, head="released")
    with pytest.raises(ValueError, match="the student's head is not global average pooling and one linear layer"):
        build_method("catkd").bind(student, build_model("ann_resnet_small", num_classes=10))


def test_e2kd_by_hand():
    student, teacher, target = outputs(teacher_size=4)
    method = build_method("e2kd", explanation_weight=2.0)
    predicted = teacher.logits.argmax(1)
    assert not torch.equal(predicted, target)
    parts = method(student, teacher, target)
    mean = student.features[1].mean(0).detach().requires_grad_()
    ours = grad_cam(mean.mean((2, 3)) @ student.classifier_weight.T, mean, predicted)
    theirs = (teacher.features[1] * teacher.classifier_weight[predicted][:, :, None, None]).sum(1).relu() / 16
    dot = (ours * theirs).sum((1, 2))
    cosine = dot / (ours.pow(2).sum((1, 2)).sqrt() * theirs.pow(2).sum((1, 2)).sqrt()).clamp_min(1e-8)
    torch.testing.assert_close(parts["explanation"], 2 * (1 - cosine).mean())
    torch.testing.assert_close(parts["kd"], kd_loss(student.logits, teacher.logits))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dkd", {"warmup": 0}, "warmup must be >= 1"),
        ("bkdsnn", {"drop": 1.0}, r"drop must be in \[0, 1\), got 1.0"),
        ("tser", {"alpha": 1.5}, r"alpha must be in \[0, 1\], got 1.5"),
        ("tser", {"entropy": -1.0}, "entropy must be >= 0"),
        ("hta_kl", {"head_mass": 1.0}, r"head_mass must be in \(0, 1\), got 1.0"),
        ("catkd", {"resolution": 0}, "resolution must be >= 1, got 0"),
        ("decoupled", {"tau": -1.0}, "tau must be > 0, got -1.0"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_method(name, **options)
