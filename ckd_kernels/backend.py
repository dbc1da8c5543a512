"""Which backend serves a call, and what was built."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch

from .neuron import Neuron

BACKENDS = ("auto", "reference", "cpu", "cuda", "triton")
_MODULES = {"reference": "reference", "cpu": "native", "cuda": "native", "triton": "triton"}

# Looked up once: a variable that is not there costs an exception at every call.
_environment = os.environ.get("CKD_BACKEND") or "auto"

_override: str | None = None


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs every call inside the ``with`` block, and its backward pass, on one backend.

    The choice is the process's, not the thread's.  The environment variable ``CKD_BACKEND``, read when
    the package is imported, does the same for a whole run; this overrides it.

    Args:
        name: ``"reference"`` (pure PyTorch), ``"cpu"`` (C++), ``"cuda"`` (CUDA C++), ``"triton"``,
            or ``"auto"`` (the fastest that is there).

    Raises:
        ValueError: no such backend.  A call that the backend cannot serve raises RuntimeError.

    Example:
        >>> import ckd_kernels as ck
        >>> with ck.use_backend("reference"):
        ...     spikes = ck.lif(torch.ones(4, 2), ck.Neuron.paper())
    """
    global _override
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}")
    before, _override = _override, name
    try:
        yield
    finally:
        _override = before


def requested() -> str:
    """The backend that the innermost `use_backend` names; "auto" outside of any."""
    return _override or "auto"


def resolve(name: str, op: str, device: torch.device, dtype: torch.dtype, neuron: str | None = None) -> ModuleType:
    """The backend module that serves ``op`` on ``device`` and ``dtype``; RuntimeError where none does.

    ``neuron`` is the specification of the neuron that the call runs, where its decay or tau is a constant:
    "auto" looks at it on a GPU, in the forward and in the backward pass alike.
    """
    return _serving(
        _environment if name == "auto" else name, op, device, dtype, neuron if device.type == "cuda" else None
    )


@functools.lru_cache(maxsize=4096)
def _serving(name: str, op: str, device: torch.device, dtype: torch.dtype, neuron: str | None) -> ModuleType:
    if name not in BACKENDS:
        raise ValueError(f"CKD_BACKEND must be one of {', '.join(BACKENDS)}; got {name!r}")
    if name == "auto":
        name = _choose(device.type)
        if name == "cuda" and neuron is not None and _is_faster_in_triton(neuron, dtype):
            name = "triton"
    reason = _state(name, device.type, dtype)
    if reason is not None:
        raise RuntimeError(
            f"backend {name!r} cannot run {op} on {device} in {str(dtype).removeprefix('torch.')}: {reason}"
        )
    return _load(_MODULES[name])


@functools.cache
def _load(package: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.backends.{package}")


@functools.cache
def _choose(device_type: str) -> str:
    """The fastest backend for a device type; warns once where that is the slow reference."""
    candidates = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}.get(device_type, ())
    reasons = []
    for name in candidates:
        reason = _state(name, device_type)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    missing = "; ".join(reasons) or "no kernels exist for this device"
    warnings.warn(
        f"ckd_kernels runs on the slow pure-PyTorch reference for {device_type} tensors ({missing}).",
        RuntimeWarning,
        stacklevel=2,
    )
    return "reference"


def _is_faster_in_triton(neuron: str, dtype: torch.dtype) -> bool:
    """Whether Triton is there for a neuron that the CUDA kernels look up at run time; Triton compiles any."""
    native = _load("native")
    return not native.is_compiled_in(Neuron.from_spec(neuron), dtype) and _state("triton", "cuda", dtype) is None


def _state(name: str, device_type: str, dtype: torch.dtype = torch.float32) -> str | None:
    """Why a backend cannot run on a device type, or None."""
    reason: str | None = _load(_MODULES[name]).unavailable(name, device_type, dtype)
    return reason


def _routes() -> dict[str, str]:
    """What "auto" is for the tensors of a device type."""
    routes = {"cpu": "reference" if _state("cpu", "cpu") else "cpu"}
    there = [name for name in ("cuda", "triton") if _state(name, "cuda") is None]
    routes["cuda"] = there[0] if there else "reference"
    if len(there) == 2:
        routes["cuda"] = "cuda, or triton for neurons that the CUDA kernels are not compiled for"
    return routes


def build_info() -> dict[str, Any]:
    """What was compiled and what can run here.

    Returns:
        A dict: ``version``; ``compiled``, the build's own facts (compiler, CUDA version and
        architectures, CPU instruction sets and the one in use) or None without the compiled module;
        ``backends``, each backend's name with ``"available"`` or the reason why it is not; ``auto``, the
        backend that "auto" takes for the tensors of a device type.

    Example:
        >>> import ckd_kernels
        >>> ckd_kernels.build_info()["backends"]["reference"]
        'available'
    """
    from . import __version__
    from .backends import native

    devices = {"reference": "cpu", "cpu": "cpu", "cuda": "cuda", "triton": "cuda"}
    return {
        "version": __version__,
        "compiled": native.compiled_facts(),
        "backends": {name: _state(name, device) or "available" for name, device in devices.items()},
        "auto": _routes(),
    }
