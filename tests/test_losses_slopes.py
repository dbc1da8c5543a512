"""Slopes have a bound: constant and nearly constant maps, and mixtures of which a part is next to nothing."""

import math

import pytest
import torch

from ckdsnn.losses import build_method, nld_loss, normalise_map, samd_loss
from ckdsnn.losses.methods.catkd import class_maps
from ckdsnn.losses.nld import _log_mixture
from ckdsnn.losses.samd import NORMALISATIONS, SCALINGS
from ckdsnn.models import ANNOutput, SNNOutput

STRETCHING = [kind for kind in NORMALISATIONS if kind != "none"]
DOUBLE = torch.float64


def slope(function, maps):
    """The largest element of the gradient of a random projection."""
    maps = maps.clone().requires_grad_()
    result = function(maps)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(0), dtype=result.dtype)
    (gradient,) = torch.autograd.grad((result * weights).sum(), maps)
    return gradient.abs().max().item()


@pytest.mark.parametrize("kind", STRETCHING)
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e6, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_constant_map_is_zeros_with_gradient_zero(kind, value, dtype):
    maps = torch.full((2, 7, 3), value, dtype=dtype)
    assert torch.equal(normalise_map(maps, kind), torch.zeros_like(maps))
    assert slope(lambda m: normalise_map(m, kind), maps) == 0


@pytest.mark.parametrize("kind", STRETCHING)
def test_a_constant_map_beside_others_changes_nothing_for_them(kind):
    torch.manual_seed(0)
    maps = torch.rand(3, 4, 4)
    if kind == "minmax_batch":
        pytest.skip("the batch is scaled as one")
    both = torch.cat([maps, torch.full((1, 4, 4), 0.3)])
    assert torch.equal(normalise_map(both, kind)[:3], normalise_map(maps, kind))


@pytest.mark.parametrize("kind", STRETCHING)
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-5, 1e-3])
def test_the_resolution_bounds_the_slope(kind, scaling, scale):
    """However small the differences, the loss is no steeper than 1 / resolution allows."""
    torch.manual_seed(0)
    student, teacher, resolution = scale * torch.rand(2, 4, 4) + 0.2, torch.rand(2, 4, 4), 1e-3
    steepest = slope(
        lambda m: samd_loss(m, teacher, normalisation=kind, scaling=scaling, resolution=resolution)[None], student
    )
    assert steepest <= 20 / resolution


@pytest.mark.parametrize("kind", STRETCHING)
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("spikes", [1, 2, 40])
def test_the_resolution_leaves_maps_of_spikes_alone(kind, scaling, spikes):
    """Down to one spike, value and gradient are those without a bound."""
    steps, channels = 3, 100
    generator = torch.Generator().manual_seed(spikes)
    fired = torch.zeros(steps, 2, channels, 16)
    for sample in range(2):
        places = torch.randperm(steps * channels * 16, generator=generator)[:spikes]
        fired[places % steps, sample, places // steps % channels, places // (steps * channels)] = 1
    sam = fired.mean((0, 2)).view(2, 4, 4)
    assert (sam.amax((1, 2)) > sam.amin((1, 2))).all()
    results = []
    for resolution in (0.0, 0.5 / (steps * channels)):
        student = sam.clone().requires_grad_()
        loss = samd_loss(
            student,
            torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)),
            normalisation=kind,
            scaling=scaling,
            resolution=resolution,
        )
        results.append((loss.detach(), torch.autograd.grad(loss, student)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=0)


def outputs(features, weight=None):
    weight = torch.randn(5, features.shape[2], generator=torch.Generator().manual_seed(3)) if weight is None else weight
    features.requires_grad_()
    steps = features.mean((3, 4)) @ weight.T
    student = SNNOutput(steps.mean(0), steps, {1: features}, {1: features.mean((0, 2))}, weight)
    torch.manual_seed(0)
    wanted, theirs = torch.rand(4, 8, 4, 4), torch.randn(5, 8)
    return student, ANNOutput(wanted.mean((2, 3)) @ theirs.T, {1: wanted}, theirs), torch.tensor([0, 1, 2, 4])


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [("samd", {"normalisation": kind, "scaling": scaling}, "samd") for kind in NORMALISATIONS for scaling in SCALINGS]
    + [("samd", {"student_map": "grad_cam"}, "samd"), ("samd", {"reduction": "sum"}, "samd")]
    + [("e2kd", {}, "explanation"), ("catkd", {"weight": 1.0}, "catkd")],
)
@pytest.mark.parametrize("alive", [0.0, 1e-7])
def test_a_dead_last_stage_is_not_kicked(name, options, part, alive):
    """Its gradient has a bound, in the scalings that are steepest too; without one it is 1e4 to 1e18 times as large."""
    torch.manual_seed(1)
    student, teacher, target = outputs(alive * torch.rand(2, 4, 64, 4, 4))
    parts = build_method(name, **options)(student, teacher, target)
    features = student.features[1]
    ours = torch.autograd.grad(parts[part], features, retain_graph=True)[0].norm()
    reference = torch.autograd.grad(parts["ce"], features)[0].norm()
    assert ours < 200 * reference


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("normalisation", STRETCHING)
def test_a_map_of_one_spike_is_compared_as_it_is(reduction, normalisation):
    features = torch.zeros(2, 4, 8, 4, 4)
    features[1, :, 3, 2, 1] = 1
    student, teacher, target = outputs(features)
    teacher.cams[-1] = torch.rand(4, 4, 4)
    part = build_method("samd", normalisation=normalisation, reduction=reduction)(student, teacher, target)["samd"]
    sam = student.sams[1] * (16 if reduction == "sum" else 1)
    torch.testing.assert_close(part, samd_loss(sam, teacher.cams[-1], normalisation=normalisation))


