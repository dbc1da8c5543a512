"""Functional losses against values and gradients worked out by hand."""

import math

import pytest
import torch

from ckdsnn.losses import (
    class_activation_map,
    grad_cam,
    grad_cam_closed_form,
    grad_cam_spiking,
    kd_loss,
    nld_loss,
    normalise_map,
    samd_loss,
)
from ckdsnn.losses.methods.dkd import dkd_loss
from ckdsnn.losses.methods.hta_kl import hta_kl_loss
from ckdsnn.losses.nld import DISTRIBUTIONS, standard_noise
from ckdsnn.losses.resize import resize_to

DOUBLE = torch.float64


def logit(values):
    return torch.tensor([values], dtype=DOUBLE, requires_grad=True)


def test_kd_value_and_gradient():
    """Two classes: softmax is a sigmoid of the difference d, KL(p||q) = p ln(p/q) + (1-p) ln((1-p)/(1-q))."""
    student, teacher = logit([0.0, 2.0]), logit([3.0, 0.0])
    loss = kd_loss(student, teacher, tau=2.0)
    p, q = 1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(1.0))
    assert loss.item() == pytest.approx(4 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))), rel=1e-12)
    loss.backward()
    # d(tau^2 KL)/dz = tau * (q - p)
    torch.testing.assert_close(student.grad, torch.tensor([[2 * (q - p), 2 * (p - q)]], dtype=DOUBLE))
    assert teacher.grad is None


def test_kd_is_the_mean_over_the_batch():
    student, teacher = torch.randn(3, 5), torch.randn(3, 5)
    each = torch.stack([kd_loss(student[i : i + 1], teacher[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(kd_loss(student, teacher), each.mean())


def test_losses_compute_in_float32():
    student, teacher = torch.randn(4, 10).bfloat16(), torch.randn(4, 10).bfloat16()
    assert kd_loss(student, teacher).dtype == torch.float32
    torch.testing.assert_close(kd_loss(student, teacher), kd_loss(student.float(), teacher.float()))
    maps = torch.rand(2, 3, 3)
    assert samd_loss(maps.bfloat16(), maps).dtype == torch.float32
    assert nld_loss(student, teacher, generator=torch.Generator()).dtype == torch.float32


def pair():
    """Maps of two positions, for which the softmax at T = 2 is worked out in the tests."""
    student = torch.tensor([[[0.0, 1.0]]], dtype=DOUBLE, requires_grad=True)
    teacher = torch.tensor([[[1.0, 0.0]]], dtype=DOUBLE, requires_grad=True)
    return student, teacher


def test_samd_value_and_gradient():
    student, teacher = pair()
    loss = samd_loss(student, teacher, normalisation="none")
    p = 1 / (1 + math.exp(-0.5))  # softmax([1, 0] / 2)
    # log-odds differ by 0.5 + 0.5, so KL = (2p - 1) * 0.5, times T^2 = 4
    assert loss.item() == pytest.approx(4 * (2 * p - 1) * 0.5, rel=1e-12)
    loss.backward()
    gradient = 2 * ((1 - p) - p)  # T * (P_st - P_te)
    torch.testing.assert_close(student.grad, torch.tensor([[[gradient, -gradient]]], dtype=DOUBLE))
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("normalisation", "student", "teacher"),
    # What is left of [0, 0.5] and of [4, 2] after it.
    [
        ("minmax", (0, 1), (1, 0)),
        ("zscore", (-1, 1), (1, -1)),
        ("minmax_batch", (0, 0.5 / 0.501), (2 / 2.001, 0)),
        ("none", (0, 0.5), (4, 2)),
    ],
)
def test_samd_normalises_both_maps(normalisation, student, teacher):
    maps = torch.tensor([[[0.0, 0.5]]], dtype=DOUBLE), torch.tensor([[[4.0, 2.0]]], dtype=DOUBLE)
    p, q = (1 / (1 + math.exp((b - a) / 2)) for a, b in (teacher, student))
    expected = 4 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert samd_loss(*maps, normalisation=normalisation).item() == pytest.approx(expected, rel=1e-12)


def test_samd_temperature_and_its_factor():
    student, teacher = pair()
    p = 1 / (1 + math.exp(-2.0))  # T = 0.5
    expected = (2 * p - 1) * 2.0
    options = {"normalisation": "none", "temperature": 0.5}
    assert samd_loss(student, teacher, **options).item() == pytest.approx(0.25 * expected, rel=1e-12)
    assert samd_loss(student, teacher, **options, temperature_factor=False).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        # l2: unit vectors (0, 1) and (3, 4)/5 -> 2 - 2*0.8
        ("l2", 0.4),
        # none: ((0 - 3)^2 + (1 - 4)^2) / 2
        ("none", 9.0),
        # z-scores of both are (-1, 1)
        ("zscore", 0.0),
    ],
)
def test_samd_other_scalings(scaling, expected):
    student, teacher = torch.tensor([[[0.0, 1.0]]], dtype=DOUBLE), torch.tensor([[[3.0, 4.0]]], dtype=DOUBLE)
    assert samd_loss(student, teacher, normalisation="none", scaling=scaling).item() == pytest.approx(
        expected, abs=1e-9
    )


def test_zscore_scaling_is_two_minus_two_correlations():
    student, teacher = torch.rand(2, 4, 4, dtype=DOUBLE), torch.rand(2, 4, 4, dtype=DOUBLE)
    each = [
        torch.corrcoef(torch.stack([s.flatten(), t.flatten()]))[0, 1] for s, t in zip(student, teacher, strict=True)
    ]
    expected = (2 - 2 * torch.stack(each)).mean()
    torch.testing.assert_close(samd_loss(student, teacher, normalisation="none", scaling="zscore"), expected)


def test_normalisations():
    maps = torch.tensor([[[1.0, 3.0]], [[0.0, 8.0]]], dtype=DOUBLE)
    assert torch.equal(normalise_map(maps, "none"), maps)
    unit = torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]], dtype=DOUBLE)
    torch.testing.assert_close(normalise_map(maps, "minmax"), unit, rtol=1e-5, atol=0)
    torch.testing.assert_close(normalise_map(maps, "zscore"), 2 * unit - 1)
    torch.testing.assert_close(normalise_map(maps, "minmax_batch"), maps / 8.001)


