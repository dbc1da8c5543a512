"""Operations and energy: counted by hand, to the operation."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ckd_kernels import Neuron
from ckdsnn.analysis.energy import OperationCounter, energy_of, energy_of_ann
from ckdsnn.analysis.energy_report import EnergyReport, count, millijoules
from ckdsnn.models import build_model
from ckdsnn.models.layout import Projection, pooled_convolution
from ckdsnn.models.sew_resnet import SEWOptions, SEWResNet
from ckdsnn.models.spikformer import Spikformer, SpikformerOptions

EAGER = Neuron(charge="integrate", threshold=0.02)  # fires where others of random weights would not


class Toy(nn.Module):
    """Frames [T, B, 1, 4, 4] -> convolution with 2 channels -> spikes where it is positive -> 5 classes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.head = nn.Linear(32, 5)
        with torch.no_grad():  # channel 0 repeats its input, channel 1 is silent
            self.conv.weight.zero_()[0, 0, 1, 1] = 1.0

    def forward(self, frames):
        spikes = (self.conv(frames.flatten(0, 1)) > 0).float()
        return self.head(spikes.flatten(1).unflatten(0, frames.shape[:2]))


def counted(network, images, **options):
    with OperationCounter(network.eval(), **options) as counter:
        counter(images)
    return counter.layers


def test_two_layers_to_the_operation():
    frames = torch.zeros(2, 3, 1, 4, 4)
    frames[0, 0, 0, 0, 0] = frames[1, 0, 0, 2, 2] = frames[0, 1, 0, 3, 3] = 1.0  # 3 spikes in 3 samples
    layers = counted(Toy(), frames, time_steps=2)
    conv, head = layers["conv"], layers["head"]
    assert (conv.macs_per_step, conv.steps, conv.kind, conv.samples) == (4 * 4 * 9 * 2, 2, "binary", 3)
    assert (head.macs_per_step, head.steps, head.kind) == (32 * 5, 2, "binary")
    assert conv.rate == 3 / (2 * 3 * 16)
    assert head.rate == 3 / (2 * 3 * 32)
    # fr * T * MAC: of the convolution 3/96 * 2 * 288, of the head 3/192 * 2 * 160
    assert conv.operations() == (0.0, 18.0)
    assert head.operations() == (0.0, 5.0)
    assert energy_of(layers) == pytest.approx(0.9 * 23e-9, rel=1e-12)
    assert energy_of(layers, ac_pj=0.1) == pytest.approx(0.1 * 23e-9, rel=1e-12)
    assert energy_of_ann(layers, mac_pj=4.0) == pytest.approx(4.0 * 2 * (288 + 160) * 1e-9, rel=1e-12)


@pytest.mark.parametrize(
    ("value", "kind", "strict", "as_spikes"),
    [
        (1.0, "binary", (0.0, 18.0), (0.0, 18.0)),
        (3.0, "integer", (576.0, 0.0), (0.0, 54.0)),  # 9 spikes
        (0.5, "real", (576.0, 0.0), (576.0, 0.0)),
        (-1.0, "real", (576.0, 0.0), (576.0, 0.0)),
        (float("inf"), "real", (576.0, 0.0), (576.0, 0.0)),
    ],
)
def test_the_input_is_measured(value, kind, strict, as_spikes):
    frames = torch.zeros(2, 3, 1, 4, 4)
    frames[0, 0, 0, 0, 0] = frames[1, 0, 0, 2, 2] = frames[0, 1, 0, 3, 3] = value
    conv = counted(Toy(), frames, time_steps=2)["conv"]
    assert (conv.kind, conv.nonzero) == (kind, 3)
    assert (conv.rate is None) == (kind == "real")
    assert conv.operations() == strict
    assert conv.operations(integers_as_spikes=True) == as_spikes


def test_one_batch_that_is_not_binary_is_enough():
    network = Toy()
    with OperationCounter(network, 2) as counter:
        for value in (1.0, 2.0, 1.0):
            counter(torch.full((2, 1, 1, 4, 4), value))
    assert counter.layers["conv"].kind == "integer"
    assert counter.layers["conv"].rate == 4 / 3
    assert counter.layers["head"].kind == "binary"
    assert not network.conv._forward_hooks
    assert not network.conv._forward_pre_hooks


