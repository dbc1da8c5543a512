"""`MultiStep` against the real snnTorch: one call gives what its loop over time steps gives."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

import ckd_kernels as ck
from reference_cases import currents
from tolerances import assert_close, assert_same

snntorch = pytest.importorskip("snntorch", reason="snntorch is not installed (make test installs it)")
surrogate = snntorch.surrogate
utils = pytest.importorskip("snntorch.utils")

SHAPE = (6, 3, 5)
OPTIONS = [
    {"reset_mechanism": mechanism, "reset_delay": delay, "beta": beta, "threshold": threshold}
    for (mechanism, delay), beta, threshold in itertools.product(
        [("subtract", True), ("zero", True), ("zero", False), ("none", True), ("none", False)], (0.9, 0.37), (1.0, 0.5)
    )
]
SURROGATES = {
    "atan": surrogate.atan(3.0),
    "fast_sigmoid": surrogate.fast_sigmoid(slope=10),
    "sigmoid": surrogate.sigmoid(slope=5),
}


def loop(leaky, x, mem):
    """The loop that MultiStep replaces."""
    spikes = []
    for step in x:
        spk, mem = leaky(step, mem)
        spikes.append(spk)
    return torch.stack(spikes), mem


def gradients_of(spikes, weights, x, leaky):
    return torch.autograd.grad((spikes * weights).sum(), [x, *leaky.parameters()])


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
@pytest.mark.parametrize("learn_beta", [False, True], ids=["", "learn_beta"])
def test_two_calls_are_two_loops(options, learn_beta):
    theirs = snntorch.Leaky(learn_beta=learn_beta, **options)
    leaky = copy.deepcopy(theirs)
    ours = ck.MultiStep(leaky)
    assert ours is leaky
    mem, their_mem = ours.reset_mem(), theirs.reset_mem()
    for seed in range(2):
        x, their_x = (currents(SHAPE, torch.float32, seed).requires_grad_() for _ in range(2))
        weights = torch.randn(SHAPE)
        spikes, mem = ours(x, mem)
        their_spikes, their_mem = loop(theirs, their_x, their_mem)
        assert 0.02 < their_spikes.mean() < 0.98
        assert_same("spikes", spikes, their_spikes)
        expected = their_mem
        if options["reset_mechanism"] == "zero" and options["reset_delay"]:  # ours is reset already
            expected = torch.where(their_mem > options["threshold"], 0.0, their_mem)
        assert_same("mem", mem, expected)
        for actual, expected in zip(
            gradients_of(spikes, weights, x, ours), gradients_of(their_spikes, weights, their_x, theirs), strict=True
        ):
            assert_close("gradient", actual, expected, scale=math.prod(SHAPE) ** 0.5 if actual.dim() == 0 else None)
        mem, their_mem = mem.detach(), their_mem.detach()


@pytest.mark.parametrize("mechanism", ["subtract", "zero", "none"])
def test_a_state_above_the_threshold_is_reset_first(mechanism):
    theirs = snntorch.Leaky(beta=0.9, reset_mechanism=mechanism)
    ours = ck.MultiStep(copy.deepcopy(theirs))
    x, mem = currents(SHAPE, torch.float32, 0), torch.linspace(0.0, 3.0, 15).reshape(SHAPE[1:])
    assert_same("spikes", ours(x, mem)[0], loop(theirs, x, mem)[0])


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates(name):
    theirs = snntorch.Leaky(beta=0.8, spike_grad=SURROGATES[name])
    ours = ck.MultiStep(copy.deepcopy(theirs))
    x, their_x = (currents(SHAPE, torch.float32, 0).requires_grad_() for _ in range(2))
    weights = torch.randn(SHAPE)
    (actual,) = gradients_of(ours(x)[0], weights, x, ours)
    (expected,) = gradients_of(loop(theirs, their_x, None)[0], weights, their_x, theirs)
    assert_close("gradient", actual, expected)


@pytest.mark.parametrize(("shape", "beta"), [((4, 3, 5), (5,)), ((4, 2, 5, 3, 3), (5, 1, 1))], ids=str)
def test_a_learnable_beta_for_each_channel(shape, beta):
    theirs = snntorch.Leaky(beta=torch.linspace(0.1, 1.2, 5).reshape(beta), learn_beta=True)  # clamped to 1
    ours = ck.MultiStep(copy.deepcopy(theirs))
    x = currents(shape, torch.float32, 0)
    spikes, _ = ours(x)
    expected, _ = loop(theirs, x, None)
    assert_same("spikes", spikes, expected)
    weights = torch.randn(shape)
    (actual,) = torch.autograd.grad((spikes * weights).sum(), ours.beta)
    (expected,) = torch.autograd.grad((expected * weights).sum(), theirs.beta)
    assert_close("gradient", actual, expected, scale=math.prod(shape) ** 0.5)
    with pytest.raises(ValueError, match="beta must be one value or one a channel"):
        ours(torch.rand(4, 2, 6))


def test_hidden_state_and_snntorchs_own_reset():
    """`init_hidden` keeps the state; ``snntorch.utils.reset`` and a new batch size begin again."""
    theirs, ours = (nn.Sequential(nn.Identity(), snntorch.Leaky(0.9, init_hidden=True, output=True)) for _ in "ab")
    keys = list(ours.state_dict())
    ck.MultiStep(ours[1])
    assert list(ours.state_dict()) == keys
    x = currents((6, 3, 5), torch.float32, 0) * 3.0
    with torch.no_grad():
        for batch in (3, 3, 2):
            steps = [theirs(step[:batch]) for step in x]
            spikes, mem = ours(x[:, :batch])
            assert_same("spikes", spikes, torch.stack([spk for spk, _ in steps]))
            assert_same("mem", mem, steps[-1][1])
        utils.reset(ours)
        assert not ours[1].mem.any()
    only_spikes = ck.MultiStep(snntorch.Leaky(beta=0.9, init_hidden=True))
    assert isinstance(only_spikes(x), torch.Tensor)
    with pytest.raises(TypeError, match="init_hidden"):
        only_spikes(x, torch.zeros(3, 5))


def test_two_byte_input_is_computed_in_float32():
    leaky = snntorch.Leaky(beta=0.9)
    x = currents(SHAPE, torch.bfloat16, 0)
    spikes, mem = ck.MultiStep(copy.deepcopy(leaky))(x)
    expected, expected_mem = loop(leaky, x.float(), None)
    assert spikes.dtype == torch.bfloat16
    assert_same("spikes", spikes.float(), expected)
    assert_same("mem", mem, expected_mem)


REFUSED = {
    "learn_threshold": ({"learn_threshold": True}, "learnable threshold"),
    "inhibition": ({"inhibition": True}, "inhibition"),
    "surrogate_disable": ({"surrogate_disable": True}, "surrogate_disable"),
    "graded": ({"graded_spikes_factor": 2.0}, "graded_spikes_factor"),
    "subtract-now": ({"reset_delay": False}, "reset_delay=False"),
    "surrogate": ({"spike_grad": surrogate.spike_rate_escape()}, "spike_rate_escape has no counterpart"),
    "thresholds": ({"threshold": torch.ones(5)}, "threshold of its own"),
}


@pytest.mark.filterwarnings("ignore:Inhibition")
@pytest.mark.parametrize(("options", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused_with_the_reason_and_untouched(options, reason):
    leaky = snntorch.Leaky(beta=0.9, **options)
    with pytest.raises(ValueError, match=reason):
        ck.MultiStep(leaky)
    assert type(leaky) is snntorch.Leaky
    with pytest.raises(TypeError, match="Lapicque"):
        ck.MultiStep(snntorch.Lapicque(beta=0.9))


def test_convert_lists_what_is_called_step_by_step():
    net = nn.Sequential(nn.Linear(2, 2), snntorch.Leaky(beta=0.9), ck.MultiStep(snntorch.Leaky(beta=0.9)))
    (entry,) = ck.convert(net).entries
    assert entry.name == "1"
    assert "MultiStep" in entry.reason
    assert type(net[1]) is snntorch.Leaky


class TutorialNet(nn.Module):
    """The two-layer net of snnTorch's tutorial 5 (Eshraghian et al.), narrower; with `MultiStep` its loop is gone."""

    def __init__(self, multi_step):
        super().__init__()
        torch.manual_seed(0)
        self.fc1 = nn.Linear(20, 64)
        self.lif1 = snntorch.Leaky(beta=0.95)
        self.fc2 = nn.Linear(64, 10)
        self.lif2 = snntorch.Leaky(beta=0.95)
        self.multi_step = multi_step
        if multi_step:
            ck.MultiStep(self.lif1)
            ck.MultiStep(self.lif2)

    def forward(self, x):
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        if self.multi_step:
            spk1, _ = self.lif1(self.fc1(x), mem1)
            spk2, _ = self.lif2(self.fc2(spk1), mem2)
            return spk2
        spikes = []
        for step in x:
            spk1, mem1 = self.lif1(self.fc1(step), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
        return torch.stack(spikes)


def test_training_gives_the_same_loss_curve():
    curves = []
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 20, generator=generator)
    target = torch.randint(0, 10, (32,), generator=generator)
    for multi_step in (False, True):
        net = TutorialNet(multi_step)
        optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
        curve = []
        for _ in range(20):
            loss = nn.functional.cross_entropy(net(x.expand(10, *x.shape)).sum(0), target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            curve.append(loss.item())
        curves.append(torch.tensor(curve))
    assert curves[0][-1] < 0.7 * curves[0][0]
    torch.testing.assert_close(curves[1], curves[0], rtol=1e-4, atol=1e-5)
