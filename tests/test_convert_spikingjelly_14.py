"""`convert` on SpikingJelly 0.0.0.0.14's class shapes, without SpikingJelly."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

import ckd_kernels as ck
import spikingjelly_14 as old
from reference_cases import currents
from tolerances import assert_close, assert_same

NODES = {
    "IF": lambda **o: old.IFNode(**o),
    "LIF": lambda **o: old.LIFNode(tau=2.7, **o),
    "LIF-no-decay-input": lambda **o: old.LIFNode(tau=2.7, decay_input=False, **o),
    "PLIF": lambda **o: old.ParametricLIFNode(init_tau=4.0, **o),
    "PLIF-no-decay-input": lambda **o: old.ParametricLIFNode(init_tau=4.0, decay_input=False, **o),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("v_reset", "detach_reset"), list(itertools.product((0.0, None, -0.25), (False, True))), ids=lambda o: str(o)
)
@pytest.mark.parametrize("make", NODES.values(), ids=NODES)
def test_calls_with_carried_state_and_a_reset(make, v_reset, detach_reset, training):
    theirs = make(v_reset=v_reset, detach_reset=detach_reset, step_mode="m").train(training)
    ours = copy.deepcopy(theirs)
    assert len(ck.convert(ours, strict=True).converted) == 1
    for seed in range(4):
        results = []
        for node in (ours, theirs):
            if seed == 3:
                node.reset()
            x = (currents((5, 3, 24), torch.float32, seed) * 2.0).requires_grad_()
            spikes = node(x)
            gradients = ()
            if training:  # in eval() 0.0.0.0.14 gives spikes no gradient
                weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
                gradients = torch.autograd.grad((spikes * weights).sum(), [x, *node.parameters()])
            node.v = node.v.detach()
            results.append((spikes.detach(), node.v, gradients))
        (spikes, v, gradients), (their_spikes, their_v, their_gradients) = results
        assert_same("spikes", spikes, their_spikes)
        assert_same("v", v, their_v)
        for gradient, expected in zip(gradients, their_gradients, strict=True):
            scale = spikes.numel() ** 0.5 if expected.dim() == 0 else None
            assert_close("gradient", gradient, expected, scale=scale)


def test_single_step_is_left_alone_and_a_misfit_state_is_theirs_to_judge():
    (entry,) = ck.convert(old.LIFNode()).entries
    assert "step_mode" in entry.reason
    node = old.LIFNode(step_mode="m")
    ck.convert(node)
    node(torch.rand(2, 3, 4))
    with pytest.raises(RuntimeError, match="size"):
        node(torch.rand(2, 5, 4))
