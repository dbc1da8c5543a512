"""What `convert` does not know is listed; nothing that looks spiking is passed over without a word."""

from __future__ import annotations

import pytest
from torch import nn

import ckd_kernels as ck
import spikingjelly_14 as sj
from ckd_kernels import layers


def module_class(name: str, module: str = "my.models", base: type = nn.Module) -> type:
    return type(name, (base,), {"__module__": module, "forward": lambda self, x: x})


SPIKING = ["MyLIF", "LIF", "IF", "PLIFNode", "IFNeuron", "my_IF_cell", "SpikeActivation", "Spiking", "ALIFCell"]
SPIKING += ["mem_update_spike", "Neuron", "LeakyIntegrator", "Izhikevich", "Lapicque", "Synaptic"]
OTHERS = [
    "Conv",
    "LeakyRelu6Plus"[:0] or "Uplift",
    "Amplifier",
    "ResNet",
    "Gif",
    "NIfti",
    "Attention",
    "SPP",
    "Sigmoid",
]


@pytest.mark.parametrize("name", SPIKING)
def test_classes_that_look_spiking_are_listed(name):
    net = nn.Sequential(nn.Linear(2, 2), module_class(name)())
    (entry,) = ck.convert(net).entries
    assert (entry.name, entry.kind, entry.result) == ("1", name, None)
    assert entry.reason == f"it looks like a spiking neuron, and nothing is known of a {name} of my.models"
    with pytest.raises(ValueError, match=rf"strict=True(.|\n)*1 +\| {name}"):
        ck.convert(net, strict=True)


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_not(name):
    assert ck.convert(nn.Sequential(module_class(name)()), strict=True).entries == ()


@pytest.mark.parametrize("name", ["lif", "lif1", "sn", "sn2", "proj_lif", "attn_lif", "spike", "neuron1", "plif_out"])
def test_names_that_look_spiking_are_listed(name):
    net = nn.Module()
    net.add_module(name, module_class("Activation")())
    (entry,) = ck.convert(net).entries
    assert (entry.name, entry.kind) == (name, "Activation")


@pytest.mark.parametrize("name", ["conv", "snake", "life", "downsample", "spine", "senet"])
def test_names_that_do_not_look_spiking(name):
    net = nn.Module()
    net.add_module(name, module_class("Activation")())
    assert ck.convert(net).entries == ()


@pytest.mark.parametrize("module", ["norse.torch.module.neuron", "mine.neurons", "snntorch._neurons.rleaky"])
def test_files_that_look_spiking(module):
    assert len(ck.convert(module_class("Cell", module)()).left_alone) == 1


def test_pytorchs_and_our_own_are_not_listed():
    net = nn.ModuleDict({"lif": nn.LeakyReLU(), "spike": nn.Sigmoid(), "sn": layers.LIF(), "b": layers.BatchNormLIF(3)})
    assert ck.convert(net, fuse=True, strict=True).entries == ()


def test_a_network_of_neurons_is_none():
    """Nor is what a neuron is made of: the innermost thing that looks like one, and only once."""
    network = module_class("SpikingResNet")()
    network.sn1 = sj.LIFNode(step_mode="m")
    network.mine = module_class("MyLIF")()
    network.block = module_class("SpikingBlock")()
    network.block.inner = module_class("SpikeFunction")()
    network.left = sj.LIFNode(step_mode="s")
    network.left.qspike = module_class("QPseudoSpike")()
    report = ck.convert(network)
    assert {e.name for e in report.left_alone} == {"mine", "block.inner", "left"}
    assert {e.name for e in report.converted} == {"sn1"}
    assert {e.name for e in ck.convert(network).entries} == {"mine", "block.inner", "left"}


def test_a_shared_neuron_is_listed_once_under_all_its_names():
    neuron = module_class("MyLIF")()
    (entry,) = ck.convert(nn.Sequential(neuron, nn.Linear(2, 2), neuron)).entries
    assert entry.name == "0, 2"


def test_normalisation_that_is_not_fused_is_listed_with_fuse():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), sj.LIFNode(step_mode="m"))
    report = ck.convert(net)
    assert [e.name for e in report.entries] == ["2"]
    report = ck.convert(net, fuse=True)
    (entry,) = report.left_alone
    assert (entry.name, entry.kind) == ("1", "BatchNorm2d")
    assert "not over [T, B, C, ...]" in entry.reason
    with pytest.raises(ValueError, match=r"1 +\| BatchNorm2d"):
        ck.convert(net, fuse=True, strict=True)


def test_spikingjellys_normalisation():
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import layer, neuron

    def norm(mode):
        return layer.BatchNorm2d(3, step_mode=mode)

    def net(*modules):
        return nn.Sequential(*modules)

    lif = neuron.LIFNode(step_mode="m")
    (single,) = ck.convert(net(norm("s"), lif), fuse=True).left_alone
    assert "step_mode is 's'" in single.reason
    report = ck.convert(net(norm("m"), neuron.LIFNode(step_mode="m"), norm("m"), nn.ReLU()), fuse=True, strict=True)
    (apart,) = report.left_alone
    assert (apart.name, apart.reason) == ("2", "its output is no neuron's input, or the residual in another one's")
    assert [e.name for e in report.converted] == ["0", "1"]


def test_nothing_is_changed_by_a_refusal():
    net = nn.Sequential(sj.LIFNode(step_mode="m"), module_class("MyLIF")())
    with pytest.raises(ValueError, match="nothing was"):
        ck.convert(net, strict=True)
    assert type(net[0]) is sj.LIFNode


def test_a_report_sorts_by_what_stands_there_now():
    made, left = (
        ck.interop.Entry("a", "LIFNode", "FusedLIFNode", "with a remark"),
        ck.interop.Entry("b", "LIFNode", None),
    )
    report = ck.ConversionReport((made, left))
    assert report.converted == (made,)
    assert report.left_alone == (left,)
    assert str(report).endswith("1 converted, 1 left alone")
