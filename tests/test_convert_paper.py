"""`convert` on neurons of the CKDSNN paper's shape: recognised by name, believed by what they compute."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import ckd_kernels as ck
from reference_cases import currents
from tolerances import assert_close, assert_same


class ZIF(torch.autograd.Function):
    """The firing step of the code bases in this family (Deng et al., "Temporal Efficient Training", ICLR 2022)."""

    @staticmethod
    def forward(ctx, u, gama):
        ctx.save_for_backward(u)
        ctx.gama = gama
        return (u > 0).float()

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad * (1 / ctx.gama) ** 2 * (ctx.gama - u.abs()).clamp(min=0), None


class LIFSpike(nn.Module):
    """Their neuron."""

    def __init__(self, thresh=1.0, tau=0.5, gama=1.0, detach=False):
        super().__init__()
        self.thresh, self.tau, self.gama, self.detach = thresh, tau, gama, detach

    def forward(self, x):
        mem, spikes = 0, []
        for t in range(x.shape[1]):
            mem = mem * self.tau + x[:, t, ...]
            spike = self.fire(mem - self.thresh)
            mem = (1 - (spike.detach() if self.detach else spike)) * mem
            spikes.append(spike)
        return torch.stack(spikes, dim=1)

    def fire(self, u):
        return ZIF.apply(u, self.gama)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize(("thresh", "tau", "gama"), [(1.0, 0.5, 1.0), (0.7, 0.25, 2.0)])
def test_converted_neurons_compute_the_same(thresh, tau, gama, detach):
    theirs = nn.Sequential(nn.Identity(), LIFSpike(thresh, tau, gama, detach))
    ours = copy.deepcopy(theirs)
    (entry,) = ck.convert(ours, strict=True).entries
    assert entry.result == "FusedLIFSpike"
    assert ck.convert(ours).entries == ()
    x, their_x = (currents((3, 5, 4, 6), torch.float32, 0).requires_grad_() for _ in range(2))
    weights = torch.randn(x.shape)
    spikes, expected = ours(x), theirs(their_x)
    assert_same("spikes", spikes, expected)
    (spikes * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_close("gradient", x.grad, their_x.grad)
    theirs[1].thresh = ours[1].thresh = 0.4  # read at every call
    assert_same("spikes", copy.deepcopy(ours)(x), theirs(x))


def variant(**members):
    return type("LIFSpike", (LIFSpike,), members)


def smooth(self, u):
    """A sigmoid's gradient."""
    s = torch.sigmoid(4 * u)
    return s - (s - (u > 0).float()).detach()


VARIANTS = {
    "another surrogate": variant(fire=smooth),
    "another charge": variant(forward=lambda self, x: LIFSpike.forward(self, x * (1 - self.tau))),
    "time first": variant(forward=lambda self, x: LIFSpike.forward(self, x.transpose(0, 1)).transpose(0, 1)),
    "another input": variant(forward=lambda self, x: LIFSpike.forward(self, x.view(2, 3, 5, 7))),
}


class AtThreshold(ZIF):
    """It fires where the potential is the threshold."""

    @staticmethod
    def forward(ctx, u, gama):
        ZIF.forward(ctx, u, gama)
        return (u >= 0).float()


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("fires", [ZIF, AtThreshold])
def test_what_happens_at_the_threshold_is_found_out(fires, detach):
    theirs = variant(fire=lambda self, u: fires.apply(u, self.gama))(thresh=0.75, detach=detach)
    ours = copy.deepcopy(theirs)
    ck.convert(ours, strict=True)
    x = torch.full((2, 4, 3), 0.75)
    assert_same("spikes", ours(x), theirs(x))
    assert ours(x)[0, 0, 0] == (fires is AtThreshold)


@pytest.mark.parametrize("cls", VARIANTS.values(), ids=VARIANTS)
def test_namesakes_that_compute_something_else_are_left_alone(cls):
    net = nn.Sequential(cls())
    (entry,) = ck.convert(net).entries
    assert "does not compute what the paper's LIFSpike does" in entry.reason
    assert type(net[0]) is cls


def test_a_learnable_time_constant_is_left_alone():
    neuron = LIFSpike()
    neuron.tau = nn.Parameter(torch.tensor(0.5))
    (entry,) = ck.convert(neuron).entries
    assert "parameters" in entry.reason
