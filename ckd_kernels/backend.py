"""Which backends there are, which of them serves a call, and what was built."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .call import Backward, Fold, Forward
from .neuron import Neuron
from .ops.layout import Layout


class Backend(Protocol):
    """What a backend is: a module with these functions.  They write into outputs that hold anything before."""

    def unavailable(self, name: str, device_type: str, dtype: torch.dtype) -> str | None:
        """Why the backend ``name`` cannot run on a device type and dtype, for the user; None if it can."""

    def lif_forward(self, call: Forward) -> None:
        """Spikes and, where given, the last potential, the spike activation map and the checkpoints."""

    def lif_backward(self, call: Backward) -> None:
        """The gradients that are given; or, where ``call.sums`` is given, the sums that are needed first."""

    def bn_statistics(self, layout: Layout, y: Tensor, moments: Tensor) -> None:
        """Mean and biased variance of every channel, float64 ``[2, channels]``; of a repeated frame, over one."""

    def bn_fold(self, call: Fold, folded: Tensor) -> None:
        """Rows mean, invstd, scale, shift and, where given, the next running mean and variance."""

    def bn_coefficients(
        self, sums: Tensor, invstd: Tensor, total: Tensor | None, values: int, coefficients: Tensor
    ) -> None:
        """Rows offset, slope, dL/dweight, dL/dbias of a `Backward` call's sums; ``total, values`` are as in `Fold`."""

    def sam(self, layout: Layout, spikes: Tensor, out: Tensor) -> None:
        """The mean of spikes over time and channels, real ``[outer, rows, inner]``."""

    def pack_bits(self, spikes: Tensor, bits: Tensor) -> None:
        """Bit ``i % 8`` of byte ``i // 8`` is whether spike i is not zero; unused bits of the last byte are 0."""

    def unpack_bits(self, bits: Tensor, spikes: Tensor) -> None:
        """The reverse."""


class _Registered(NamedTuple):
    module: str  # in ckd_kernels/backends
    device: str  # type of the tensors that it is for
    auto: bool  # whether "auto" takes it for those; the first one that can run


# Where a backend registers.
_REGISTRY = {
    "reference": _Registered("reference", "cpu", auto=False),
    "cpu": _Registered("native", "cpu", auto=True),
    "cuda": _Registered("native", "cuda", auto=True),
    "triton": _Registered("triton", "cuda", auto=True),
}
BACKENDS = ("auto", *_REGISTRY)
LEARNT = "learnt"  # stands for the specification of a neuron whose decay or tau is a tensor

if TYPE_CHECKING:
    from .backends import native, reference, triton

    _fulfilled: tuple[Backend, ...] = (native, reference, triton)

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


def resolve(name: str, op: str, device: torch.device, dtype: torch.dtype, neuron: str | None = None) -> Backend:
    """The backend that serves ``op`` on ``device`` and ``dtype``; RuntimeError where none does.

    ``neuron`` is the specification of the neuron that the call runs, `LEARNT` where its decay or tau is a tensor, or
    None where there is none: "auto" looks at it on a GPU, in the forward and in the backward pass alike.
    """
    return _serving(_environment if name == "auto" else name, op, device, dtype, neuron)


@functools.lru_cache(maxsize=4096)
def _serving(name: str, op: str, device: torch.device, dtype: torch.dtype, neuron: str | None) -> Backend:
    if name not in BACKENDS:
        raise ValueError(f"CKD_BACKEND must be one of {', '.join(BACKENDS)}; got {name!r}")
    if name == "auto":
        name = _choose(device.type)
        if name == "cuda" and neuron is not None and _is_faster_in_triton(op, neuron, dtype):
            name = "triton"
    reason = _state(name, device.type, dtype)
    if reason is not None:
        raise RuntimeError(
            f"backend {name!r} cannot run {op} on {device} in {str(dtype).removeprefix('torch.')}: {reason}"
        )
    return _load(name)


@functools.cache
def _load(name: str) -> Backend:
    backend: Any = importlib.import_module(f"{__package__}.backends.{_REGISTRY[name].module}")
    return backend


def _candidates(device_type: str) -> list[str]:
    """What "auto" may take for a device type, the fastest first."""
    return [name for name, known in _REGISTRY.items() if known.auto and known.device == device_type]


@functools.cache
def _choose(device_type: str) -> str:
    """The fastest backend for a device type; warns once where that is the slow reference."""
    reasons = []
    for name in _candidates(device_type):
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


def _is_faster_in_triton(op: str, neuron: str, dtype: torch.dtype) -> bool:
    """Whether Triton is there for a neuron that the CUDA kernels look up at run time; Triton compiles any."""
    from .backends import native

    if neuron == LEARNT:
        looked_up = op == "lif"  # behind batch normalisation nobody has compared the two
    else:
        looked_up = not native.is_compiled_in(op, Neuron.from_spec(neuron), dtype)
    return looked_up and _state("triton", "cuda", dtype) is None


def _state(name: str, device_type: str, dtype: torch.dtype = torch.float32) -> str | None:
    """Why a backend cannot run on a device type, or None."""
    return _load(name).unavailable(name, device_type, dtype)


def _routes() -> dict[str, str]:
    """What "auto" is for the tensors of a device type."""
    routes = {}
    for device in ("cpu", "cuda"):
        there = [name for name in _candidates(device) if _state(name, device) is None]
        routes[device] = there[0] if there else "reference"
        if there == ["cuda", "triton"]:
            routes[device] = "cuda, or triton for neurons that the CUDA kernels are not compiled for"
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

    return {
        "version": __version__,
        "compiled": native.compiled_facts(),
        "backends": {name: _state(name, known.device) or "available" for name, known in _REGISTRY.items()},
        "auto": _routes(),
    }