@pytest.mark.parametrize("normalisation", ["none", "minmax", "zscore", "minmax_batch"])
@pytest.mark.parametrize("scaling", ["softmax", "l2", "zscore", "none"])
def test_map_without_a_spike_has_finite_loss_and_gradient(normalisation, scaling):
    student = torch.zeros(2, 3, 3, requires_grad=True)
    loss = samd_loss(student, torch.rand(2, 3, 3), normalisation=normalisation, scaling=scaling)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("normalisation", ["none", "minmax", "zscore", "minmax_batch"])
def test_samd_gradient_by_finite_differences(normalisation):
    torch.manual_seed(0)
    student = torch.rand(2, 2, 3, dtype=DOUBLE, requires_grad=True)
    teacher = torch.rand(2, 2, 3, dtype=DOUBLE)
    for scaling in ("softmax", "l2", "zscore", "none"):
        assert torch.autograd.gradcheck(
            lambda s, scaling=scaling: samd_loss(s, teacher, normalisation=normalisation, scaling=scaling), student
        )


def test_samd_resizes_the_teachers_map():
    maps = torch.arange(16.0).view(1, 4, 4)
    torch.testing.assert_close(resize_to(maps, (8, 8)).mean(), maps.mean())
    assert resize_to(maps, (4, 4)) is maps
    small = resize_to(maps, (2, 2))
    assert small.shape == (1, 2, 2)
    assert small[0, 0, 0] < small[0, 0, 1] < small[0, 1, 1]
    # Half the size: a triangle of 2 pixels on either side, whose weights are 3/7, 3/7 and 1/7 at the edge.
    torch.testing.assert_close(resize_to(torch.tensor([[[7.0, 0.0, 0.0, 0.0]]]), (1, 2)), torch.tensor([[[3.0, 0.0]]]))
    student = torch.rand(1, 8, 8)
    torch.testing.assert_close(samd_loss(student, maps), samd_loss(student, resize_to(maps, (8, 8))))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_nld_default_is_the_papers_equation():
    torch.manual_seed(1)
    student, teacher = torch.randn(4, 10, dtype=DOUBLE), torch.randn(4, 10, dtype=DOUBLE)
    noise = torch.empty(4, 10, dtype=DOUBLE).normal_(generator=generator())
    eps = student.mean(1, keepdim=True) + student.std(1, keepdim=True) * noise
    p, q = torch.softmax(teacher / 2, 1), torch.softmax((student + 0.1 * eps) / 2, 1)
    expected = 4 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(nld_loss(student, teacher, generator=generator()), expected)