def test_a_head_of_zeros_has_class_maps_of_zeros():
    weight = torch.zeros(5, 8, requires_grad=True)
    maps = class_maps(torch.rand(2, 8, 4, 4), weight, 2)
    assert maps.abs().max() == 0
    assert torch.autograd.grad((maps * torch.randn_like(maps)).sum(), weight)[0].abs().max() == 0


def test_features_that_are_never_positive():
    """bkdsnn: a teacher without a ReLU, all of whose features are negative."""
    student, teacher, target = outputs(torch.rand(2, 4, 8, 4, 4))
    method = build_method("bkdsnn", drop=0.0, weight=1.0)
    method.align, method.restore = torch.nn.Identity(), torch.nn.Identity()
    wanted = -teacher.features[1]
    part = method(student, ANNOutput(teacher.logits, {1: wanted}), target)["features"]
    mean = student.features[1].mean(0)
    torch.testing.assert_close(part, (mean - wanted / wanted.abs().max() * mean.max()).pow(2).sum() / 4)
    part = method(student, ANNOutput(teacher.logits, {1: torch.zeros_like(wanted)}), target)["features"]
    torch.testing.assert_close(part, mean.pow(2).sum() / 4)


@pytest.mark.parametrize("share", [0.0, 1e-6, 0.1, 0.5, 1.0])
def test_mixtures_are_those_of_the_probabilities(share):
    torch.manual_seed(0)
    p, q = torch.softmax(torch.randn(3, 4, dtype=DOUBLE), 1), torch.softmax(torch.randn(3, 4, dtype=DOUBLE), 1)
    expected = ((1 - share) * p + share * q).log()
    torch.testing.assert_close(_log_mixture(p.log(), q.log(), share), expected)
    tensor = torch.tensor(share, dtype=DOUBLE)
    torch.testing.assert_close(_log_mixture(p.log(), q.log(), tensor), expected, rtol=1e-12, atol=1e-12)


def test_a_mixture_does_not_underflow():
    """log(0.9 e^-800 + 0.1 e^-900) is log(0.9) - 800; probabilities that small are 0."""
    p = torch.tensor([[-800.0, 0.0]], requires_grad=True)
    q = torch.tensor([[-900.0, 0.0]])
    mixed = _log_mixture(p, q, 0.1)
    assert mixed[0, 0].item() == pytest.approx(math.log(0.9) - 800, rel=1e-7)
    mixed[0, 0].backward()
    torch.testing.assert_close(p.grad, torch.tensor([[1.0, 0.0]]))


def test_a_student_that_is_certain_and_wrong_has_a_finite_loss_and_gradient():
    student, teacher = torch.tensor([[1600.0, 0.0]], requires_grad=True), torch.tensor([[0.0, 1600.0]])
    options = {"mixing": "probabilities", "noise": "fixed", "sigma": 1e-3, "strength": 0.0}
    loss = nld_loss(student, teacher, generator=torch.Generator().manual_seed(0), **options)
    loss.backward()
    assert loss.item() == pytest.approx(4 * 800)  # tau^2 * log(1 / e^-800)
    torch.testing.assert_close(student.grad, torch.tensor([[2.0, -2.0]]))  # tau * (q - p)


@pytest.mark.parametrize("mixing", ["logits", "probabilities"])
@pytest.mark.parametrize("direction", [1, -1])
def test_a_learnt_strength_stays_where_it_has_a_meaning(mixing, direction):
    """Pushed as hard as it goes either way, it is still a strength, and the loss and its gradients are numbers."""
    torch.manual_seed(0)
    method = build_method("nld", learnable_strength=True, mixing=mixing, strength=0.3)
    assert method.nld.strength.item() == pytest.approx(0.3, rel=1e-6)
    logits = torch.randn(4, 5, requires_grad=True)
    student = SNNOutput(logits, logits[None], {}, {})
    for _ in range(5):
        with torch.no_grad():
            method.nld.strength_shift += 50 * direction
        part = method(student, ANNOutput(torch.randn(4, 5), {}), torch.tensor([0, 1, 2, 3]))["nld"]
        part.backward()
        assert 0 <= method.nld.strength <= (1 if mixing == "probabilities" else math.inf)
        assert torch.isfinite(part)
        assert torch.isfinite(logits.grad).all()
        assert torch.isfinite(method.nld.strength_shift.grad)
