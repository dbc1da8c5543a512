"""Neurons, shapes, layouts and options that nobody thought of."""

from __future__ import annotations

import pytest
import torch

from ckd_kernels import Neuron
from lif_checks import Target, check_gradients
from reference_cases import MEMORY, SURROGATES, Case, surrogate_of

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies


@st.composite
def neurons(draw: st.DrawFn) -> Neuron:
    charge = draw(st.sampled_from(["decay", "leak", "leak_input", "integrate"]))
    reset = draw(st.sampled_from(["hard", "soft", "soft_delayed", "none"]))
    options = {}
    if charge == "decay":
        options["decay"] = draw(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]))
    elif charge != "integrate":
        options["tau"] = draw(st.sampled_from([1.25, 2.0, 3.3, 10.0]))
    if reset == "hard":
        options["v_reset"] = draw(st.sampled_from([0.0, -0.15, 0.3]))
    if reset != "none":
        options["detach_reset"] = draw(st.booleans())
    return Neuron(
        charge=charge,
        reset=reset,
        threshold=draw(st.sampled_from([1.0, 0.7, 0.5, -0.2])),
        strict=draw(st.booleans()),
        surrogate=surrogate_of(draw(st.sampled_from(SURROGATES)), plain=draw(st.booleans())),
        **options,
    )


@st.composite
def cases(draw: st.DrawFn, dtypes: list[torch.dtype]) -> Case:
    neuron = draw(neurons())
    # Mostly small; now and then wider than a vector or a tile, or longer than a checkpoint.
    sizes = st.one_of(st.integers(1, 5), st.sampled_from([7, 16, 17, 33, 129]))
    dims = draw(st.integers(1, 5))
    time_dim = draw(st.integers(0, min(1, dims - 1)))
    steps = draw(st.one_of(st.integers(1, 8), st.integers(9, 40)))
    shape = [draw(sizes) for _ in range(dims)]
    while len(shape) > 1 and torch.Size(shape).numel() > 3000:
        shape[shape.index(max(shape))] = 3
    shape[time_dim] = steps
    channel_dim = draw(st.one_of(st.none(), st.sampled_from([d for d in range(dims) if d != time_dim] or [None])))
    leaks = [None]
    if neuron.leak_name is not None:
        leaks = [None, "scalar"] + (["channel"] if channel_dim is not None else [])
    return Case(
        neuron,
        shape=tuple(shape),
        time_dim=time_dim,
        dtype=draw(st.sampled_from(dtypes)),
        memory=draw(st.sampled_from([*MEMORY, "repeated"])),
        v_init=draw(st.booleans()),
        leak=draw(st.sampled_from(leaks)),
        channel_dim=channel_dim,
        spikes_only=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


def test_anything(target: Target):
    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    if target.backend in ("reference", "cpu"):
        dtypes.append(torch.float64)
    # Triton compiles for every neuron anew.
    examples = 15 if target.backend == "triton" else 100

    @hypothesis.settings(max_examples=examples, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(case=cases(dtypes))
    def check(case: Case):
        check_gradients(target, case)

    check()