def test_nld_probability_mixing_is_the_released_codes_equation():
    torch.manual_seed(1)
    student, teacher = torch.randn(4, 10, dtype=DOUBLE), torch.randn(4, 10, dtype=DOUBLE)
    noise = torch.empty(4, 10, dtype=DOUBLE).normal_(generator=generator())
    eps = student.mean(1, keepdim=True) + student.std(1, keepdim=True) ** 2 * noise
    q = 0.9 * torch.softmax(student / 2, 1) + 0.1 * torch.softmax(eps / 2, 1)
    p = torch.softmax(teacher / 2, 1)
    expected = 4 * (p * (p / q).log()).sum(1).mean()
    loss = nld_loss(student, teacher, generator=generator(), spread="variance", mixing="probabilities")
    torch.testing.assert_close(loss, expected)


def test_nld_without_noise_is_kd():
    student, teacher = torch.randn(4, 10), torch.randn(4, 10)
    kd = kd_loss(student, teacher, tau=2.0)
    torch.testing.assert_close(nld_loss(student, teacher, generator=generator(), noise="none"), kd)
    torch.testing.assert_close(nld_loss(student, teacher, generator=generator(), strength=0.0), kd)


def test_nld_fixed_noise():
    torch.manual_seed(1)
    student, teacher = torch.randn(4, 10), torch.randn(4, 10)
    noise = torch.empty(4, 10).normal_(generator=generator())
    expected = kd_loss(student + 0.3 * 0.7 * noise, teacher, tau=2.0)
    loss = nld_loss(student, teacher, generator=generator(), noise="fixed", sigma=0.7, strength=0.3)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("detach", [True, False])
def test_nld_gradient_with_and_without_the_statistics(detach):
    torch.manual_seed(1)
    student = torch.randn(3, 5, dtype=DOUBLE, requires_grad=True)
    teacher = torch.randn(3, 5, dtype=DOUBLE)

    def loss(z):
        return nld_loss(z, teacher, generator=generator(), strength=0.5, detach_statistics=detach)

    if detach:
        (actual,) = torch.autograd.grad(loss(student), student)
        noise = torch.empty(3, 5, dtype=DOUBLE).normal_(generator=generator()) * student.detach().std(1, keepdim=True)
        expected = 2 * (torch.softmax((student + 0.5 * noise) / 2, 1) - torch.softmax(teacher / 2, 1)) / 3
        torch.testing.assert_close(actual, expected.detach())
    else:
        assert torch.autograd.gradcheck(loss, student)


