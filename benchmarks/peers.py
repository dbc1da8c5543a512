"""What our kernels are compared with.

Functions and modules take input currents [T, ...] and return spikes.  Unless one says otherwise they are the neuron of
the CKDSNN paper (`Neuron.paper()`): decay 0.5, spike above 1, hard reset to 0 through the graph, triangle surrogate.
Libraries that are not installed raise `Unavailable` with the reason.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


class Unavailable(Exception):
    """A peer that cannot run here, and why."""


class TriangleSpike(torch.autograd.Function):
    """A spike where ``u > 0``; its derivative is ``max(0, 1 - |u|)``."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return grad * (1 - u.abs()).clamp(min=0)


def published_loop(x: Tensor, time_dim: int = 0) -> Tensor:
    """As the paper's code has it: x is indexed at every step, so its gradient is T full-size tensors, added up."""
    v: Tensor | float = 0.0
    spikes = []
    for t in range(x.shape[time_dim]):
        v = v * 0.5 + x.select(time_dim, t)
        s = TriangleSpike.apply(v - 1.0)
        v = (1 - s) * v
        spikes.append(s)
    return torch.stack(spikes, time_dim)


def fair_loop(x: Tensor, decay: Tensor | float = 0.5) -> Tensor:
    """The same steps over ``x.unbind()``, whose backward is one stack."""
    v: Tensor | float = 0.0
    spikes = []
    for current in x.unbind():
        v = v * decay + current
        s = TriangleSpike.apply(v - 1.0)
        v = (1 - s) * v
        spikes.append(s)
    return torch.stack(spikes)


@functools.cache
def compiled_loop() -> Callable[..., Tensor]:
    """The fair loop through `torch.compile`, one static graph for each shape."""
    return torch.compile(fair_loop, dynamic=False)


def neuron_step(spikes_of: Callable[[Tensor], Tensor], x: Tensor, upstream: Tensor) -> Callable[[], None]:
    """One call: forward and backward from ``upstream`` where x requires a gradient, else forward without a graph."""
    with torch.no_grad():
        # snnTorch's spikes are float32 whatever goes in.
        upstream = upstream.to(spikes_of(x).dtype)
    parameters = list(spikes_of.parameters()) if isinstance(spikes_of, nn.Module) else []

    def step() -> None:
        if not x.requires_grad:
            with torch.no_grad():
                spikes_of(x)
            return
        spikes_of(x).backward(upstream)
        for tensor in (x, *parameters):
            tensor.grad = None

    return step


def mean_map(spikes: Tensor) -> Tensor:
    """A spike activation map as one writes it in PyTorch; in float32, where 2-byte sums would saturate."""
    return spikes.mean((0, 2), dtype=torch.float32)


# SpikingJelly: 2.0.0 chooses its implementation by device; on a GPU SJ_LIF_CUDA_IMPLEMENTATION and
# SJ_PLIF_CUDA_IMPLEMENTATION (cuda, triton, torch), set before Python starts, choose for it.  0.0.0.0.14 has CuPy.


def spikingjelly(*, learn: bool = False, backend: str | None = None) -> nn.Module:
    """SpikingJelly's neuron over [T, ...], at rest before every call (it fires at ``>=``); ``learn``: learnable tau.

    Args:
        backend: ``"cupy"`` in 0.0.0.0.14; None for what the release does by itself.
    """
    neuron = library("spikingjelly", "spikingjelly.activation_based.neuron")
    surrogate = library("spikingjelly", "spikingjelly.activation_based.surrogate")
    options: dict[str, Any] = {"decay_input": False, "step_mode": "m"}
    options["surrogate_function"] = surrogate.PiecewiseQuadratic(alpha=1.0)
    if backend is not None:
        version = importlib.metadata.version("spikingjelly")
        if not version.startswith("0.0."):
            raise Unavailable(f"SpikingJelly {version} has no backend {backend!r}; install spikingjelly==0.0.0.0.14")
        library("cupy", "cupy")
        options["backend"] = backend
    if learn:
        return _FromRest(neuron.ParametricLIFNode(init_tau=2.0, **options))
    return _FromRest(neuron.LIFNode(tau=2.0, **options))


class _FromRest(nn.Module):
    """Resets a stateful neuron before it is called."""

    def __init__(self, neuron: Any) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        self.neuron.reset()
        spikes: Tensor = self.neuron(x)
        return spikes


def snntorch(*, learn: bool = False) -> nn.Module:
    """snnTorch's Leaky over [T, ...], reset to zero at once; the surrogate is fast sigmoid, the reset detached."""
    package = library("snntorch", "snntorch")
    surrogate = library("snntorch", "snntorch.surrogate")
    leaky = package.Leaky(
        beta=0.5, learn_beta=learn, reset_mechanism="zero", reset_delay=False, spike_grad=surrogate.fast_sigmoid()
    )
    return _Steps(leaky, leaky.reset_mem)


def norse() -> nn.Module:
    """norse's LIFBox over [T, ...]: ``v + (x - v)/2``, SuperSpike surrogate."""
    package = library("norse", "norse.torch")
    functional = library("norse", "norse.torch.functional.lif_box")
    cell = package.LIFBoxCell(functional.LIFBoxParameters(tau_mem_inv=torch.as_tensor(500.0)), dt=0.001)
    return _Steps(cell, lambda: None)


class _Steps(nn.Module):
    """A cell (current, state) -> (spikes, state), one time step after the other, from the state that ``rest`` makes."""

    def __init__(self, cell: nn.Module, rest: Callable[[], Any]) -> None:
        super().__init__()
        self.cell, self.rest = cell, rest

    def forward(self, x: Tensor) -> Tensor:
        state = self.rest()
        spikes = []
        for current in x.unbind():
            s, state = self.cell(current, state)
            spikes.append(s)
        return torch.stack(spikes)


def library(package: str, module: str) -> ModuleType:
    """The module, or `Unavailable` that names the package.

    An installed package that fails to import is a fault to be seen, so nothing else is caught.
    """
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise Unavailable(f"{package} is not installed") from None
    return importlib.import_module(module)
