"""Grad-CAM's weights by surrogates, finite differences and likelihood ratios, where the truth is known."""

import itertools
import math

import pytest
import torch
from torch import nn

from ckd_kernels import Neuron, layers, surrogate
from ckdsnn.analysis import gradient
from ckdsnn.analysis.tail import NoisyThresholds, Tail, with_surrogate, with_time_steps
from ckdsnn.checkpoint import RunError
from ckdsnn.losses import grad_cam_spiking
from ckdsnn.models import build_model
from ckdsnn.models.base import SNN
from ckdsnn.models.sew_resnet import SEWOptions, SEWResNet
from ckdsnn.models.spikformer import Spikformer, SpikformerOptions

SIGMA = 0.4
SCALE = SIGMA * math.sqrt(3) / math.pi  # of logistic noise
NEURON = Neuron(charge="decay", decay=0.5, surrogate=surrogate.Sigmoid(1 / SCALE))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Mixed(nn.Module):
    """x [T, B, C, H, W] -> matrix @ x, in channels."""

    def __init__(self, matrix):
        super().__init__()
        self.register_buffer("matrix", torch.tensor(matrix))

    def forward(self, x):
        return torch.einsum("ec,tbchw->tbehw", self.matrix, x)


class Toy(SNN):
    """Stage 1 is what comes in; stage 2 mixes and fires, once for each matrix; the logits are weights of its spikes."""

    def __init__(self, matrices, readout, time_steps=1):
        super().__init__(len(readout), len(matrices[0][0]), time_steps, (len(matrices[0][0]), len(matrices[-1])), ())
        parts = [part for matrix in matrices for part in (Mixed(matrix), layers.LIF(NEURON))]
        self.stages = nn.ModuleList([nn.Identity(), nn.Sequential(*parts)])
        self.head = nn.Linear(len(readout[0]), len(readout), bias=False)
        self.head.weight = nn.Parameter(torch.tensor(readout))


def spikes(values, steps=1):
    """Features [T, 1, C, 1, 1]."""
    return torch.tensor(values)[None, None, :, None, None].repeat(steps, 1, 1, 1, 1)


def fires(h):
    """The probability at potential h."""
    return torch.sigmoid((h - 1) / SCALE)


def assert_estimates(smoothed, truth):
    """Within 4 standard errors of the truth, which are small beside it."""
    error = smoothed.groups.std(0) / len(smoothed.groups) ** 0.5
    assert ((smoothed.weights - truth).abs() < 4 * error + 1e-6).all(), (smoothed.weights, truth, error)
    assert error.max() < 0.1 * truth.abs().max()


def test_one_neuron_by_hand():
    """S = 3*[2*F >= 1]: E[S] = 3*sigmoid((2*F - 1)/scale), and the matched surrogate gives its slope exactly."""
    tail, features, target = Tail(Toy([[[2.0]]], [[3.0], [0.0]]), 1), spikes([0.4]), torch.tensor([0])
    p = 1 / (1 + math.exp(0.2 / SCALE))
    slope = 3 * 2 * p * (1 - p) / SCALE
    assert gradient.surrogate_weights(tail, features, target).item() == pytest.approx(slope, rel=1e-6)
    assert_estimates(
        gradient.smoothed_weights(tail, features, target, SIGMA, 8000, generator()), torch.tensor([[slope]])
    )
    for step, wanted in ((0.05, 0.0), (0.2, 3 / 0.4), (0.5, 3 / 1.0)):  # it fires from F = 0.5 on
        assert gradient.finite_difference_weights(tail, features, target, step).item() == pytest.approx(wanted)
    assert gradient.surrogate_weights(tail, features, torch.tensor([1])).item() == 0  # the other class


def test_few_draws_by_hand():
    """Of 4 draws, two antithetic pairs, an estimate is rough, but not biased: the mean of 48,000 of them is right."""
    tail, features = Tail(Toy([[[2.0]]], [[3.0], [0.0]]), 1), spikes([0.4]).repeat(1, 3000, 1, 1, 1)
    found = gradient.smoothed_weights(tail, features, torch.zeros(3000, dtype=torch.long), SIGMA, 64, generator())
    p = 1 / (1 + math.exp(0.2 / SCALE))
    assert found.draws == 64
    error = found.groups.std().item() / found.groups.numel() ** 0.5
    assert found.weights.mean().item() == pytest.approx(6 * p * (1 - p) / SCALE, abs=4 * error)
    assert error < 0.02


