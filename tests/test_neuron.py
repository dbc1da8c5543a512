"""Neuron: defaults, presets, and that nothing is accepted which is not used."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from ckd_kernels import Neuron, surrogate
from reference_cases import SURROGATES, make_neuron

CHARGES = ("decay", "leak", "leak_input", "integrate")
RESETS = ("hard", "soft", "soft_delayed", "none")


def test_defaults_depend_on_the_charge_and_the_reset():
    neuron = Neuron()
    assert (neuron.charge, neuron.decay, neuron.tau, neuron.v_reset) == ("decay", 0.5, None, 0.0)
    assert Neuron(charge="leak").tau == Neuron(charge="leak_input").tau == 2.0
    assert Neuron(charge="leak").decay is None
    assert Neuron(charge="integrate").decay is Neuron(charge="integrate").tau is None
    assert Neuron(reset="soft").v_reset is None
    assert Neuron(reset="soft").rest == 0.0
    assert Neuron(v_reset=-0.5).rest == -0.5


def test_equal_neurons_are_the_same():
    assert Neuron(decay=1, threshold=1) == Neuron(decay=1.0, threshold=1.0)
    assert Neuron(decay=1, threshold=1).spec == Neuron(decay=1.0, threshold=1.0).spec
    assert hash(Neuron.paper()) == hash(Neuron.paper())
    assert Neuron(surrogate=surrogate.ATan()) != Neuron(surrogate=surrogate.Triangle())
    with pytest.raises(dataclasses.FrozenInstanceError):
        Neuron().decay = 0.3


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("charge", CHARGES)
def test_spec_says_everything(charge, reset, name):
    neuron = make_neuron(charge, reset, plain=False, surrogate_=name, strict=True, detach_reset=reset != "none")
    assert Neuron.from_spec(neuron.spec) == neuron


def test_specs_differ_in_every_field():
    base = Neuron()
    others = [
        Neuron(charge="integrate"),
        Neuron(charge="leak"),
        Neuron(charge="leak", tau=2.5),
        Neuron(decay=math.nextafter(0.5, 1)),
        Neuron(threshold=0.5),
        Neuron(v_reset=0.1),
        Neuron(reset="soft"),
        Neuron(strict=True),
        Neuron(detach_reset=True),
        Neuron(surrogate=surrogate.ATan()),
        Neuron(surrogate=surrogate.Triangle(1.5)),
    ]
    assert len({base.spec, *(n.spec for n in others)}) == len(others) + 1


def test_presets():
    paper = Neuron.paper()
    assert (paper.charge, paper.decay, paper.threshold, paper.reset) == ("decay", 0.5, 1.0, "hard")
    assert paper.strict
    assert not paper.detach_reset
    assert paper.surrogate == surrogate.Triangle(1.0)
    spikingjelly = Neuron.spikingjelly_lif()
    assert (spikingjelly.charge, spikingjelly.tau, spikingjelly.v_reset) == ("leak_input", 2.0, 0.0)
    assert not spikingjelly.strict
    assert spikingjelly.surrogate == surrogate.Sigmoid(4.0)
    assert Neuron.spikingjelly_if().charge == "integrate"
    leaky = Neuron.snntorch_leaky(beta=0.9)
    assert (leaky.charge, leaky.decay, leaky.reset) == ("decay", 0.9, "soft_delayed")
    assert leaky.strict
    assert leaky.detach_reset
    assert leaky.surrogate == surrogate.ATan(2.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [1.0, 0.7, -0.3, 0.0, 1e-30])
def test_fire_level_is_the_least_potential_that_fires(threshold, dtype):
    """h >= fire_level is h >= threshold, or h > threshold with strict, for every h."""
    at = torch.tensor(threshold, dtype=dtype)
    above, below = (torch.nextafter(at, torch.tensor(s * math.inf, dtype=dtype)) for s in (1, -1))
    for strict in (False, True):
        level = torch.tensor(Neuron(threshold=threshold, strict=strict).fire_level(dtype), dtype=dtype)
        for h in (below, at, above):
            assert (h >= level) == ((h > at) if strict else (h >= at))


BAD = [
    ({"charge": "lif"}, ValueError, "charge must be one of decay, leak, leak_input, integrate; got 'lif'"),
    ({"reset": "zero"}, ValueError, "reset must be one of hard, soft, soft_delayed, none; got 'zero'"),
    ({"decay": -0.1}, ValueError, r"decay must be in \[0, 1\], got -0.1"),
    ({"decay": 1.01}, ValueError, r"decay must be in \[0, 1\], got 1.01"),
    ({"decay": math.nan}, ValueError, "decay must be finite, got nan"),
    ({"decay": "0.5"}, TypeError, "decay must be a number, got '0.5'"),
    ({"decay": True}, TypeError, "decay must be a number, got True"),
    ({"decay": torch.tensor(0.5)}, TypeError, r"decay must be a number, got tensor.*an argument of lif\(\)"),
    ({"tau": 2.0}, ValueError, "tau=2.0 is only used with charge='leak' or 'leak_input'; leave it out"),
    ({"charge": "leak", "decay": 0.5}, ValueError, "decay=0.5 is only used with charge='decay'; leave it out"),
    ({"charge": "integrate", "decay": 0.5}, ValueError, "decay=0.5 is only used with charge='decay'; leave it out"),
    ({"charge": "integrate", "tau": 2.0}, ValueError, "tau=2.0 is only used with"),
    ({"charge": "leak", "tau": 1.0}, ValueError, "tau must be > 1 for charge='leak', got 1.0; .*'integrate'"),
    ({"charge": "leak", "tau": -3}, ValueError, "tau must be > 1 for charge='leak', got -3.0"),
    ({"charge": "leak_input", "tau": 0.9}, ValueError, "tau must be >= 1 for charge='leak_input', got 0.9"),
    ({"charge": "leak_input", "tau": math.inf}, ValueError, "tau must be finite, got inf"),
    ({"threshold": math.inf}, ValueError, "threshold must be finite, got inf"),
    ({"threshold": None}, None, None),
    ({"v_reset": math.nan}, ValueError, "v_reset must be finite, got nan"),
    ({"reset": "soft", "v_reset": 0.0}, ValueError, "v_reset=0.0 is only used with reset='hard'; leave it out"),
    ({"reset": "none", "v_reset": 0.0}, ValueError, "v_reset=0.0 is only used with reset='hard'; leave it out"),
    ({"reset": "none", "detach_reset": True}, ValueError, "detach_reset is not used with reset='none'"),
    ({"strict": 1}, TypeError, "strict must be True or False, got 1"),
    ({"detach_reset": None}, TypeError, "detach_reset must be True or False, got None"),
    ({"surrogate": "triangle"}, TypeError, "surrogate must be one of ckd_kernels.surrogate.*got 'triangle'"),
    ({"surrogate": surrogate.Triangle}, TypeError, "surrogate must be one of ckd_kernels.surrogate"),
    ({"surrogate": surrogate.Surrogate()}, TypeError, "surrogate must be one of ckd_kernels.surrogate"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=[str(options) for options, *_ in BAD])
def test_bad_options(options, error, message):
    if error is None:
        assert Neuron(**options) == Neuron()
        return
    with pytest.raises(error, match=message):
        Neuron(**options)


def test_smallest_tau():
    """leak_input with tau 1 has no memory but is a neuron; leak with tau just over 1 is one too."""
    assert Neuron(charge="leak_input", tau=1).tau == 1.0
    assert Neuron(charge="leak", tau=math.nextafter(1, 2)).tau > 1.0


@pytest.mark.parametrize("number", [np.float32(0.5), np.float16(0.5), np.int64(1)])
def test_numbers_of_numpy(number):
    """As they come from a sweep's array; what is kept is Python's."""
    assert Neuron(decay=number) == Neuron(decay=float(number))
    assert Neuron.snntorch_leaky(number) == Neuron.snntorch_leaky(float(number))
    made = Neuron(decay=number, surrogate=surrogate.Triangle(number))
    assert type(made.decay) is type(made.surrogate.alpha) is float
    assert Neuron.from_spec(made.spec) == made
