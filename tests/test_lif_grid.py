"""Every neuron on every backend: spikes, potentials and maps bit by bit, gradients against autograd."""

from __future__ import annotations

import pytest
import torch

from lif_checks import Target, check_forward, check_gradients
from reference_cases import SURROGATES, Case, make_neuron

CHARGES = ("decay", "leak", "leak_input", "integrate")
RESETS = ("hard", "soft", "soft_delayed", "none")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
RESETS_AND_DETACH = [(reset, detach) for reset in RESETS for detach in ((False, True) if reset != "none" else (False,))]


def skip_unless_served(target: Target, dtype: torch.dtype) -> None:
    if dtype == torch.float64 and target.backend in ("cuda", "triton"):
        pytest.skip("GPU kernels have no float64")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "odd"])
@pytest.mark.parametrize("strict", [False, True], ids=["ge", "gt"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("charge", CHARGES)
def test_forward(target, charge, reset, strict, plain, dtype):
    skip_unless_served(target, dtype)
    neuron = make_neuron(charge, reset, plain=plain, strict=strict)
    leak = None if charge == "integrate" or plain else "channel"
    check_forward(target, Case(neuron, dtype=dtype, v_init=not plain, leak=leak))


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize(("reset", "detach"), RESETS_AND_DETACH)
@pytest.mark.parametrize("charge", CHARGES)
def test_gradients(target, charge, reset, detach, surrogate):
    options = {"surrogate_": surrogate, "detach_reset": detach}
    # Round constants in every other case; the other kind below.
    plain = (SURROGATES.index(surrogate) + RESETS_AND_DETACH.index((reset, detach))) % 2 == 0
    leak = None if charge == "integrate" or plain else "scalar"
    neuron = make_neuron(charge, reset, plain=plain, strict=plain, **options)
    check_gradients(target, Case(neuron, v_init=not plain, leak=leak))
    # What most training steps ask for, which kernels may serve on a path of its own.
    neuron = make_neuron(charge, reset, plain=not plain, strict=not plain, **options)
    check_gradients(target, Case(neuron, v_init=plain, spikes_only=True))


@pytest.mark.parametrize("channel_dim", [2, None], ids=["sam", "no-sam"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("reset", "detach"), RESETS_AND_DETACH)
@pytest.mark.parametrize("charge", CHARGES)
def test_gradients_of_other_dtypes(target, charge, reset, detach, dtype, channel_dim):
    skip_unless_served(target, dtype)
    # Every surrogate once in a while, with the seed to tell the cases apart.
    turn = CHARGES.index(charge) * 7 + RESETS_AND_DETACH.index((reset, detach))
    neuron = make_neuron(charge, reset, plain=False, surrogate_=SURROGATES[turn % 9], detach_reset=detach)
    leak = None if charge == "integrate" else "scalar" if channel_dim is None else "channel"
    check_gradients(target, Case(neuron, dtype=dtype, v_init=True, leak=leak, channel_dim=channel_dim, seed=turn))
    check_gradients(target, Case(neuron, dtype=dtype, spikes_only=True, seed=turn))


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_gradients_of_surrogates_in_float64(target, surrogate):
    skip_unless_served(target, torch.float64)
    neuron = make_neuron("decay", "soft", plain=False, surrogate_=surrogate)
    check_gradients(target, Case(neuron, dtype=torch.float64, channel_dim=None, leak="scalar"))