def test_a_reset_by_hand():
    """Two steps: what has fired starts at rest, what has not keeps half of its potential."""
    tail, features, target = Tail(Toy([[[1.0]]], [[1.0], [0.0]], 2), 1), spikes([0.8], 2), torch.tensor([0])
    x = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    expected = (fires(x) + fires(x) * fires(x) + (1 - fires(x)) * fires(1.5 * x)) / 2
    (slope,) = torch.autograd.grad(expected, x)
    estimate = gradient.smoothed_weights(tail, features, target, SIGMA, 16000, generator())
    assert_estimates(estimate, slope.float().view(1, 1))


def test_two_layers_by_enumeration():
    """Of all patterns of spikes; here no surrogate is exact."""
    one, two, readout = [[1.2, -0.7], [0.5, 0.9]], [[1.1, -0.6], [-0.8, 1.3]], [[1.0, 2.0], [0.0, 0.0]]
    tail, features, target = Tail(Toy([one, two], readout), 1), spikes([1.0, 0.3]), torch.tensor([0])
    x = torch.tensor([1.0, 0.3], dtype=torch.float64, requires_grad=True)
    hidden = fires(torch.tensor(one, dtype=torch.float64) @ x)
    expected = torch.zeros((), dtype=torch.float64)
    for pattern in itertools.product((0.0, 1.0), repeat=2):
        s = torch.tensor(pattern, dtype=torch.float64)
        probability = torch.where(s > 0, hidden, 1 - hidden).prod()
        second = fires(torch.tensor(two, dtype=torch.float64) @ s)
        expected = expected + probability * (torch.tensor(readout[0], dtype=torch.float64) @ second)
    (slope,) = torch.autograd.grad(expected, x)
    estimate = gradient.smoothed_weights(tail, features, target, SIGMA, 30000, generator())
    assert_estimates(estimate, slope.float()[None])
    surrogates = gradient.surrogate_weights(tail, features, target)
    assert (surrogates - slope.float()).abs().max() > 0.1 * slope.abs().max()


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    network = build_model("snn_resnet_small", 10, widths=(4, 6, 8), time_steps=3)
    for _ in range(3):  # statistics that make it fire
        network(torch.rand(8, 1, 20, 20))
    return network.eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 1, 20, 20, generator=generator(1))


def test_without_a_neuron_all_three_agree(student, images):
    features, target = student(images).features[3].detach(), torch.tensor([1, 2, 3])
    tail = Tail(student, 3)
    exact = student.head.weight[target] / features[0, 0, 0].numel()
    for weights in (
        gradient.surrogate_weights(tail, features, target),
        gradient.finite_difference_weights(tail, features, target, 0.5),
        gradient.smoothed_weights(tail, features, target, 0.3, 64, generator()).weights,
    ):
        torch.testing.assert_close(weights, exact.detach(), rtol=1e-4, atol=1e-6)


def test_of_a_conventional_network_differences_are_the_gradient(images):
    torch.manual_seed(0)
    teacher = build_model("ann_resnet_small", 10, widths=(4, 6, 8)).double().eval()
    features, target = teacher(images.double()).features[1].detach(), torch.tensor([1, 2, 3])
    tail = Tail(teacher, 1)
    exact = gradient.surrogate_weights(tail, features, target)
    assert exact.shape == (3, 4)
    differences = gradient.finite_difference_weights(tail, features, target, 1e-6)
    torch.testing.assert_close(differences, exact, rtol=1e-3, atol=1e-6)
    assert gradient.cosine(differences, exact).min() > 0.999999


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_tail_is_the_rest_of_the_network(student, images, stage):
    out = student(images)
    assert torch.equal(Tail(student, stage)(out.features[stage]), out.logits)
    target = torch.tensor([4, 5, 6])
    weights = gradient.surrogate_weights(Tail(student, stage), out.features[stage], target)
    wanted = grad_cam_spiking(out.step_logits, out.features[stage], target)
    torch.testing.assert_close(gradient.map_of(weights, out.features[stage]).detach(), wanted.detach())


@pytest.mark.parametrize("build", [
    lambda: SEWResNet((1, 1, 1, 1), 10, 1, SEWOptions(time_steps=2)),
    lambda: Spikformer(16, 2, 2, 2, 10, 1, SpikformerOptions(time_steps=2)),
])  # fmt: skip
def test_other_networks_have_tails(build, images):
    """Where features pass by neurons, to the logits as well: without noise, all is as before."""
    torch.manual_seed(0)
    network = build()
    network(torch.rand(4, 1, 32, 32))
    network.eval()
    out = network(torch.rand(2, 1, 32, 32))
    tail, target = Tail(network, 1), torch.tensor([1, 2])
    assert torch.equal(tail(out.features[1]), out.logits)
    estimate = gradient.smoothed_weights(tail, out.features[1], target, 0.3, 64, generator())
    assert torch.isfinite(estimate.weights).all()
    assert estimate.weights.abs().min(1).values.min() > 0


