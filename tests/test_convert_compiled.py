"""Neurons that are made anew at every call, in what `torch.compile` compiles: one graph, and their options hold."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import ckd_kernels as ck
from ckd_kernels import Neuron, lif
from reference_cases import currents
from test_convert_paper import LIFSpike
from test_lif_autograd import fresh_dynamo  # noqa: F401
from tolerances import assert_same

X = currents((3, 4, 5, 6), torch.float32, 0) * 2.0


def step(net):
    """Spikes, and the gradient of X."""
    x = X.clone().requires_grad_()
    spikes = net(x)
    return spikes.detach(), *torch.autograd.grad((spikes * X).sum(), x)


def assert_follows(net, changes, dynamic, reset=lambda: None):
    """Compiled into one graph ``net`` computes what it computes else, also after each of the changes."""
    compiled = torch.compile(net, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    before = []
    for change in (lambda: None, *changes):
        change()
        expected = step(net)
        reset()
        for a, b in zip(step(compiled), expected, strict=True):
            assert_same("value", a, b)
        reset()
        assert not any(all(map(torch.equal, expected, other)) for other in before)
        before.append(expected)


@pytest.fixture(params=[None, True], ids=["", "dynamic"])
def dynamic(request, fresh_dynamo):  # noqa: F811
    return request.param


def test_neurons_of_the_paper(dynamic):
    net = nn.Sequential(LIFSpike(0.7, 0.25, 2.0))
    ck.convert(net, strict=True)
    options = {"thresh": 1.1, "tau": 0.5, "gama": 0.6}
    changes = [functools.partial(setattr, net[0], name, value) for name, value in options.items()]
    assert_follows(net, changes, dynamic)


@pytest.mark.parametrize("kind", ["LIFNode", "ParametricLIFNode"])
def test_spikingjelly(kind, dynamic):
    neuron, functional, surrogate = (
        pytest.importorskip(f"spikingjelly.activation_based.{part}", reason="spikingjelly is not installed")
        for part in ("neuron", "functional", "surrogate")
    )
    node = getattr(neuron, kind)(step_mode="m", surrogate_function=surrogate.Sigmoid())  # the default is one for all
    net = nn.Sequential(node)
    ck.convert(net, strict=True)
    changes = [lambda: setattr(node, "v_threshold", 0.6), lambda: setattr(node.surrogate_function, "alpha", 2.0)]
    assert_follows(net, changes, dynamic, lambda: functional.reset_net(net))


def test_a_preset(dynamic):
    assert_follows(lambda x: lif(x, Neuron.paper()), [], dynamic)


def test_a_preset_of_a_number(dynamic):
    net = nn.Identity()
    net.beta = 0.8
    net.forward = lambda x: lif(x, Neuron.snntorch_leaky(net.beta))
    assert_follows(net, [lambda: setattr(net, "beta", 0.3)], dynamic)


def test_what_a_neuron_refuses_is_an_error_in_a_graph_too(fresh_dynamo):  # noqa: F811
    compiled = torch.compile(lambda x: lif(x, Neuron.snntorch_leaky(2.0)), backend="aot_eager")
    with pytest.raises(ValueError, match=r"beta must be a number in \[0, 1\], got 2.0"):
        compiled(X)
