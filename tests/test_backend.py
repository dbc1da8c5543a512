"""Which backend serves a call, and what is said where none can."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch

import ckd_kernels
from ckd_kernels import Neuron, backend, build_info, lif, use_backend
from ckd_kernels.backends import native, reference

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
