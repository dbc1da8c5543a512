"""Which backend serves a call, and what is said where none can."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

import ckd_kernels
from ckd_kernels import Neuron, backend, build_info, lif, use_backend
from ckd_kernels.backends import native, reference
from ckd_kernels.backends.native.module import _warn_of_narrow_level

X = torch.full((3, 2), 0.8)


@pytest.fixture
def served(monkeypatch):
    """Names of the backends that served forward passes, in order."""
    names = []

    def record(module, name):
        original = module.lif_forward
        monkeypatch.setattr(module, "lif_forward", lambda *a: (names.append(name), original(*a)))

    record(reference, "reference")
    record(native, "cpu")
    return names


def forget_choices():
    backend._choose.cache_clear()
    backend._serving.cache_clear()


@pytest.fixture
def fresh_choice(monkeypatch):
    monkeypatch.setattr(backend, "_environment", "auto")
    forget_choices()
    yield
    forget_choices()


def has_cpu_kernels():
    return build_info()["backends"]["cpu"] == "available"


def test_build_info():
    info = build_info()
    assert info["version"] == ckd_kernels.__version__
    assert set(info["backends"]) == {"reference", "cpu", "cuda", "triton"}
    assert info["backends"]["reference"] == "available"
    assert all(isinstance(state, str) and state for state in info["backends"].values())
    assert (info["compiled"] is None) == (native.compiled_facts() is None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_gpu_backends_say_why_they_are_missing():
    for name in ("cuda", "triton"):
        assert build_info()["backends"][name] != "available"
        with use_backend(name), pytest.raises(RuntimeError, match=f"'{name}' cannot run lif on cpu in float32: "):
            lif(X, Neuron.paper())


@pytest.mark.skipif(not has_cpu_kernels(), reason="the C++ kernels were not built")
def test_cpu_tensors_go_to_the_cpp_kernels(served, fresh_choice):
    lif(X, Neuron.paper())
    with use_backend("auto"):
        lif(X, Neuron.paper())
    assert served == ["cpu", "cpu"]


@pytest.mark.skipif(not has_cpu_kernels(), reason="the C++ kernels were not built")
def test_use_backend_nests_and_ends(served, fresh_choice):
    with use_backend("reference"):
        lif(X, Neuron.paper())
        with use_backend("cpu"):
            lif(X, Neuron.paper())
        lif(X, Neuron.paper())
    with pytest.raises(ZeroDivisionError), use_backend("reference"):
        _ = 1 / 0
    lif(X, Neuron.paper())
    assert served == ["reference", "cpu", "reference", "cpu"]


def test_choice_for_the_whole_run(served, fresh_choice, monkeypatch):
    monkeypatch.setattr(backend, "_environment", "reference")
    lif(X, Neuron.paper())
    assert served == ["reference"]
    if has_cpu_kernels():
        with use_backend("cpu"):
            lif(X, Neuron.paper())
        assert served == ["reference", "cpu"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("cuda", "RuntimeError: backend 'cuda' cannot run lif on cpu in float32"),
        ("gpu", "ValueError: CKD_BACKEND must be one of auto, reference, cpu, cuda, triton; got 'gpu'"),
        ("", "2.0"),  # as if it were not there
    ],
)
def test_environment_variable(value, said):
    """Set before the process starts, as a user does it."""
    code = "import torch, ckd_kernels as ck; print(ck.lif(torch.ones(2, 1) * 2, ck.Neuron.paper()).sum().item())"
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(ckd_kernels.__file__))}
    environment["CKD_BACKEND"] = value
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["gpu", "", None, "CPU"])
def test_unknown_backend(name):
    with (
        pytest.raises(ValueError, match="backend must be one of auto, reference, cpu, cuda, triton; got"),
        use_backend(name),
    ):
        pass


def test_missing_kernels_warn_once_and_refuse_when_asked_for(served, fresh_choice, monkeypatch):
    """Nothing falls back silently."""
    monkeypatch.setattr(native, "unavailable", lambda *a: "the compiled module is missing; install it")
    with pytest.warns(RuntimeWarning, match="slow pure-PyTorch reference for cpu .*the compiled module is missing"):
        lif(X, Neuron.paper())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lif(X, Neuron.paper())
    assert served == ["reference", "reference"]
    with (
        use_backend("cpu"),
        pytest.raises(RuntimeError, match="'cpu' cannot run lif on cpu in float32: the compiled module is missing"),
    ):
        lif(X, Neuron.paper())


def test_choice_for_cuda_tensors(fresh_choice, monkeypatch):
    """Native CUDA if it can run, else Triton, else the reference with a warning."""
    from ckd_kernels.backends import triton

    def with_missing(*missing):
        forget_choices()
        for module in (native, triton):
            monkeypatch.setattr(module, "unavailable", lambda name, *a: "not here" if name in missing else None)
        return backend.resolve("auto", "lif", torch.device("cuda", 0), torch.float32)

    assert with_missing() is native
    assert with_missing("cuda") is triton
    with pytest.warns(RuntimeWarning, match="for cuda tensors .*cuda: not here; triton: not here"):
        assert with_missing("cuda", "triton") is reference


def test_neurons_that_cuda_looks_up_go_to_triton(fresh_choice, monkeypatch):
    """On a GPU where both are there, and for "auto" only: whoever names a backend gets it."""
    from ckd_kernels.backends import triton

    paper, leaky = Neuron.paper(), Neuron.snntorch_leaky(beta=0.9)
    monkeypatch.setattr(native, "unavailable", lambda *a: None)
    monkeypatch.setattr(native, "is_compiled_in", lambda op, neuron, dtype: neuron == paper)

    def serving(neuron, name="auto", *, op="lif", triton_is_there=True):
        forget_choices()
        monkeypatch.setattr(triton, "unavailable", lambda *a: None if triton_is_there else "not here")
        spec = neuron.spec if isinstance(neuron, Neuron) else neuron
        return backend.resolve(name, op, torch.device("cuda", 0), torch.bfloat16, spec)

    assert serving(paper) is native
    assert serving(leaky) is triton
    assert serving(leaky, triton_is_there=False) is native
    assert serving(leaky, "cuda") is native
    assert serving(None) is native  # statistics, maps and bits
    assert serving(backend.LEARNT) is triton
    assert serving(backend.LEARNT, triton_is_there=False) is native
    assert serving(backend.LEARNT, op="bn_lif") is native


def test_build_info_says_what_auto_is(fresh_choice, monkeypatch):
    from ckd_kernels.backends import triton

    there = {"cpu", "cuda", "triton"}
    for module in (native, triton):
        monkeypatch.setattr(module, "unavailable", lambda name, *a: None if name in there else "not here")
    assert build_info()["auto"] == {
        "cpu": "cpu",
        "cuda": "cuda, or triton for neurons that the CUDA kernels are not compiled for",
    }
    there.discard("cuda")
    assert build_info()["auto"] == {"cpu": "cpu", "cuda": "triton"}
    there.clear()
    assert build_info()["auto"] == {"cpu": "reference", "cuda": "reference"}


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        (("90",), (9, 0), True),
        (("90",), (12, 0), True),  # PTX
        (("90",), (8, 9), False),
        (("80-real", "90-real"), (8, 6), True),
        (("80-real",), (9, 0), False),
        (("86-real",), (8, 0), False),
        (("80-virtual",), (9, 0), True),
        (("90a",), (9, 0), True),
        (("90a",), (10, 0), False),
    ],
)
def test_which_gpus_compiled_kernels_run_on(archs, capability, runs):
    assert native._runs_on(archs, capability) is runs


@pytest.mark.parametrize(
    ("in_use", "widest", "warns"), [("baseline", "v4", True), ("v3", "v4", False), ("baseline", "baseline", False)]
)
def test_a_module_of_another_processor_warns(in_use, widest, warns, monkeypatch):
    monkeypatch.delenv("CKD_CPU_LEVEL", raising=False)
    levels = SimpleNamespace(level=lambda: in_use, widest_level=lambda: widest)
    module = SimpleNamespace(cpu=levels, build_info=lambda: {"cpu_levels": ("baseline", "v4")})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _warn_of_narrow_level(module)
    assert len(caught) == warns
    if warns:
        assert "was compiled for baseline, v4 and runs the slow baseline" in str(caught[0].message)