def test_nld_strength_can_be_learnt():
    strength = torch.tensor(0.1, requires_grad=True)
    nld_loss(torch.randn(4, 10), torch.randn(4, 10), generator=generator(), strength=strength).backward()
    assert strength.grad.abs() > 0


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_noise_has_mean_0_and_variance_1(distribution):
    noise = standard_noise(torch.empty(1000, 1000), distribution, generator())
    assert torch.isfinite(noise).all()
    assert noise.mean().abs() < 5e-3
    assert (noise.std() - 1).abs() < 5e-3
    # Excess kurtosis tells the four apart: 0, 3, -1.2, 2.4.
    excess = noise.double().sub(noise.mean()).pow(4).mean() - 3
    expected = {"gaussian": 0.0, "laplace": 3.0, "uniform": -1.2, "gumbel": 2.4}[distribution]
    assert abs(excess - expected) < 0.15


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_noise_follows_the_generator_only(distribution):
    torch.manual_seed(0)
    first = standard_noise(torch.empty(5), distribution, generator(3))
    torch.manual_seed(1)
    assert torch.equal(first, standard_noise(torch.empty(5), distribution, generator(3)))
    assert not torch.equal(first, standard_noise(torch.empty(5), distribution, generator(4)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z, m: kd_loss(z, z[:, :2]), r"must both be \[B, K\], got \[2, 3\] and \[2, 2\]"),
        (lambda z, m: kd_loss(z, z, tau=0), "tau must be > 0, got 0"),
        (lambda z, m: samd_loss(m, m[:1]), r"\[B, H, W\] with the same B, got \[2, 3, 3\] and \[1, 3, 3\]"),
        (lambda z, m: samd_loss(m, m, normalisation="max"), "normalisation must be one of none, minmax"),
        (lambda z, m: samd_loss(m, m, scaling="l1"), "scaling must be one of softmax"),
        (lambda z, m: samd_loss(m, m, temperature=-1.0), "temperature must be > 0, got -1.0"),
        (lambda z, m: samd_loss(m, m, scaling="l2", temperature=2.0), "only used with scaling='softmax'"),
        (lambda z, m: normalise_map(m, "l2"), "normalisation must be one of"),
        (lambda z, m: nld_loss(z, z, generator=generator(), noise="some"), "noise must be one of"),
        (lambda z, m: nld_loss(z, z, generator=generator(), noise="none", strength=0.2), "strength=0.2 is not used"),
        (lambda z, m: nld_loss(z, z, generator=generator(), noise="none", mixing="probabilities"), "needs noise"),
        (lambda z, m: nld_loss(z, z, generator=generator(), noise="fixed"), "needs sigma > 0, got None"),
        (lambda z, m: nld_loss(z, z, generator=generator(), sigma=1.0), "sigma=1.0 is only used with noise='fixed'"),
        (lambda z, m: nld_loss(z, z, generator=generator(), noise="fixed", sigma=1.0, spread="std"), "spread='std' is"),
        (lambda z, m: nld_loss(z, z, generator=generator(), strength=-0.1), "strength must be >= 0, got -0.1"),
        (
            lambda z, m: nld_loss(z, z, generator=generator(), strength=1.5, mixing="probabilities"),
            r"strength must be in \[0, 1\]",
        ),
        (lambda z, m: nld_loss(z, z, generator=generator(), distribution="cauchy"), "distribution must be one of"),
        (lambda z, m: nld_loss(z, z, generator=generator(), temperature=0.0), "temperature must be > 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(2, 3), torch.rand(2, 3, 3))


Z, MAPS, TARGET = torch.zeros(2, 3), torch.zeros(2, 3, 3), torch.tensor([0, 1])
FEATURES, WEIGHT = torch.zeros(2, 4, 3, 3), torch.zeros(3, 4)


@pytest.mark.parametrize("wrong", [None, "x", 1.0, [[1.0]], torch.zeros(2, 3, dtype=torch.int64)], ids=repr)
@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("student_logits", lambda x: kd_loss(x, Z)),
        ("teacher_logits", lambda x: kd_loss(Z, x)),
        ("student_logits", lambda x: nld_loss(x, Z, generator=generator())),
        ("teacher_logits", lambda x: nld_loss(Z, x, generator=generator())),
        ("student_logits", lambda x: dkd_loss(x, Z, TARGET, 1.0, 8.0, 4.0)),
        ("teacher_logits", lambda x: hta_kl_loss(Z, x, 4.0, 0.5)),
        ("student_map", lambda x: samd_loss(x, MAPS)),
        ("teacher_map", lambda x: samd_loss(MAPS, x)),
        ("maps", lambda x: normalise_map(x, "minmax")),
        ("features", lambda x: class_activation_map(x, WEIGHT, TARGET)),
        ("classifier_weight", lambda x: class_activation_map(FEATURES, x, TARGET)),
        ("logits", lambda x: grad_cam(x, FEATURES, TARGET)),
        ("features", lambda x: grad_cam(Z, x, TARGET)),
        ("step_logits", lambda x: grad_cam_spiking(x, FEATURES[None], TARGET)),
        ("features", lambda x: grad_cam_spiking(Z[None], x, TARGET)),
    ],
)
def test_what_is_no_tensor_is_refused_by_name(argument, call, wrong):
    with pytest.raises(TypeError, match=rf"^{argument} must be (a torch.Tensor|of a floating-point dtype)"):
        call(wrong)


