"""Bad values for every argument of every public function and layer: refused by name, before any work is done."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("nirtorch")

import ckd_kernels as ck
from ckd_kernels import Neuron, layers, surrogate
from ckd_kernels.interop import nir

X = torch.ones(4, 2, 3, 5)
META = torch.ones(4, 2, 3, 5, device="meta")
NAN, INF = math.nan, math.inf
PAPER, LEAK = Neuron.paper(), Neuron(charge="leak")
C = torch.ones(3)


def lif(**given):
    return ck.lif(**{"x": X, "neuron": PAPER, **given})


def bn_lif(**given):
    default = {"y": X, "weight": C, "bias": C, "running_mean": C, "running_var": C, "neuron": PAPER}
    return ck.bn_lif(**{**default, **given})


def evaluated(**given):
    return bn_lif(training=False, **given)


def sam(**given):
    return ck.sam(**{"spikes": X, **given})


def norm(**given):
    return layers.BatchNormLIF(**{"num_features": 3, **given})


def derivative(**given):
    return surrogate.Triangle().derivative(**given)


def primitive(**given):
    return surrogate.Sigmoid().primitive(**given)


def convert(**given):
    return ck.convert(**{"model": nn.Sequential(), **given})


def forward(**given):
    return layers.LIF()(**{"x": X, **given})


def norm_forward(**given):
    return norm()(**{"y": X, **given})


def to_nir(**given):
    return nir.to_nir(**{"model": nn.Sequential(nn.Linear(5, 5), layers.LIF()), "sample": X[:, :, 0], **given})


def from_nir(**given):
    return nir.from_nir(**{"graph": GRAPH, **given})


GRAPH = to_nir()


TENSORS: list[Any] = [None, "x", 1.0, [1.0], X.int(), X > 0, X.to_sparse(), X + 1j]
OTHER_TENSORS: list[Any] = ["x", 1.0, [1.0], X.int(), X[0].to_sparse(), META]
VECTORS: list[Any] = [
    "x",
    1.0,
    [1.0] * 3,
    torch.ones(3).int(),
    torch.ones(2),
    torch.ones(3, 1),
    C.to_sparse(),
    META[0, 0],
]
FLAGS: list[Any] = ["False", "no", None, 0, 1, 1.0, torch.tensor(True)]
INTEGERS: list[Any] = ["0", None, True, 0.0, [0]]
NUMBERS: list[Any] = ["0.1", None, True, [0.1], NAN, INF, -INF]
GROUPS: list[Any] = ["gloo", 1, True, [0, 1]]
NEURONS: list[Any] = [None, "lif", Neuron, PAPER.spec, 1]

CALLS: list[tuple[Any, str, list[Any]]] = [
    (lif, "x", TENSORS),
    (lif, "neuron", NEURONS),
    (lif, "time_dim", [*INTEGERS, 2, -1]),
    (lif, "v_init", [*OTHER_TENSORS, X]),
    (lif, "decay", [*OTHER_TENSORS, torch.ones(2)]),
    (lif, "return_v", FLAGS),
    (lif, "return_sam", FLAGS),
    (lambda **given: lif(return_sam=True, **given), "channel_dim", ["2", True, 2.0, 4, -5, 0]),
    (lambda **given: lif(**{"neuron": LEAK, **given}), "tau", [*OTHER_TENSORS, torch.ones(2)]),
    (bn_lif, "y", TENSORS),
    (bn_lif, "neuron", NEURONS),
    (bn_lif, "weight", VECTORS),
    (bn_lif, "bias", VECTORS),
    (bn_lif, "running_mean", [*VECTORS, None]),
    (bn_lif, "running_var", [*VECTORS, None]),
    (evaluated, "running_var", [-C, C * NAN, torch.tensor([1.0, -1e-6, 1.0])]),
    (lambda **given: evaluated(running_var=None, **given), "running_mean", [None]),
    (bn_lif, "training", FLAGS),
    (bn_lif, "momentum", [*NUMBERS, -0.1, 1.1]),
    (bn_lif, "eps", [*NUMBERS, 0.0, -1e-5]),
    (bn_lif, "residual", [*OTHER_TENSORS, X[:1], X.double()]),
    (bn_lif, "time_dim", [*INTEGERS, 2, -1]),
    (bn_lif, "channel_dim", ["2", None, True, 2.0, 4, -5, 0]),
    (bn_lif, "v_init", [*OTHER_TENSORS, X]),
    (bn_lif, "decay", [*OTHER_TENSORS, torch.ones(2)]),
    (bn_lif, "return_v", FLAGS),
    (bn_lif, "return_sam", FLAGS),
    (bn_lif, "process_group", GROUPS),
    (sam, "spikes", TENSORS),
    (sam, "time_dim", [*INTEGERS, 2, -1]),
    (sam, "channel_dim", ["2", None, True, 2.0, 4, -5, 0]),
    (Neuron, "charge", [None, "Decay", 1, ["decay"]]),
    (Neuron, "reset", [None, "Hard", 1, ["hard"]]),
    (Neuron, "decay", ["0.5", True, NAN, INF, -0.1, 1.1, torch.tensor(0.5)]),
    (lambda **given: Neuron(charge="leak", **given), "tau", ["2", True, NAN, INF, 1.0, 0.0, -2.0]),
    (lambda **given: Neuron(charge="leak_input", **given), "tau", [0.99, NAN]),
    (lambda **given: Neuron(charge="decay", **given), "tau", [2.0]),
    (Neuron, "threshold", ["1", True, NAN, INF, -INF, torch.tensor(1.0)]),
    (Neuron, "v_reset", ["0", True, NAN, INF]),
    (lambda **given: Neuron(reset="soft", **given), "v_reset", [0.0]),
    (Neuron, "strict", FLAGS),
    (Neuron, "detach_reset", FLAGS),
    (Neuron, "surrogate", [None, "triangle", surrogate.Triangle, 1.0, surrogate.Surrogate()]),
    (Neuron.from_spec, "spec", [None, 1, "", "a|b", PAPER.spec + "|1", PAPER.spec.replace("triangle", "sine")]),
    (Neuron.snntorch_leaky, "beta", ["0.9", None, True, NAN, INF, -0.1, 1.1]),
    *((cls, "alpha", ["1", None, True, NAN, INF, 0.0, -1.0]) for cls in surrogate.BY_NAME.values()),
    (derivative, "u", [None, "x", 1.0, X.int()]),
    (primitive, "u", [None, "x", 1.0, X.int()]),
    *((cls, "time_dim", [*INTEGERS, 2, -1]) for cls in (layers.LIF, layers.IF, layers.ParametricLIF, norm)),
    *((cls, "stateful", FLAGS) for cls in (layers.LIF, layers.IF, layers.ParametricLIF, norm)),
    *((cls, "neuron", NEURONS[1:]) for cls in (layers.LIF, layers.IF, layers.ParametricLIF, norm)),
    (layers.ParametricLIF, "channels", ["3", True, 0, -1, 3.0]),
    (norm, "num_features", ["3", None, True, 0, -1, 3.0]),
    (norm, "eps", [*NUMBERS, 0.0, -1e-5]),
    (norm, "momentum", ["0.1", True, [0.1], NAN, INF, -0.1, 1.1]),
    (norm, "affine", FLAGS),
    (norm, "track_running_stats", FLAGS),
    (norm, "alpha", ["1", True, NAN, INF]),
    (norm, "channel_dim", ["2", None, True, 2.0]),
    (norm, "process_group", GROUPS),
    (forward, "x", TENSORS),
    (forward, "return_sam", FLAGS),
    (norm_forward, "y", TENSORS),
    (norm_forward, "residual", [*OTHER_TENSORS, X[:1]]),
    (norm_forward, "return_sam", FLAGS),
    (convert, "model", [None, "net", nn.Sequential, [nn.Linear(2, 2)], X]),
    (convert, "fuse", FLAGS),
    (convert, "strict", FLAGS),
    (to_nir, "model", [None, "net", nn.Linear, X]),
    (to_nir, "sample", [None, "x", 1.0, (4, 2, 3, 5)]),
    (to_nir, "dt", [*NUMBERS, 0.0, -1e-4]),
    (from_nir, "graph", [None, "network.nir", nn.Sequential()]),
    (from_nir, "dt", [*NUMBERS, 0.0, -1e-4]),
    (from_nir, "surrogate", ["triangle", surrogate.Triangle, 1.0]),
    (ck.MultiStep, "neuron", [None, "Leaky", nn.Linear(2, 2), nn.Linear, PAPER]),
]


def test_every_argument_of_every_public_function_and_layer_is_here():
    """But those of which every value is right."""
    import inspect

    entries = [ck.lif, ck.bn_lif, ck.sam, Neuron, ck.convert, layers.LIF, layers.IF, layers.ParametricLIF]
    entries += [nir.to_nir, nir.from_nir, layers.BatchNormLIF, surrogate.Triangle]
    arguments = {name for entry in entries for name in inspect.signature(entry).parameters}
    assert arguments <= {name for _, name, _ in CALLS}
    assert sum(len(values) for *_, values in CALLS) >= 400


def cases():
    for call, name, values in CALLS:
        for value in values:
            shown = f"{value.dtype}{tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)[:30]
            yield pytest.param(call, name, value, id=f"{getattr(call, '__qualname__', call)}-{name}-{shown}")


@pytest.mark.parametrize(("call", "name", "value"), list(cases()))
def test_is_refused_by_name(call, name, value, no_launch):
    if call == Neuron.from_spec or call is ck.MultiStep:
        run = lambda: call(value)  # noqa: E731
    else:
        run = lambda: call(**{name: value})  # noqa: E731
    with pytest.raises((TypeError, ValueError)) as error:
        run()
    assert re.search(rf"\b{name}\b", str(error.value)), error.value
    assert "unexpected keyword" not in str(error.value)


def test_a_variance_on_a_device_that_would_have_to_be_waited_for_is_not_looked_at(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "min", lambda *_: pytest.fail("read"))
    ck.bn_lif(META, *(META[0, 0, :, 0],) * 4, PAPER, training=False)
