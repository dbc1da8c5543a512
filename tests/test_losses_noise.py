"""The noise of NLD: distributions at matched scale, and a strength that is learnt and does not collapse."""

import math

import pytest
import torch

from ckdsnn.losses import build_method, nld_loss
from ckdsnn.losses.nld import DISTRIBUTIONS, standard_noise, strength_prior
from ckdsnn.models import ANNOutput, SNNOutput


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_distributions_agree_in_what_they_shall(distribution):
    like = torch.empty(1000, 1000)
    by_std = standard_noise(like, distribution, generator(), "std")
    by_mean = standard_noise(like, distribution, generator(), "mean_abs")
    assert torch.equal(by_std, standard_noise(like, distribution, generator()))
    assert by_std.std().item() == pytest.approx(1, abs=5e-3)
    assert by_mean.abs().mean().item() == pytest.approx(math.sqrt(2 / math.pi), abs=3e-3)
    assert torch.equal(by_std, by_mean) == (distribution == "gaussian")
    # Laplace has E|n| = b = std/sqrt(2), uniform noise in [-a, a] has a/2 and std a/sqrt(3).
    std = {"gaussian": 1, "laplace": 2 / math.sqrt(math.pi), "uniform": math.sqrt(8 / (3 * math.pi)), "gumbel": 1.04097}
    assert by_mean.std().item() == pytest.approx(std[distribution], abs=5e-3)


def test_the_loss_is_of_the_matched_noise():
    student, teacher = torch.randn(2, 4, 5, generator=generator(1))
    noise = standard_noise(student, "uniform", generator(), "mean_abs") * student.std(1, keepdim=True)
    target = torch.softmax(teacher / 2, 1)
    expected = 4 * (target * (target.log() - torch.log_softmax((student + 0.3 * noise) / 2, 1))).sum(1).mean()
    options = {"strength": 0.3, "distribution": "uniform", "match": "mean_abs"}
    torch.testing.assert_close(nld_loss(student, teacher, generator=generator(), **options), expected)


def test_the_prior_by_hand():
    """KL(N(0, a^2) || N(0, b^2)), and its slope in the logarithm of a/b, r^2 - 1."""
    for a, b in ((0.1, 0.1), (0.05, 0.1), (0.3, 0.1)):
        log_ratio = torch.tensor(math.log(a / b), requires_grad=True)
        prior = strength_prior(log_ratio)
        divergence = torch.distributions.kl_divergence(
            torch.distributions.Normal(0.0, a), torch.distributions.Normal(0.0, b)
        )
        torch.testing.assert_close(prior, divergence, atol=1e-6, rtol=1e-5)
        (slope,) = torch.autograd.grad(prior, log_ratio)
        assert slope.item() == pytest.approx((a / b) ** 2 - 1, abs=1e-5)


def learnt(steps=400, **options):
    """The strength that minimises the loss of a student that stays as it is."""
    method = build_method("nld", learnable_strength=True, **options)
    student, teacher = torch.randn(2, 400, 10, generator=generator(2)) * 2
    output = SNNOutput(student, student[None], {}, {})
    optimizer = torch.optim.Adam(method.parameters(), lr=0.05)
    for step in range(steps):
        if step == steps // 2:
            optimizer.param_groups[0]["lr"] = 0.005
        optimizer.zero_grad()
        method(output, ANNOutput(teacher, {}), torch.zeros(400, dtype=torch.long))["nld"].backward()
        optimizer.step()
    return method.nld.strength.item(), student, teacher


def test_without_a_prior_a_strength_collapses():
    strength, *_ = learnt(strength=0.1, strength_prior=0.0)
    assert strength < 0.02


@pytest.mark.parametrize("prior", [0.1, 2.0])
def test_with_a_prior_it_stays_where_both_balance(prior):
    """The loss rises by a*strength^2, the prior has the slope (r^2 - 1)/strength: strength^2 = p / (2a + p/start^2)."""
    strength, student, teacher = learnt(strength=0.1, strength_prior=prior)
    many = (student.double().repeat(50, 1), teacher.double().repeat(50, 1))
    rise = [nld_loss(*many, generator=generator(), strength=s).item() for s in (0.0, 0.1)]
    a = (rise[1] - rise[0]) / 0.1**2
    assert strength == pytest.approx(math.sqrt(prior / (2 * a + prior / 0.1**2)), rel=0.05)
    assert 0.03 < strength < 0.1


@pytest.mark.parametrize("mixing", ["logits", "probabilities"])
def test_a_collapsed_strength_is_pulled_back(mixing):
    method = build_method("nld", learnable_strength=True, mixing=mixing)
    student = torch.randn(3, 5)
    output = SNNOutput(student, student[None], {}, {})
    for shift in (-10.0, -80.0, -1000.0):
        with torch.no_grad():
            method.nld.strength_shift.fill_(shift)
        method.zero_grad()
        loss = method(output, ANNOutput(student, {}), torch.tensor([0, 1, 2]))["nld"]
        loss.backward()
        assert torch.isfinite(loss)
        assert method.nld.strength_shift.grad.item() == pytest.approx(
            -0.1, rel=1e-3
        )  # the prior's slope, -1, times 0.1


@pytest.mark.parametrize("mixing", ["logits", "probabilities"])
@pytest.mark.parametrize("start", [0.02, 0.1, 0.6])
def test_weight_decay_draws_a_strength_to_its_start(mixing, start):
    method = build_method("nld", learnable_strength=True, strength=start, mixing=mixing)
    assert method.nld.strength.item() == pytest.approx(start, rel=1e-6)
    with torch.no_grad():
        method.nld.strength_shift.fill_(-1.0)
    assert method.nld.strength.item() < 0.9 * start
    method.nld.strength_shift.grad = torch.zeros(())
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, weight_decay=1.0)
    for _ in range(200):
        optimizer.step()
    assert method.nld.strength.item() == pytest.approx(start, rel=1e-6)


def test_smoothed_is_what_the_loss_compares():
    method = build_method("nld", distribution="laplace", match="mean_abs", strength=0.4, temperature=3.0)
    student, teacher = torch.randn(2, 6, 5, generator=generator(3))
    noisy = method.nld.smoothed(student, generator(7))
    target = torch.log_softmax(teacher / 3, 1)
    options = {"distribution": "laplace", "match": "mean_abs", "strength": 0.4, "temperature": 3.0}
    expected = nld_loss(student, teacher, generator=generator(7), **options)
    torch.testing.assert_close(9 * (target.exp() * (target - noisy)).sum(1).mean(), expected)
    plain = build_method("nld", noise="none").nld.smoothed(student, generator(), temperature=1.0)
    assert torch.equal(plain, torch.log_softmax(student, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"match": "variance"}, "match must be one of std, mean_abs, got 'variance'"),
        ({"noise": "none", "match": "std"}, "match='std' is not used with noise='none'"),
        ({"strength_prior": 0.1}, "strength_prior=0.1 is only used with learnable_strength=True; leave it out"),
        ({"learnable_strength": True, "strength_prior": -1.0}, "strength_prior must be >= 0, got -1.0"),
        ({"learnable_strength": True, "strength_prior": math.inf}, "strength_prior must be finite, got inf"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        build_method("nld", **options)
