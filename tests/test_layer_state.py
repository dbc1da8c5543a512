"""Statistics and state of layers under PyTorch's tools: checkpointing, moving, inference mode, the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ckd_kernels import Neuron, bn_lif, layers, lif, one_bit_spikes
from tolerances import assert_close, assert_same

X = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(0)) + 0.5


class Flat(nn.Module):
    """nn.BatchNorm2d and the neuron, for comparison."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, **options)

    def forward(self, y):
        return lif(self.norm(y.flatten(0, 1)[..., None]).squeeze(-1).unflatten(0, y.shape[:2]), Neuron.paper())


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("last", [True, False], ids=["last", "followed"])
@pytest.mark.parametrize("momentum", [None, 0.2])
def test_running_statistics_under_checkpointing(momentum, last, use_reentrant):
    """A batch that is computed twice counts twice, as often as it moves the statistics; with ``momentum=None`` they are
    the plain average of the batches, as without a checkpoint and as nn.BatchNorm2d's."""
    pair, layer, alone = Flat(momentum=momentum), *(layers.BatchNormLIF(3, momentum=momentum) for _ in range(2))
    after = nn.Identity() if last else nn.Sequential(nn.Linear(5, 5), nn.Tanh())
    for i in range(3):
        y = (X * (i + 1) + i).requires_grad_()
        alone(y)
        for module in (pair, layer):
            checkpoint(lambda y, m=module: after(m(y)), y, use_reentrant=use_reentrant).sum().backward()
    if momentum is None:
        for expected in (alone, pair.norm):
            assert_close("mean", layer.running_mean, expected.running_mean)
            assert_close("variance", layer.running_var, expected.running_var)
    if not last or use_reentrant:
        assert layer.num_batches_tracked == pair.norm.num_batches_tracked == 6
        assert_close("mean", layer.running_mean, pair.norm.running_mean)
    else:
        assert layer.num_batches_tracked in (3, 6)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("make", [layers.LIF, layers.IF, layers.ParametricLIF, lambda **o: layers.BatchNormLIF(3, **o)])
def test_a_stateful_layer_in_a_checkpoint_is_refused(make, use_reentrant):
    layer = make(stateful=True)
    out = checkpoint(lambda y: layer(y).cos(), X.clone().requires_grad_(), use_reentrant=use_reentrant)
    with pytest.raises(RuntimeError, match=rf"stateful {type(layer).__name__} was called during a backward pass"):
        out.sum().backward()


def test_a_stateless_layer_in_a_checkpoint():
    x = X.clone().requires_grad_()
    checkpoint(layers.LIF(), x, use_reentrant=True).sum().backward()
    (expected,) = torch.autograd.grad(layers.LIF()(x).sum(), x)
    assert_same("gradient", x.grad, expected)


def test_moving_a_layer_moves_its_potential():
    net = nn.Sequential(layers.LIF(stateful=True), layers.BatchNormLIF(3, stateful=True))
    net(X)
    before = net[0].v
    net.double().half().float()
    assert net[0].v.dtype == torch.float32
    assert_same("potential", net[0].v, before)
    net.to("meta")
    assert [layer.v.device.type for layer in net] == ["meta", "meta"]
    net.to_empty(device="cpu")
    assert [layer.v.device.type for layer in net] == ["cpu", "cpu"]
    assert layers.LIF().to("meta").v is None


@pytest.mark.parametrize("detach", [True, False])
def test_a_state_from_inference_mode_trains(detach):
    layer = layers.ParametricLIF(stateful=True)
    with torch.inference_mode():
        layer(X)
    state = layer.v.clone()
    if detach:
        layer.detach()
        assert not layer.v.is_inference()
    layer(X).sum().backward()
    expected = layers.ParametricLIF()
    lif(X, expected.neuron, v_init=state, tau=1.0 / expected.w.sigmoid()).sum().backward()
    assert expected.w.grad.abs() > 0
    assert_same("gradient", layer.w.grad, expected.w.grad)


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("neuron", [None, Neuron(charge="leak", tau=5.0), Neuron(decay=0.8)])
def test_parameters_of_a_layer_made_on_the_meta_device(neuron, channels):
    with torch.device("meta"):
        layer = layers.ParametricLIF(neuron, channels=channels)
    layer.to_empty(device="cpu").reset_parameters()
    assert_same("w", layer.w.data, layers.ParametricLIF(neuron, channels=channels).w.data)


def test_every_layer_with_parameters_can_be_reset():
    for layer in (layers.ParametricLIF(), layers.BatchNormLIF(3, alpha=0.5)):
        start = {key: value.clone() for key, value in layer.state_dict().items()}
        with torch.no_grad():
            for value in layer.state_dict().values():
                value.fill_(7)
        for module in layer.modules():
            module.reset_parameters()
        for key, value in layer.state_dict().items():
            assert_same(key, value, start[key])


@pytest.mark.parametrize("training", [True, False])
def test_one_bit_spikes_in_inference_mode(training):
    """Nothing is saved there, and a network trains afterwards."""
    net = nn.Sequential(layers.LIF(), nn.Linear(5, 4), layers.BatchNormLIF(3)).train(training)
    with torch.inference_mode(), one_bit_spikes():
        inside = net(X)
    with one_bit_spikes(), torch.inference_mode(), one_bit_spikes():
        assert_same("spikes", net(X), inside)
    with one_bit_spikes():
        net(X).sum().backward()
    assert net[1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(4, 2, 0), (4, 2, 0, 5), (0, 2, 0), (4, 0, 0, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_no_channels(shape, training):
    """There is nothing to compute, forward and backward."""
    y, none = torch.zeros(shape, requires_grad=True), [torch.zeros(0, requires_grad=i < 2) for i in range(4)]
    residual = torch.zeros(shape, requires_grad=True)
    out = bn_lif(y, *none, Neuron.paper(), training=training, residual=residual, return_v=True, return_sam=True)
    assert out.spikes.shape == shape
    assert out.sam.shape == (shape[1], *shape[3:])
    (out.spikes.sum() + out.v.sum() + out.sam.sum()).backward()
    for leaf in (y, residual, *none[:2]):
        assert leaf.grad.shape == leaf.shape


def test_the_neurons_of_specs_are_kept_within_bounds():
    """Options that change all the time do not fill the memory."""
    for i in range(3000):
        Neuron.from_spec(Neuron(threshold=1.0 + i * 1e-4).spec)
    assert Neuron.from_spec(Neuron.paper().spec) is Neuron.from_spec(Neuron.paper().spec)
    from ckd_kernels import neuron

    assert neuron._of_spec.cache_info().currsize <= 2000


@pytest.mark.parametrize("other", [X[:, :1], X.to("meta")], ids=["batch", "device"])
def test_a_sequence_that_does_not_fit_the_state(other):
    """A last batch that is smaller: the error names what the user can do, who has given no v_init."""
    layer = layers.IF(stateful=True)
    layer(X)
    with pytest.raises(ValueError, match=r"a stateful layer gives the potential of its last call: reset\(\) it"):
        layer(other)
    layer.reset()
    assert layer(other).shape == other.shape