# 32x32 images. Stage 1: 6 convolutions 128 -> 128 at 32x32; stages 2 and 3: the first convolution of half the input
# channels, the rest as many operations as those of stage 1 (twice the channels at half the side), a 1x1 shortcut.
FULL = 128 * 128 * 9 * 32 * 32
RESNET19 = (
    3 * 128 * 9 * 32 * 32
    + 6 * FULL
    + (FULL // 2 + 5 * FULL + 128 * 256 * 16 * 16)
    + (FULL // 2 + 3 * FULL + 256 * 512 * 8 * 8)
    + 512 * 10
)


def test_resnet19_by_hand():
    assert RESNET19 == 2_285_245_440
    for name in ("snn_resnet19", "ann_resnet19"):
        layers = counted(build_model(name, 10), torch.rand(1, 3, 32, 32))
        assert sum(layer.macs_per_step for layer in layers.values()) == RESNET19
    assert energy_of_ann(layers) == pytest.approx(2.28524544 * 4.6, rel=1e-12)


def test_the_first_convolution_runs_once():
    network = build_model("snn_resnet_small", 10, neuron=EAGER)
    layers = counted(network, torch.rand(3, 1, 20, 20))
    first, *others = layers.values()
    assert (first.name, first.steps, first.kind) == ("stem.convs.0", 1, "real")
    assert first.operations() == (1 * 12 * 9 * 400, 0.0)
    assert all(layer.steps == 4 for layer in others)
    frames = counted(network, torch.rand(4, 3, 1, 20, 20))
    assert frames["stem.convs.0"].operations() == (4 * 12 * 9 * 400, 0.0)


def test_counts_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    network = build_model("snn_resnet_small", 10, neuron=EAGER).eval()
    images = torch.rand(4, 1, 20, 20)
    with OperationCounter(network) as counter:
        for batch in (images[:1], images[1:]):
            counter(batch)
    whole = counted(network, images)
    assert list(counter.layers) == list(whole)
    for name, layer in whole.items():
        assert layer.operations() == counter.layers[name].operations()
        assert (layer.macs_per_step, layer.kind) == (counter.layers[name].macs_per_step, counter.layers[name].kind)


def test_a_pooled_shortcut_is_its_1x1_convolution(monkeypatch):
    network = build_model("snn_resnet_small", 10, neuron=EAGER)
    images = torch.rand(2, 1, 20, 20)
    expected = counted(network, images)
    # As it runs on a GPU.
    monkeypatch.setattr(Projection, "forward", lambda self, x: self[2](pooled_convolution(x, self[1].weight, None, 2)))
    network(images)
    layers = counted(network, images)
    assert layers["stages.1.0.shortcut.1"].macs_per_step == 12 * 24 * 10 * 10
    assert layers["stages.1.0.shortcut.1"].kind == "real"
    assert {n: layer.operations() for n, layer in layers.items()} == {n: x.operations() for n, x in expected.items()}
    assert "forward" not in vars(network.stages[1][0].shortcut)


def test_sew_resnet34_by_both_conventions():
    """64x64 images, 10 classes."""
    torch.manual_seed(0)
    network = build_model("sew_resnet34", 10, time_steps=2, neuron=EAGER)
    reads = {}
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_pre_hook(lambda m, x, name=name: reads.update({name: x[0].double()}))
    layers = counted(network, torch.rand(1, 3, 64, 64))
    stage = 64 * 64 * 9 * 16 * 16  # a convolution within stage 1, and within each of the others
    halves = sum(stage // 2 + c * 2 * c * (1024 // c) ** 2 // 4 for c in (64, 128, 256))  # first ones and shortcuts
    by_hand = 3 * 64 * 49 * 32 * 32 + (6 + 7 + 11 + 5) * stage + halves + 512 * 10
    assert sum(layer.macs_per_step for layer in layers.values()) == by_hand
    sums = [layer for layer in layers.values() if layer.kind == "integer"]
    assert {layer.name for layer in sums} >= {"stages.0.2.conv1"}
    for layer in layers.values():
        read = reads[layer.name]
        mac = layer.macs_per_step * layer.steps
        accumulated = float(read.sum()) * mac / read.numel()
        binary = set(read.unique().tolist()) <= {0.0, 1.0}
        whole = bool((read == read.round()).all())
        assert layer.operations() == ((0.0, accumulated) if binary else (mac, 0.0))
        assert layer.operations(integers_as_spikes=True) == ((0.0, accumulated) if whole else (mac, 0.0))
    report = EnergyReport(layers, 0.1)
    assert report.energy_mj() > report.energy_mj(integers_as_spikes=True)
    assert list(report.totals().values()) == [report.energy_mj(), report.energy_mj(integers_as_spikes=True)]


def test_attention_is_counted():
    """16x16 images: 16 tokens, 2 heads of 8 channels."""
    torch.manual_seed(0)
    network = Spikformer(16, 1, 2, 2, num_classes=10, options=SpikformerOptions(time_steps=2, neuron=EAGER))
    spikes = {}
    attention = network.stages[0].attention
    for part in ("query", "value"):
        getattr(attention, part).register_forward_hook(lambda m, x, out, part=part: spikes.update({part: out.sum()}))
    layers = counted(network, torch.rand(3, 3, 16, 16))
    linear, product = 16 * 16 * 16, 2 * 8 * 16 * 8
    assert layers["stages.0.attention.query.linear"].macs_per_step == linear
    assert layers["stages.0.mlp.0.linear"].macs_per_step == 2 * linear
    for number, part in ((1, "value"), (2, "query")):  # (V K^T) Q
        layer = layers[f"stages.0.attention.product{number}"]
        assert (layer.macs_per_step, layer.steps, layer.kind) == (product, 2, "binary")
        assert layer.total == spikes[part] > 0
    assert len(layers) == 5 + 6 + 2 + 1  # patches, attention, network, head


def test_a_teacher_with_attention():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            return self.head(F.scaled_dot_product_attention(x, x, x).mean((1, 2)))

    layers = counted(Attends(), torch.randn(2, 3, 5, 8))  # B, heads, N, C
    assert {name: layer.macs_per_step for name, layer in layers.items()} == {
        ".product1": 3 * 5 * 5 * 8,
        ".product2": 3 * 5 * 5 * 8,
        "head": 32,
    }


def test_the_table_fits_a_terminal():
    layers = counted(SEWResNet((1, 1, 1, 1), 10, options=SEWOptions(time_steps=2)), torch.rand(1, 3, 32, 32))
    layers["long"] = dataclasses.replace(layers["head"], name="a.module.of.a.network.with.a.very.long.name.conv1")
    table = EnergyReport(layers, 0.2, teacher=layers).table()
    assert max(map(len, table.splitlines())) <= 100
    assert "a.module.of.a....long.name.conv1" in table
    assert [count(x) for x in (0, 0.25, 999, 1e3, 123_456_789)] == ["0", "0.25", "999", "1.00 k", "123.5 M"]
    assert [millijoules(x) for x in (0, 2e-6, 3e-3, 10.512)] == ["0 nJ", "2 nJ", "3 µJ", "10.51 mJ"]
