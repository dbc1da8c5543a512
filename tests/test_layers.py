"""Spiking layers: what they add to `lif`, their state, and that PyTorch's ways of handling modules work."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from ckd_kernels import Neuron, layers, lif, use_backend
from reference_cases import currents, make_neuron
from tolerances import assert_close, assert_same

X = currents((6, 2, 3, 5), torch.float32, 0)
LAYERS = {
    "IF": lambda **o: layers.IF(**o),
    "LIF": lambda **o: layers.LIF(**o),
    "ParametricLIF": lambda **o: layers.ParametricLIF(**o),
    "ParametricLIF-channels": lambda **o: layers.ParametricLIF(channels=3, **o),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_a_layer_is_its_neuron(target, make):
    layer = make().to(target.device)
    options = {"channel_dim": 2} if layer._leak() and layer.w.dim() else {}
    x = X.to(target.device)
    with use_backend(target.backend):
        assert_same("spikes", layer(x, **options), lif(x, layer.neuron))
        batch_first = make(time_dim=1).to(target.device)
        transposed = x.transpose(0, 1).contiguous()
        assert_same("spikes", batch_first(transposed, **options), lif(x, layer.neuron).transpose(0, 1))
        out = layer(x, return_sam=True)
        expected = lif(x, layer.neuron, return_sam=True)
    assert_same("sam", out.sam, expected.sam)
    assert out.v is None
    assert layer.v is None


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_state_survives_between_calls_until_reset(target, make):
    """A sequence in pieces gives the bits of the whole."""
    x, options = X.to(target.device), {"return_sam": True}
    whole, layer = make().to(target.device), make(stateful=True).to(target.device)
    with use_backend(target.backend):
        for _ in range(2):
            pieces = [layer(piece, **options).spikes for piece in x.split([1, 2, 3])]
            assert_same("spikes", torch.cat(pieces), whole(x, **options).spikes)
            assert layer.v.shape == X.shape[1:]
            assert layer(x[:0], **options).v is None  # it is the layer's to keep
            layer.reset()
            assert layer.v is None
        # Without the reset the second sequence goes on from the first.
        layer(x, **options)
        carried = layer.v
        assert_same("spikes", layer(x, **options).spikes, lif(x, layer.neuron, v_init=carried))


def test_stateless_layers_keep_nothing():
    layer = layers.LIF()
    layer(X)
    assert layer.v is None
    assert_same("second call", layer(X), layer(X))


def test_detach_cuts_the_history():
    """Truncated backpropagation through time: the next piece does not reach into the last one."""
    first, second = X[:3].clone().requires_grad_(), X[3:].clone().requires_grad_()
    layer = layers.LIF(stateful=True)
    layer(first)
    layer(second).sum().backward()
    assert first.grad.abs().sum() > 0
    first.grad = None
    layer.reset()
    layer.detach()
    layer(first)
    state = layer.v.clone()
    layer.detach()
    assert_same("state", layer.v, state)
    layer(second).sum().backward()
    assert first.grad is None


def test_a_state_of_another_batch_is_refused():
    layer = layers.LIF(stateful=True)
    layer(X)
    with pytest.raises(ValueError, match=r"v_init must have .*\(1, 3, 5\); got \(2, 3, 5\)"):
        layer(X[:, :1])


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("charge", ["decay", "leak", "leak_input"])
def test_parametric_leak_learns(target, charge, channels):
    """w starts at the neuron's leak; its gradient is that of an explicit decay or tau."""
    neuron = make_neuron(charge, "hard", plain=False)
    layer = layers.ParametricLIF(neuron, channels=channels).to(target.device)
    assert layer.w.shape == (() if channels is None else (3,))
    rate = torch.sigmoid(layer.w.detach())
    name, value = ("decay", rate) if charge == "decay" else ("tau", 1 / rate)
    torch.testing.assert_close(value.cpu(), torch.full(value.shape, getattr(neuron, name)))
    x = X.to(target.device)
    options = {} if channels is None else {"channel_dim": 2}
    with use_backend(target.backend):
        layer(x, **options).sum().backward()
        leak = value.clone().requires_grad_()
        lif(x, neuron, **{name: leak}, **options).sum().backward()
    slope = rate * (1 - rate) if charge == "decay" else -(1 - rate) / rate
    assert layer.w.grad.abs().sum() > 0
    assert_close("w", layer.w.grad, leak.grad * slope)
    before = layer.w.detach().clone()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert not torch.equal(layer.w, before)


