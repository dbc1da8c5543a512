"""Which normalisation feeds which neuron, read off the models' own ``forward``."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)
_ADDITIONS = {operator.add, operator.iadd, torch.add}


def consumers(model: nn.Module, norms: set[nn.Module], neurons: set[nn.Module]) -> dict[nn.Module, nn.Module | str]:
    """For each normalisation, the only neuron that its output goes to, perhaps with a residual added; or why not.

    One that is followed by something else than one of ``neurons`` is left out, and so is the second of two whose sum a
    neuron takes: it is the residual of the first.
    """
    found: dict[nn.Module, nn.Module | str] = {}
    for owner in _owners(model):
        inside = dict(_inside(owner))
        if not norms.isdisjoint(inside.values()) and not neurons.isdisjoint(inside.values()):
            _consumers_in(owner, inside, norms, neurons, found)
    return found


def _is_sequential(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward


def _owners(model: nn.Module) -> Iterator[nn.Module]:
    """Modules whose ``forward`` is somebody's code; a Sequential's belongs to who calls it."""
    for module in model.modules():
        if module is model or not (_is_sequential(module) or isinstance(module, _CONTAINERS)):
            yield module


def _inside(owner: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules that an owner's ``forward`` may call, under their names."""
    for name, child in owner.named_children():
        yield prefix + name, child
        if _is_sequential(child) or isinstance(child, _CONTAINERS):
            yield from _inside(child, prefix + name + ".")


def _consumers_in(
    owner: nn.Module,
    inside: dict[str, nn.Module],
    norms: set[nn.Module],
    neurons: set[nn.Module],
    found: dict[nn.Module, nn.Module | str],
) -> None:
    try:
        graph = _Tracer().trace(_skeleton(owner))
    except Exception as error:  # A forward may do anything.
        reason = f"the forward of {type(owner).__name__} cannot be traced: {str(error).splitlines()[0]}"
        found.update({m: reason for m in inside.values() if m in norms})
        for child in inside.values():
            if _is_sequential(child):
                _consumers_in(child, dict(_inside(child)), norms, neurons, found)
        return
    calls: dict[nn.Module, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module" and str(node.target) in inside:
            calls.setdefault(inside[str(node.target)], []).append(node)
    for norm in (m for m in calls if m in norms):
        if len(calls[norm]) > 1:
            found[norm] = f"it is called {len(calls[norm])} times"
            continue
        user = _only_user(calls[norm][0])
        if user is not None and _adds(user):
            user = _only_user(user)
        if user is None:
            found[norm] = "its output goes to more than one neuron"
        elif user.op == "call_module" and inside.get(str(user.target)) in neurons.difference(found.values()):
            found[norm] = inside[str(user.target)]
        else:
            found.pop(norm, None)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _adds(node: fx.Node) -> bool:
    adds = node.target in _ADDITIONS if node.op == "call_function" else node.target in ("add", "add_")
    two = len(node.args) == 2 and not node.kwargs and node.args[0] is not node.args[1]
    return (
        adds and two and node.op in ("call_function", "call_method") and all(isinstance(a, fx.Node) for a in node.args)
    )


class _Tracer(fx.Tracer):
    """Looks at one module's own code: what it calls is a leaf."""

    proxy_buffer_attributes = True  # a forward that changes a buffer must not change it now

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not _is_sequential(m)


def _skeleton(owner: nn.Module) -> nn.Module:
    """A copy that shares every tensor: whatever a ``forward`` writes into its modules on the way, the model keeps."""
    memo: dict[int, Any] = {}
    for module in owner.modules():
        for value in vars(module).values():
            for tensor in value.values() if isinstance(value, dict) else (value,):
                if isinstance(tensor, Tensor):
                    memo[id(tensor)] = tensor
    return copy.deepcopy(owner, memo)