def test_noise_that_is_none_changes_nothing(student, images):
    out = student(images.repeat(2, 1, 1, 1))
    with NoisyThresholds(Tail(student, 1), 1e-7, generator()) as noisy:
        assert torch.equal(Tail(student, 1)(out.features[1]).argmax(1), out.logits.argmax(1))
        torch.testing.assert_close(Tail(student, 1)(out.features[1]), out.logits)
    assert noisy.layers
    assert not any("forward" in vars(module) for module in student.modules())


def test_noise_is_antithetic_and_the_generators(student, images):
    features = student(images).features[1].detach().repeat(1, 2, 1, 1, 1)
    runs = []
    for _ in range(2):
        with NoisyThresholds(Tail(student, 1), 0.5, generator(3)) as noisy:
            runs.append(Tail(student, 1)(features))
            half = noisy._uniform(torch.empty(4, 5))
    assert torch.equal(*runs)
    assert not torch.equal(runs[0][:3], runs[0][3:])
    assert torch.equal(half[:2], 1 - half[2:])


def test_surrogates_and_steps_are_put_back(student, images):
    tail, target = Tail(student, 1), torch.tensor([1, 2, 3])
    features = student(images).features[1].detach()
    before = gradient.surrogate_weights(tail, features, target)
    with with_surrogate(tail, surrogate.Sigmoid(8.0)):
        assert not torch.equal(gradient.surrogate_weights(tail, features, target), before)
        with with_surrogate(tail, surrogate.Triangle(1.0)):  # that of the network
            assert torch.equal(gradient.surrogate_weights(tail, features, target), before)
    assert torch.equal(gradient.surrogate_weights(tail, features, target), before)
    with with_time_steps(student, 5):
        assert len(student(images).step_logits) == 5
    assert len(student(images).step_logits) == 3
    with pytest.raises(ZeroDivisionError), with_surrogate(tail, surrogate.ATan()), with_time_steps(student, 2):
        raise ZeroDivisionError
    assert len(student(images).step_logits) == 3
    assert {layer.neuron.surrogate for layer in tail.spiking_layers} == {surrogate.Triangle(1.0)}


def test_estimates_do_not_depend_on_what_is_computed_at_a_time(student, images, monkeypatch):
    """Differences exactly; of the smoothed gradient, another draw of the same."""
    features, target, tail = student(images).features[2].detach(), torch.tensor([1, 2, 3]), Tail(student, 2)
    differences = gradient.finite_difference_weights(tail, features, target, 0.3)
    smoothed = gradient.smoothed_weights(tail, features, target, 0.5, 2000, generator())
    monkeypatch.setattr(gradient, "BUDGET", 40 * features.numel())
    torch.testing.assert_close(gradient.finite_difference_weights(tail, features, target, 0.3), differences)
    again = gradient.smoothed_weights(tail, features, target, 0.5, 2000, generator(1))
    assert smoothed.draws == again.draws == 2016
    assert gradient.cosine(smoothed.weights, again.weights).min() > 0.9


def test_more_draws_repeat_better(student, images):
    features, target, tail = student(images).features[2].detach(), torch.tensor([1, 2, 3]), Tail(student, 2)
    smoothed = gradient.smoothed_weights(tail, features, target, 0.5, 2000, generator())
    found = {draws: float(cosines.mean()) for draws, cosines in smoothed.repeatability().items()}
    assert list(found) == [126, 252, 504, 1008]
    assert found[126] < found[1008] < smoothed.ceiling() <= 1
    assert 0 <= smoothed.same <= 1


def test_widths():
    widths = {
        surrogate.Rectangle(4.0): 0.25, surrogate.ATan(2.0): 2 / math.pi, surrogate.FastSigmoid(2.0): math.sqrt(2) - 1,
        surrogate.Erf(2.0): math.sqrt(math.log(2)), surrogate.SuperSpike(3.0): 2 * (math.sqrt(2) - 1),
    }  # fmt: skip
    for made, wanted in widths.items():
        assert gradient.full_width(made) == pytest.approx(wanted, abs=1e-9)


def test_networks_without_a_tail(student):
    with pytest.raises(RunError, match="Linear cannot be entered at a stage"):
        Tail(nn.Linear(2, 2), 1)
    with pytest.raises(ValueError, match="stage 7 does not exist"):
        Tail(student, 7)
