"""Convolutions with their normalisation folded in, and with the pooling before them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ckdsnn.models import build_model
from ckdsnn.models.folded import FoldedConv
from ckdsnn.models.layout import ResNetLayout, pooled_convolution, projection


def trained(module):
    """With statistics, scales and shifts of their own, as after a training."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor, low in (
                (norm.weight, 0.5),
                (norm.bias, -0.5),
                (norm.running_mean, -1.0),
                (norm.running_var, 0.01),
            ):
                tensor.data.copy_(low + torch.rand(tensor.shape, generator=generator))
    return module.eval()


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"stride": 2, "padding": 1}, {"dilation": 2, "groups": 2}, {"padding": "same"}],
    ids=str,
)
def test_a_folded_convolution_is_normalised(options):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, **options)
    norm = trained(nn.BatchNorm2d(6, eps=0.1))
    x = torch.randn(2, 4, 9, 9)
    folded, wanted = FoldedConv(conv, norm), norm(conv(x))
    torch.testing.assert_close(folded(x), wanted)
    assert not any(p.requires_grad for p in folded.parameters())
    torch.testing.assert_close(folded.relu(x), wanted.relu())
    residual = torch.randn_like(wanted)
    torch.testing.assert_close(folded.relu(x, residual), (wanted + residual).relu())


@pytest.mark.parametrize("name", ["ann_resnet_small", "ann_resnet20_dvs"])
def test_a_folded_network_gives_the_same_answers(name):
    torch.manual_seed(0)
    options = {"widths": (4, 6, 8), "blocks": (2, 1, 1)} if name == "ann_resnet_small" else {"width": 0.1}
    network = trained(build_model(name, 5, in_channels=2, **options)).double()
    folded = copy.deepcopy(network)
    folded.fold()
    kinds = {type(module) for module in folded.modules()}
    assert FoldedConv in kinds
    assert not kinds & {nn.Conv2d, nn.BatchNorm2d}
    images = torch.randn(3, 2, 13, 14, dtype=torch.float64)
    one, other = network(images), folded(images)
    torch.testing.assert_close(other.logits, one.logits)
    for stage, features in one.features.items():
        torch.testing.assert_close(other.features[stage], features)


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("bias", [None, torch.tensor([1.0, -2.0, 0.5])])
def test_pooling_and_convolution_are_one(stride, bias):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 2 * stride, 3 * stride), torch.randn(3, 4, 1, 1)
    wanted = F.conv2d(F.avg_pool2d(x, stride), weight, bias)
    torch.testing.assert_close(pooled_convolution(x, weight, bias, stride), wanted)


def test_a_shortcut_is_pooled_convolved_and_normalised():
    assert projection(4, 4, 1) is None
    for stride in (1, 2):
        shortcut = trained(projection(4, 6, stride))
        x = torch.randn(2, 4, 5, 5)  # a window at the edge is of what is there
        pooled = F.avg_pool2d(x, stride, ceil_mode=True)
        torch.testing.assert_close(shortcut(x), shortcut[2](F.conv2d(pooled, shortcut[1].weight)))
        assert isinstance(shortcut[2], nn.BatchNorm2d)


def test_channels_are_scaled_to_the_nearest():
    layout = ResNetLayout(blocks=(1, 1), widths=(3, 7), strides=(1, 2), stem=(5,)).scaled(0.5)
    assert (layout.widths, layout.stem, layout.blocks, layout.strides) == ((2, 4), (2,), (1, 1), (1, 2))
    assert ResNetLayout((1,), (3,), (1,), (3,)).scaled(0.01).widths == (1,)
