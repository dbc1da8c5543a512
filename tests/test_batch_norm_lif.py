"""layers.BatchNormLIF: nn.BatchNorm2d and a neuron in one module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ckd_kernels import Neuron, layers, lif
from tolerances import assert_close, assert_same


class Pair(nn.Module):
    """What a BatchNormLIF stands for."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(5, **options)

    def forward(self, y):
        return lif(self.norm(y.flatten(0, 1)).unflatten(0, y.shape[:2]), Neuron.paper())


def inputs(n=3):
    torch.manual_seed(0)
    return [torch.randn(4, 2, 5, 6, 6) * (i + 1) + i for i in range(n)]


OPTIONS = [
    {},
    {"momentum": None},
    {"momentum": 0.3, "eps": 1e-3},
    {"affine": False},
    {"track_running_stats": False},
    {"track_running_stats": False, "momentum": None},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_is_the_pair_in_training_and_evaluation(options):
    pair, layer = Pair(**options), layers.BatchNormLIF(5, **options)
    for name in ("num_features", "eps", "momentum", "affine", "track_running_stats"):
        assert getattr(layer, name) == getattr(pair.norm, name)
    for y in inputs():
        assert_same("spikes in training", layer(y), pair(y))
    assert layer.state_dict().keys() == pair.norm.state_dict().keys()
    for name, value in pair.norm.state_dict().items():
        if value.is_floating_point():
            assert_close(name, layer.state_dict()[name], value)
        else:
            assert_same(name, layer.state_dict()[name], value)
    pair.eval(), layer.eval()
    layer.load_state_dict(pair.norm.state_dict())
    assert_same("spikes in evaluation", layer(inputs()[0]), pair(inputs()[0]))


def test_tracking_switched_off_keeps_the_buffers():
    """As nn.BatchNorm2d: in training the buffers stay, in evaluation they are used."""
    pair, layer = Pair(), layers.BatchNormLIF(5)
    y = inputs()[2]
    for module in (pair.norm, layer):
        module.track_running_stats = False
    assert_same("training", layer(y), pair(y))
    assert layer.running_mean.abs().sum() == 0
    assert layer.num_batches_tracked == 0
    pair.eval(), layer.eval()
    assert_same("evaluation", layer(y), pair(y))


def test_tracking_switched_off_keeps_the_buffers_whatever_the_batch():
    """A batch of infinities, too, which a share of nothing would turn into NaN."""
    layer = layers.BatchNormLIF(5)
    layer.track_running_stats = False
    layer(torch.full((4, 2, 5, 6, 6), torch.inf))
    assert_same("mean", layer.running_mean, torch.zeros(5))
    assert_same("variance", layer.running_var, torch.ones(5))


def test_checkpoints_of_a_sequential_pair_load_and_go_back():
    pair = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), layers.LIF())
    nn.init.uniform_(pair[1].weight)
    fused = nn.Sequential(nn.Conv2d(3, 5, 3), layers.BatchNormLIF(5))
    fused.load_state_dict(pair.state_dict())
    assert_same("weight", fused[1].weight, pair[1].weight)
    pair.load_state_dict(fused.state_dict())


def test_weight_starts_at_alpha_times_threshold():
    neuron = Neuron(threshold=0.6)
    assert_same("weight", layers.BatchNormLIF(3, neuron, alpha=0.5).weight.data, torch.full((3,), 0.5 * 0.6))
    assert_same("weight", layers.BatchNormLIF(3, neuron).weight.data, torch.ones(3))


def test_residual_and_map():
    layer, (y, residual, _) = layers.BatchNormLIF(5), inputs()
    out = layer(y, residual, return_sam=True)
    assert out.v is None
    assert_same("sam", out.sam, out.spikes.mean((0, 2)))
    assert not torch.equal(out.spikes, layer(y))


def test_state_is_carried_until_reset():
    layer = layers.BatchNormLIF(5, stateful=True).eval()
    y = inputs()[0]
    whole = layers.BatchNormLIF(5).eval()(torch.cat([y, y]))
    assert_same("both calls", torch.cat([layer(y), layer(y)]), whole)
    layer.reset()
    assert_same("after reset", layer(y), whole[:4])


def test_other_axis_orders():
    y = inputs()[0]
    expected = layers.BatchNormLIF(5)(y)
    batch_first = layers.BatchNormLIF(5, time_dim=1)(y.transpose(0, 1))
    assert_same("batch first", batch_first.transpose(0, 1), expected)
    channels_last = layers.BatchNormLIF(5, channel_dim=4)(y.movedim(2, 4))
    assert_same("channels last", channels_last.movedim(4, 2), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_features": 0}, "num_features must be an integer >= 1, got 0"),
        ({"eps": 0.0}, "eps must be a finite number > 0, got 0.0"),
        ({"momentum": -1.0}, "momentum must be a number in"),
        ({"alpha": 1.0, "affine": False}, "alpha=1.0 is where the weight starts"),
        ({"time_dim": 2}, "time_dim must be 0 or 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        layers.BatchNormLIF(**{"num_features": 5, **arguments})


def test_wrong_number_of_channels():
    with pytest.raises(ValueError, match="weight must have one value for each of the 4 channels"):
        layers.BatchNormLIF(5)(torch.zeros(4, 2, 4, 3, 3))
