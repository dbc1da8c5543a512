"""`convert` on the class shapes of SpikingJelly's clock_driven, without SpikingJelly."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

import ckd_kernels as ck
import spikingjelly_clock_driven as old
from reference_cases import currents
from tolerances import assert_close, assert_same

NODES = {
    "IF": lambda **o: old.MultiStepIFNode(v_threshold=0.7, **o),
    "LIF": lambda **o: old.MultiStepLIFNode(tau=2.7, **o),
    "LIF-no-decay-input": lambda **o: old.MultiStepLIFNode(tau=2.7, decay_input=False, v_threshold=1.3, **o),
    "PLIF": lambda **o: old.MultiStepParametricLIFNode(init_tau=4.0, **o),
    "PLIF-no-decay-input": lambda **o: old.MultiStepParametricLIFNode(init_tau=4.0, decay_input=False, **o),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("v_reset", "detach_reset"), list(itertools.product((0.0, None, -0.25), (False, True))), ids=lambda o: str(o)
)
@pytest.mark.parametrize("make", NODES.values(), ids=NODES)
def test_calls_with_carried_state_and_a_reset(make, v_reset, detach_reset, training):
    theirs = make(v_reset=v_reset, detach_reset=detach_reset).train(training)
    ours = copy.deepcopy(theirs)
    (entry,) = ck.convert(ours, strict=True).converted
    assert entry.result == f"Fused{type(theirs).__name__}"
    for seed in range(4):
        results = []
        for node in (ours, theirs):
            if seed == 3:
                node.reset()
            x = (currents((5, 3, 24), torch.float32, seed) * 2.0).requires_grad_()
            spikes = node(x)
            weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
            gradients = torch.autograd.grad((spikes * weights).sum(), [x, *node.parameters()])
            node.v = node.v.detach()
            results.append((spikes.detach(), node.v, gradients))
        (spikes, v, gradients), (their_spikes, their_v, their_gradients) = results
        assert_same("spikes", spikes, their_spikes)
        assert_same("v", v, their_v)
        assert spikes.any()
        for gradient, expected in zip(gradients, their_gradients, strict=True):
            scale = spikes.numel() ** 0.5 if expected.dim() == 0 else None
            assert_close("gradient", gradient, expected, scale=scale)
    assert ours.v_seq is None


def test_attributes_are_read_at_every_call():
    theirs = old.MultiStepLIFNode()
    ours = copy.deepcopy(theirs)
    ck.convert(ours, strict=True)
    x = currents((5, 3, 24), torch.float32, 0) * 2
    for name, value in (("v_threshold", 0.5), ("v_reset", None), ("tau", 3.0), ("detach_reset", True)):
        for node in (ours, theirs):
            node.reset()
            setattr(node, name, value)
        assert_same(name, ours(x), theirs(x))
    ours.surrogate_function = theirs.surrogate_function = nn.Sigmoid()  # their own code serves what we have not
    assert_same("own code", ours(x), theirs(x))
    assert ours.v_seq is not None


def test_potentials_of_a_call_before_are_not_left_there():
    """``v_seq`` would look like this call's."""
    node, x = old.MultiStepLIFNode(), currents((5, 3, 24), torch.float32, 0)
    node(x)
    assert node.v_seq is not None
    ck.convert(node)
    node(x)
    assert node.v_seq is None


def test_copies():
    net = nn.Sequential(old.MultiStepLIFNode())
    ck.convert(net)
    x = currents((5, 3, 24), torch.float32, 0) * 2
    copied = copy.deepcopy(net)
    assert isinstance(copied[0], old.MultiStepLIFNode)
    assert_same("copy", copied(x), net(x))
    assert ck.convert(net, strict=True).entries == ()


REASONS = {
    "single step": (lambda: old.LIFNode(), "LIFNode takes one time step a call; make it a MultiStepLIFNode"),
    "another neuron": (lambda: old.MultiStepEIFNode(), "MultiStepEIFNode is none of MultiStepIFNode, MultiStepLIFNode"),
    "lava": (lambda: old.MultiStepLIFNode(backend="lava"), "backend='lava' computes in integers"),
    "surrogate": (lambda: old.MultiStepIFNode(surrogate_function=nn.Sigmoid()), "surrogate_function Sigmoid has no"),
    "no spikes": (lambda: old.MultiStepIFNode(surrogate_function=old.Sigmoid(spiking=False)), "spiking=False"),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_is_left_alone_is_listed_with_the_reason(name):
    make, reason = REASONS[name]
    node = make()
    kind = type(node)
    with pytest.raises(ValueError, match="strict=True, and not everything can be converted"):
        ck.convert(node, strict=True)
    (entry,) = ck.convert(node).left_alone
    assert reason in entry.reason
    assert type(node) is kind


def test_an_older_version_is_left_alone():
    node = old.MultiStepLIFNode()
    node.register_memory("spike_seq", None)
    (entry,) = ck.convert(node).left_alone
    assert "before 0.0.0.0.12" in entry.reason
