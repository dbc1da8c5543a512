"""NIR: what is exported comes back the same, through a file too, and graphs of others are read or refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import ckd_kernels as ck
from ckd_kernels import Neuron, layers, surrogate
from ckd_kernels.interop import nir as interop
from reference_cases import currents
from tolerances import assert_same

nir = pytest.importorskip("nir", reason="nir is not installed (make test installs it)")
pytest.importorskip("nirtorch", reason="nirtorch is not installed (make test installs it)")

NEURONS = {
    "paper": Neuron.paper(),
    "leak": Neuron(charge="leak", tau=2.7, v_reset=-0.1, surrogate=surrogate.ATan()),
    "leak_input": Neuron(charge="leak_input", tau=3.3, threshold=0.4, v_reset=0.2, detach_reset=True),
    "integrate": Neuron(charge="integrate", threshold=2.0),
    "decay": Neuron(charge="decay", decay=0.9, v_reset=0.3),
    "no decay": Neuron(charge="decay", decay=1.0),
    "all decay": Neuron(charge="decay", decay=0.0),
}


def layer_of(neuron):
    return layers.IF(neuron) if neuron.charge == "integrate" else layers.LIF(neuron)


@pytest.mark.parametrize("neuron", NEURONS.values(), ids=NEURONS)
def test_a_neuron_goes_through_a_file_and_back(neuron, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), layer_of(neuron), nn.Linear(8, 3, bias=False), layers.LIF())
    x = currents((5, 2, 6), torch.float32, 0) * 3.0
    nir.write(tmp_path / "net.nir", interop.to_nir(model, x, dt=1e-3))
    back = interop.from_nir(nir.read(tmp_path / "net.nir"), dt=1e-3)
    assert [m.neuron for m in back.modules() if hasattr(m, "neuron")] == [neuron, Neuron.paper()]
    assert model[:2](x).mean() > 0.02
    assert_same("spikes", back(x), model(x))
    again = interop.to_nir(back, x, dt=1e-3)
    first = interop.to_nir(model, x, dt=1e-3)
    assert [type(n) for n in again.nodes.values()] == [type(n) for n in first.nodes.values()]
    assert len(again.edges) == len(first.edges)


class Branches(nn.Module):
    """A convolutional net with a skip connection."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = interop._Conv2d(2, 4, 3, padding=1, bias=False)
        self.sn1 = layers.LIF()
        self.conv2 = interop._Conv2d(4, 4, (3, 1), padding="same")
        self.sn2 = layers.IF()
        self.flatten = nn.Flatten(2)
        self.fc = nn.Linear(4 * 5 * 6, 3)
        self.sn3 = layers.ParametricLIF(Neuron(charge="leak", tau=1.8, threshold=0.2))

    def forward(self, x):
        skip = self.sn1(self.conv1(x))
        return self.sn3(self.fc(self.flatten(self.sn2(self.conv2(skip) + skip))))


def test_convolutions_and_a_skip_connection(tmp_path):
    model, x = Branches(), currents((4, 2, 2, 5, 6), torch.float32, 0) * 3.0
    graph = interop.to_nir(model, x)
    assert tuple(graph.nodes["sn1"].v_threshold.shape) == (4, 5, 6)
    nir.write(tmp_path / "net.nir", graph)
    back = interop.from_nir(nir.read(tmp_path / "net.nir"))
    spikes = back(x)
    assert 0.02 < spikes.mean() < 0.98
    assert_same("spikes", spikes, model(x))
    assert isinstance(back.conv2, nn.Conv2d)


def test_groups():
    model = nn.Sequential(interop._Conv2d(4, 6, 3, groups=2), layers.LIF())
    x = currents((4, 2, 4, 5, 5), torch.float32, 0) * 3.0
    assert_same("spikes", interop.from_nir(interop.to_nir(model, x))(x), model(x))


def test_one_dimensional_convolutions(tmp_path):
    model = nn.Sequential(interop._Conv1d(2, 4, 3, stride=2, padding=1), layers.LIF())
    x = currents((4, 2, 2, 9), torch.float32, 0) * 3.0
    nir.write(tmp_path / "net.nir", interop.to_nir(model, x))
    assert_same("spikes", interop.from_nir(nir.read(tmp_path / "net.nir"))(x), model(x))