@pytest.mark.parametrize("wrong", [-1, 3])
@pytest.mark.parametrize(
    "call",
    [
        lambda y: dkd_loss(Z, Z, y, 1.0, 8.0, 4.0),
        lambda y: class_activation_map(FEATURES, WEIGHT, y),
        lambda y: grad_cam_closed_form(FEATURES, WEIGHT, y),
        lambda y: grad_cam(Z, FEATURES, y),
        lambda y: grad_cam_spiking(Z[None], FEATURES[None], y),
    ],
)
def test_a_class_that_does_not_exist_is_refused(call, wrong):
    with pytest.raises(ValueError, match=rf"target must hold classes from 0 to 2, got {wrong}"):
        call(torch.tensor([0, wrong]))


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "2"])
@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("tau", lambda v: kd_loss(Z, Z, v)),
        ("temperature", lambda v: samd_loss(MAPS, MAPS, temperature=v)),
        ("resolution", lambda v: samd_loss(MAPS, MAPS, resolution=v)),
        ("resolution", lambda v: normalise_map(MAPS, "minmax", v)),
        ("temperature", lambda v: nld_loss(Z, Z, generator=generator(), temperature=v)),
        ("strength", lambda v: nld_loss(Z, Z, generator=generator(), strength=v)),
        ("sigma", lambda v: nld_loss(Z, Z, generator=generator(), noise="fixed", sigma=v)),
        ("alpha", lambda v: dkd_loss(Z, Z, TARGET, v, 8.0, 4.0)),
        ("beta", lambda v: dkd_loss(Z, Z, TARGET, 1.0, v, 4.0)),
        ("tau", lambda v: dkd_loss(Z, Z, TARGET, 1.0, 8.0, v)),
        ("tau", lambda v: hta_kl_loss(Z, Z, v, 0.5)),
        ("head_mass", lambda v: hta_kl_loss(Z, Z, 4.0, v)),
    ],
)
def test_what_is_no_number_is_refused_by_name(argument, call, value):
    with pytest.raises((TypeError, ValueError), match=rf"^{argument} must be"):
        call(value)


def test_one_class_is_refused():
    one = torch.zeros(2, 1)
    for call in (
        lambda: kd_loss(one, one),
        lambda: nld_loss(one, one, generator=generator()),
        lambda: dkd_loss(one, one, torch.tensor([0, 0]), 1.0, 8.0, 4.0),
        lambda: hta_kl_loss(one, one, 4.0, 0.5),
    ):
        with pytest.raises(ValueError, match=r"must be of at least 2 classes, got \[2, 1\]"):
            call()


def test_nld_options_that_are_none():
    for options, message in (
        ({"generator": 0}, "generator must be a torch.Generator, got 0"),
        ({"detach_statistics": "no"}, "detach_statistics must be True or False, got 'no'"),
        ({"strength": torch.zeros((), dtype=torch.int64)}, "strength must be of a floating-point dtype"),
    ):
        with pytest.raises(TypeError, match=message):
            nld_loss(Z, Z, **{"generator": generator(), **options})
    with pytest.raises(ValueError, match=r"strength must be one number, got a tensor \[2\]"):
        nld_loss(Z, Z, generator=generator(), strength=torch.zeros(2))
