"""A call is made once and travels as one thing: which files it passes, its flat form, and what backends have of it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ckd_kernels
from ckd_kernels import Neuron, bn_lif, lif, use_backend
from ckd_kernels.arguments import bn_lif_call, lif_call
from ckd_kernels.backend import _REGISTRY, Backend, build_info
from ckd_kernels.call import Call, GradientCall, Gradients, Needs, Norm, Outputs
from ckd_kernels.ops import flat

ROOT = Path(ckd_kernels.__file__).parent
NEURON = Neuron.snntorch_leaky(0.7)


def holds(value: object, x: Tensor) -> bool:
    """Whether something is x, or a call that holds it."""
    return value is x or (isinstance(value, tuple) and any(holds(v, x) for v in value))


def files_passed(call, x: Tensor) -> list[str]:
    """Files of the package in the order in which another one's function gives x to one of theirs."""
    entered = []

    def seen(frame, event, _):
        code, before = frame.f_code, frame.f_back
        if (
            event != "call"
            or ROOT not in Path(code.co_filename).parents
            or code.co_filename == before.f_code.co_filename
        ):
            return
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4)]
        if any(holds(frame.f_locals[name], x) for name in names):
            entered.append(str(Path(code.co_filename).relative_to(ROOT)))

    call()  # what is looked up once
    sys.setprofile(seen)
    try:
        call()
    finally:
        sys.setprofile(None)
    return entered


@pytest.mark.skipif(build_info()["backends"]["cpu"] != "available", reason="the C++ kernels were not built")
def test_x_passes_five_files_and_none_of_them_twice():
    x, vectors = torch.randn(4, 2, 3), (torch.ones(3), torch.zeros(3), torch.zeros(3), torch.ones(3))
    with use_backend("cpu"):
        one, other = (files_passed(f, x) for f in (lambda: lif(x, NEURON), lambda: bn_lif(x, *vectors, NEURON)))
    assert one == ["functional.py", "arguments.py", "ops/library.py", "ops/lif.py", "backends/native/lif.py"]
    batch_norm = ["ops/batch_norm.py", "backends/native/batch_norm.py"]
    assert other == [*one[:4], *batch_norm, one[4]]


def test_the_flat_form_is_the_whole_call():
    x, channel = torch.randn(18, 2, 3), torch.rand(3)
    leaks, returned = (channel, None), (True, False)
    call = lif_call(x, NEURON, 0, x[0], leaks, returned, 2)
    again = flat.unpack_lif(*flat.pack(call))
    assert again == call
    call = bn_lif_call(
        *(x, (channel, None), (channel, channel), NEURON, True, 0.2, 1e-3, x, 0, 2, x[0], leaks, returned, None)
    )
    again = flat.unpack_bn_lif(*flat.pack(call))
    assert again == call
    assert again.norm.by_batch
    assert again.norm.moves


def test_what_a_graph_is_given_is_plain():
    """Every torch.compile since PyTorch 2.10 takes it as it is.

    In what an autograd function is given, up to 2.11 a neuron's numbers become inputs of the graph, which has no use
    for them: it is traced twice.  2.10 has no properties of the named tuples that are made in a graph.
    """
    plan = lif_call(torch.randn(18, 2, 3), NEURON, 0, None, (None, None), (True, True), 2).plan
    assert {type(value) for value in plan} == {str, int, bool}
    assert plan.neuron == NEURON
    for cls in (Call, GradientCall, Gradients, Needs, Norm, Outputs):
        assert not [name for name, value in vars(cls).items() if isinstance(value, property)], cls


@pytest.mark.parametrize("name", _REGISTRY)
def test_backends_fulfil_the_protocol(name):
    """As mypy says of their types; of modules that a name in the registry stands for."""
    module = importlib.import_module(f"ckd_kernels.backends.{_REGISTRY[name].module}")
    if name == "triton" and module._missing is not None:
        pytest.skip(module._missing)
    wanted = {method for method in vars(Backend) if not method.startswith("_")}
    assert len(wanted) == 9
    assert not [method for method in wanted if not callable(getattr(module, method, None))]
