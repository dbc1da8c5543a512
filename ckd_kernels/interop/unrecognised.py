"""What looks like a spiking neuron or is a batch normalisation, and is not converted: reported, not passed over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_CLASS = re.compile(r"LIF|(^|[a-z_])IF([A-Z_]|$)|[Ss]pik|[Nn]euron|^Leaky|Izhikevich|Lapicque|Synaptic|HodgkinHuxley")
_NAME = re.compile(r"(^|_)(p?lif|sn|spikes?|spiking|neurons?)\d*($|_)", re.IGNORECASE)
_MODULES = frozenset({"neuron", "neurons", "_neurons"})


def _looks_spiking(module: nn.Module, names: Iterable[str]) -> bool:
    """By its class's name, the file that its class is in, or its own name; PyTorch's and our own classes do not."""
    classes = [c for c in type(module).__mro__ if c.__module__.partition(".")[0] not in ("torch", "builtins", "abc")]
    if not classes or type(module).__module__.startswith("ckd_kernels."):
        return False
    if any(_CLASS.search(c.__name__) or not _MODULES.isdisjoint(c.__module__.split(".")) for c in classes):
        return True
    return any(_NAME.search(name.rpartition(".")[2]) for name in names)


def unrecognised_neurons(names: Mapping[nn.Module, list[str]], known: set[nn.Module]) -> dict[nn.Module, str]:
    """Modules that look spiking and are none of those that are known, nor made of neurons, nor part of one."""
    parts = {child for module in known for child in module.modules()}
    looking = [m for m in names if m not in parts and _looks_spiking(m, names[m])]
    outer = {m for m in looking if any(c is not m and (c in known or c in looking) for c in m.modules())}
    return {
        m: f"it looks like a spiking neuron, and nothing is known of a {type(m).__name__} of {type(m).__module__}"
        for m in looking
        if m not in outer
    }


def unfused_norms(names: Mapping[nn.Module, list[str]]) -> dict[nn.Module, str]:
    """Batch normalisations of a kind that no neuron computes, though one might follow."""
    reasons: dict[nn.Module, str] = {}
    for module in names:
        if not isinstance(module, _BatchNorm) or type(module).__module__.startswith("ckd_kernels."):
            continue
        if not type(module).__module__.startswith("spikingjelly.activation_based."):
            reasons[module] = "it is not over [T, B, C, ...], as SpikingJelly's layer.BatchNorm*d with step_mode='m'"
        elif getattr(module, "step_mode", "m") != "m":
            reasons[module] = "step_mode is 's'; call functional.set_step_mode(net, 'm') first"
    return reasons


def norms_apart(names: Mapping[nn.Module, list[str]], known: set[nn.Module]) -> dict[nn.Module, str]:
    """The batch normalisations that are left: none has a neuron that could compute it."""
    reason = "its output is no neuron's input, or the residual in another one's"
    return {m: reason for m in names if isinstance(m, _BatchNorm) and m not in known}