def test_converted_spikingjelly_nets_are_exported():
    pytest.importorskip("spikingjelly", reason="spikingjelly is not installed (make test installs it)")
    from spikingjelly.activation_based import functional, layer, neuron

    net = nn.Sequential(
        layer.Conv2d(2, 3, 3), neuron.LIFNode(), layer.Flatten(), layer.Linear(27, 4), neuron.ParametricLIFNode()
    )
    functional.set_step_mode(net, "m")
    ck.convert(net)
    x = currents((4, 2, 2, 5, 5), torch.float32, 0) * 3.0
    graph = interop.to_nir(net, x)
    assert net[1].v == 0.0
    assert_same("spikes", interop.from_nir(graph)(x), net(x))


def lif_node(**changes):
    """A neuron as another library writes it: two in a population."""
    values = {"tau": 2e-4, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0, **changes}
    return nir.LIF(**{name: np.full(2, value, np.float32) for name, value in values.items()})


def test_neurons_of_others():
    def read(node, **options):
        return interop.from_nir(nir.NIRGraph.from_list(node), **options).get_submodule("lif").neuron

    expected = Neuron(charge="leak_input", tau=2.0, strict=True)
    assert dataclasses_close(read(lif_node()), expected)
    assert read(lif_node(), surrogate=surrogate.ATan()).surrogate == surrogate.ATan()
    assert dataclasses_close(read(lif_node(r=2.0)), Neuron(charge="leak", tau=2.0, strict=True))
    decays = read(lif_node(r=2.0, v_reset=0.5))
    assert dataclasses_close(decays, Neuron(charge="decay", decay=0.5, v_reset=0.5, strict=True))
    for changes in ({"r": 3.0}, {"v_leak": 0.5}, {"tau": 0.5e-4}):
        with pytest.raises(ValueError, match="none of our neurons"):
            read(lif_node(**changes))
    node = lif_node()
    node.tau[0] *= 2
    with pytest.raises(ValueError, match="tau of node 'lif' differs within its population"):
        read(node)


def dataclasses_close(neuron, expected):
    """The same neuron but for the rounding of what leaks."""
    leak = {name: getattr(expected, name) for name in ("decay", "tau")}
    rounded = all(value is None or getattr(neuron, n) == pytest.approx(value, rel=1e-6) for n, value in leak.items())
    return rounded and dataclasses.replace(neuron, **leak) == expected


def test_a_node_that_was_edited_is_believed():
    model = nn.Sequential(nn.Linear(3, 2), layers.LIF(Neuron(charge="leak", tau=2.0, surrogate=surrogate.Erf())))
    graph = interop.to_nir(model, torch.rand(4, 1, 3))
    (node,) = (n for n in graph.nodes.values() if isinstance(n, nir.LIF))
    node.v_threshold[...] = 0.5
    (layer,) = (m for m in interop.from_nir(graph).modules() if isinstance(m, layers.LIF))
    assert layer.neuron.threshold == 0.5
    assert layer.neuron.surrogate == surrogate.Erf()


def test_what_nir_has_no_node_for():
    x = torch.rand(3, 2, 4)
    refused = {
        "reset='soft'": layers.LIF(Neuron(reset="soft")),
        "no node for 1, a ReLU": nn.ReLU(),
        "each channel": layers.ParametricLIF(channels=4),
    }
    for message, module in refused.items():
        with pytest.raises(ValueError, match=message):
            interop.to_nir(nn.Sequential(nn.Linear(4, 4), module), x)
    node = lif_node()
    with pytest.raises(ValueError, match="recurrent"):
        interop.from_nir(
            nir.NIRGraph(
                {"input": nir.Input(np.array([2])), "a": node, "output": nir.Output(np.array([2]))},
                [("input", "a"), ("a", "a"), ("a", "output")],
            )
        )
    cuba = nir.NIRGraph.from_list(nir.CubaLIF(*(np.ones(2, np.float32) for _ in range(5))))
    with pytest.raises(ValueError, match="CubaLIF, which is not supported"):
        interop.from_nir(cuba)


def test_a_convolution_that_does_not_pad_with_zeros_is_refused():
    class OverTime(nn.Conv2d):
        def forward(self, x):
            return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    model = nn.Sequential(OverTime(1, 2, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ValueError, match=r"0 pads with padding_mode='reflect'; NIR's convolutions pad with zeros"):
        interop.to_nir(model, torch.rand(2, 1, 1, 4, 4))