def test_spikingjelly_parametric_start():
    """SpikingJelly: w = -log(init_tau - 1)."""
    assert layers.ParametricLIF().w.item() == pytest.approx(-math.log(2.0 - 1.0))
    tau = layers.ParametricLIF(Neuron(charge="leak_input", tau=5.0))
    assert tau.w.item() == pytest.approx(-math.log(5.0 - 1.0))


def test_one_channel():
    """One w for each of one channel is called like one for each of many."""
    layer = layers.ParametricLIF(channels=1)
    assert_same("spikes", layer(X[:, :, :1], channel_dim=2), lif(X[:, :, :1], layer.neuron))


def test_modules_travel():
    """state_dict holds w and no state; copies, saving and moving work."""
    net = torch.nn.Sequential(torch.nn.Linear(5, 5), layers.ParametricLIF(channels=2, stateful=True), layers.LIF())
    net[1](X, channel_dim=1)
    assert list(net.state_dict()) == ["0.weight", "0.bias", "1.w"]
    other = copy.deepcopy(net)
    assert_same("state", other[1].v, net[1].v.detach())
    other.load_state_dict(net.state_dict())
    assert other[1].neuron == net[1].neuron
    assert net.double()[1].w.dtype == torch.float64
    assert "charge=leak_input, tau=2.0" in repr(net[1])
    assert "stateful=True" in repr(net[1])
    assert "stateful" not in repr(net[2])


BAD = [
    (lambda: layers.LIF(Neuron.spikingjelly_if()), ValueError, "LIF needs .*got charge='integrate'; use layers.IF"),
    (lambda: layers.IF(Neuron.paper()), ValueError, "IF needs charge='integrate', got 'decay'; use layers.LIF"),
    (lambda: layers.LIF("paper"), TypeError, r"neuron must be a ckd_kernels.Neuron, e.g. Neuron.paper\(\); got str"),
    (lambda: layers.LIF(time_dim=2), ValueError, "time_dim must be 0 or 1, got 2"),
    (lambda: layers.IF(time_dim=-1), ValueError, "time_dim must be 0 or 1, got -1"),
    (lambda: layers.ParametricLIF(Neuron.spikingjelly_if()), ValueError, "ParametricLIF needs .*use layers.IF"),
    (lambda: layers.ParametricLIF(Neuron(decay=1.0)), ValueError, "decay=1.0 is at the end of its range"),
    (lambda: layers.ParametricLIF(Neuron(decay=0.0)), ValueError, "decay=0.0 is at the end of its range"),
    (
        lambda: layers.ParametricLIF(Neuron(charge="leak_input", tau=1.0)),
        ValueError,
        "tau=1.0 is at the end of its range",
    ),
    (lambda: layers.ParametricLIF(channels=0), ValueError, "channels must be None or an integer >= 1, got 0"),
    (lambda: layers.ParametricLIF(channels=1.0), ValueError, "channels must be None or an integer >= 1, got 1.0"),
    (lambda: layers.ParametricLIF(channels=4)(X), ValueError, r"tau has shape \(4,\); .*each of the 3 channels"),
    (lambda: layers.LIF()(X.int()), TypeError, "x must be float32, .*got torch.int32"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message[:40] for *_, message in BAD])
def test_bad_input(call, error, message, no_launch):
    with pytest.raises(error, match=message):
        call()
