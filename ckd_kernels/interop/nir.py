"""Export to and import from NIR, the Neuromorphic Intermediate Representation (``pip install "ckd-kernels[nir]"``).

Pedersen et al., "Neuromorphic intermediate representation: A unified instruction set for interoperable brain-inspired
computing", Nature Communications 15, 2024.  NIR's neurons are differential equations; with a time step ``dt``::

    LIF   tau*dv/dt = (v_leak - v) + r*x     v + (r*x - (v - v_leak)) / (tau/dt)
    IF    dv/dt = r*x                        v + r*dt*x

so that ``charge="leak_input"`` is a LIF with ``r = 1``, ``"leak"`` and ``"decay"`` are LIFs with ``r = tau/dt``, and
``"integrate"`` is an IF with ``r = 1/dt``.
"""

from __future__ import annotations

import copy
import dataclasses
import graphlib
import operator
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..arguments import check_number
from ..layers import IF, LIF, BatchNormLIF, ParametricLIF
from ..neuron import Neuron
from ..surrogate import BY_NAME, Surrogate, Triangle
from .adopt import Unsupported

__all__ = ["from_nir", "to_nir"]

_METADATA = "ckd_kernels"  # the neuron's own specification: what NIR rounds, and what it does not know


def to_nir(model: nn.Module, sample: Tensor, *, dt: float = 1e-4) -> Any:
    """Writes a multi-step model as a NIR graph.

    NIR's neurons fire above the threshold and reset to ``v_reset``.  It knows nothing of surrogates, of a detached
    reset or of firing at the threshold exactly; these are kept beside it, in ``metadata``, where `from_nir` finds them.

    Args:
        model: made of spiking layers (``layers.LIF``, ``IF``, ``ParametricLIF``, or converted neurons), linear layers,
            1-d and 2-d convolutions, flattening, and sums of their outputs; traced by `torch.fx`.  Normalisation is no
            part of NIR: fold it into the convolution before it.
        sample: an input of the model, with all its time steps, for the shapes.
        dt: duration of a time step in the unit of NIR's time constants (seconds; snnTorch assumes 1e-4).

    Returns:
        A ``nir.NIRGraph``, for ``nir.write``.

    Raises:
        ImportError: nir or nirtorch is not installed.
        TypeError, ValueError: an argument of a wrong type, or a ``dt`` that is not > 0.
        ValueError: a module that NIR has no node for, a neuron that does not reset to ``v_reset``, or one that leaks
            differently in each channel.

    Example:
        >>> from ckd_kernels import layers
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), layers.LIF())
        >>> [type(n).__name__ for n in to_nir(model, torch.rand(5, 2, 8)).nodes.values()]  # doctest: +SKIP
        ['Input', 'Affine', 'LIF', 'Output']
    """
    nir = _library("nir")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if not isinstance(sample, Tensor):
        raise TypeError(f"sample must be a torch.Tensor, got {type(sample).__name__}")
    _check_dt(dt)
    shapes = _frame_shapes(model, sample)
    nodes = {module: _node(nir, name, module, shapes[name], dt) for name, module in _leaves(model)}
    graph = _library("nirtorch").torch_to_nir(model, {type(module): nodes.__getitem__ for module in nodes})
    return graph if isinstance(graph, nir.NIRGraph) else nir.NIRGraph.from_list(graph)


def from_nir(graph: Any, *, dt: float = 1e-4, surrogate: Surrogate | None = None) -> nn.Module:
    """Builds a model from a NIR graph: stateless, all time steps at once, ``[T, B, ...]``.

    Args:
        graph: a ``nir.NIRGraph`` with one input and one output and without recurrent connections, of IF, LIF, Linear,
            Affine, Conv1d, Conv2d and Flatten nodes.
        dt: duration of a time step in the unit of the graph's time constants.
        surrogate: for neurons that do not come from `to_nir`, which knows better; default the triangle.

    Returns:
        A `torch.fx.GraphModule` whose modules have the nodes' names.

    Raises:
        ImportError: nir is not installed.
        TypeError, ValueError: an argument of a wrong type, or a ``dt`` that is not > 0.
        ValueError: a node that we do not have, a neuron whose parameters differ within its population or that is none
            of ours, or recurrent connections.

    Example:
        >>> import nir  # doctest: +SKIP
        >>> model = from_nir(nir.read("network.nir"))  # doctest: +SKIP
        >>> spikes = model(torch.rand(100, 1, 8))  # doctest: +SKIP
    """
    nir = _library("nir")
    if not isinstance(graph, nir.NIRGraph):
        raise TypeError(f"graph must be a nir.NIRGraph, e.g. nir.read(file); got {type(graph).__name__}")
    _check_dt(dt)
    if surrogate is not None and type(surrogate) not in BY_NAME.values():
        raise TypeError(f"surrogate must be one of ckd_kernels.surrogate, e.g. Triangle(); got {surrogate!r}")
    root, traced = nn.Module(), fx.Graph()
    values: dict[str, fx.Node] = {}
    ends: list[fx.Node] = []
    sources: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in graph.edges:
        sources[target].append(source)
    try:
        order = list(graphlib.TopologicalSorter(sources).static_order())
    except graphlib.CycleError as error:
        raise ValueError(f"the graph has recurrent connections, {' -> '.join(error.args[1])}") from None
    for name in order:
        node = graph.nodes[name]
        if isinstance(node, nir.Input):
            values[name] = traced.placeholder("input")
            continue
        if not sources[name]:
            raise ValueError(f"node {name!r} has no input")
        value = values[sources[name][0]]
        for source in sources[name][1:]:
            value = traced.call_function(operator.add, (value, values[source]))
        if isinstance(node, nir.Output):
            ends.append(value)
        else:
            root.add_module(name.replace(".", "_"), _module(nir, name, node, dt, surrogate or Triangle()))
            value = traced.call_module(name.replace(".", "_"), (value,))
        values[name] = value
    inputs = sum(isinstance(node, nir.Input) for node in graph.nodes.values())
    if inputs != 1 or len(ends) != 1:
        raise ValueError(f"the graph must have one input and one output, got {inputs} and {len(ends)}")
    traced.output(ends[0])
    return fx.GraphModule(root, traced)


def _check_dt(dt: float) -> None:
    check_number("dt", dt, low=5e-324, high=sys.float_info.max, expected="a finite number > 0")


def _library(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise ImportError(f"NIR needs the packages nir and nirtorch ({error}); pip install nir nirtorch") from error


_LAYERS = (IF, LIF, ParametricLIF)
_STATELESS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Flatten)


def _leaves(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules that become nodes."""
    if isinstance(model, (*_LAYERS, *_STATELESS)) or hasattr(model, "current_neuron"):
        yield prefix, model
        return
    if isinstance(model, BatchNormLIF) or next(model.children(), None) is None:
        raise ValueError(f"NIR has no node for {prefix or 'the model'}, a {type(model).__name__}")
    for name, child in model.named_children():
        yield from _leaves(child, f"{prefix}.{name}" if prefix else name)


def _frame_shapes(model: nn.Module, sample: Tensor) -> dict[str, torch.Size]:
    """Shape of every leaf's input, without time and batch."""
    shapes: dict[str, torch.Size] = {}
    model = copy.deepcopy(model)
    for name, module in _leaves(model):
        module.register_forward_pre_hook(lambda _, args, name=name: shapes.update({name: args[0].shape[2:]}))
    with torch.no_grad():
        model(sample)
    return shapes


def _node(nir: Any, name: str, module: Any, frame: torch.Size, dt: float) -> Any:
    if not isinstance(module, _STATELESS):
        return _neuron_node(nir, name, _neuron_of(name, module), frame, dt)
    if isinstance(module, nn.Flatten):
        # SpikingJelly's multi-step layers count dimensions without time.
        leading = 1 if getattr(module, "step_mode", None) == "m" else 2
        start, end = (d - leading if d >= 0 else d for d in (module.start_dim, module.end_dim))
        if start < -len(frame):
            raise ValueError(f"{name} flattens time or batch, which NIR does not have")
        return nir.Flatten({"input": np.array(frame)}, start, end)
    weight = module.weight.detach().cpu().numpy()
    bias = None if module.bias is None else module.bias.detach().cpu().numpy()
    if isinstance(module, nn.Linear):
        return nir.Linear(weight) if bias is None else nir.Affine(weight, bias)
    if module.padding_mode != "zeros":
        raise ValueError(f"{name} pads with padding_mode={module.padding_mode!r}; NIR's convolutions pad with zeros")
    if bias is None:
        bias = np.zeros(module.out_channels, weight.dtype)
    settings = module.stride, module.padding, module.dilation, module.groups, bias
    if isinstance(module, nn.Conv2d):
        node = nir.Conv2d(tuple(frame[1:]), weight, *settings)
    else:
        stride, padding, dilation, *rest = (s[0] if isinstance(s, tuple) else s for s in settings)
        node = nir.Conv1d(frame[1], weight, stride, padding, dilation, *rest)
    # nir 1.0.8 takes one group's channels for all.
    node.input_type = {"input": np.array(frame)}
    return node


def _neuron_of(name: str, module: Any) -> Neuron:
    try:
        neuron, leak = (module.neuron, module._leak()) if isinstance(module, _LAYERS) else module.current_neuron()
    except Unsupported as reason:
        raise ValueError(f"{name} was changed to what is not one of our neurons: {reason}") from None
    if any(value.numel() != 1 for value in leak.values()):
        raise ValueError(f"{name} leaks differently in each channel, which is not written to NIR")
    neuron = dataclasses.replace(neuron, **{key: value.item() for key, value in leak.items()})
    if neuron.reset != "hard":
        raise ValueError(f"{name} has reset={neuron.reset!r}; NIR's neurons reset to v_reset (reset='hard')")
    return neuron


def _neuron_node(nir: Any, name: str, neuron: Neuron, frame: tuple[int, ...], dt: float) -> Any:
    def fill(value: float) -> np.ndarray:
        return np.full(tuple(frame), value, np.float32)

    common = {
        "v_threshold": fill(neuron.threshold),
        "v_reset": fill(neuron.rest),
        "metadata": {_METADATA: neuron.spec},
    }
    if neuron.charge == "integrate" or neuron.decay == 1.0:
        return nir.IF(r=fill(1.0 / dt), **common)
    steps = 1.0 / (1.0 - neuron.decay) if neuron.decay is not None else neuron.tau
    assert steps is not None
    gain = 1.0 if neuron.charge == "leak_input" else steps
    leak = 0.0 if neuron.charge == "decay" else neuron.rest
    return nir.LIF(tau=fill(steps * dt), r=fill(gain), v_leak=fill(leak), **common)


class _OverTime(nn.Module):
    """A convolution over ``[T, B, ...]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])  # type: ignore[misc]


class _Conv1d(_OverTime, nn.Conv1d):
    pass


class _Conv2d(_OverTime, nn.Conv2d):
    pass


def _module(nir: Any, name: str, node: Any, dt: float, surrogate: Surrogate) -> nn.Module:
    if isinstance(node, (nir.IF, nir.LIF)):
        neuron = _read_neuron(nir, name, node, dt, surrogate)
        return IF(neuron) if neuron.charge == "integrate" else LIF(neuron)
    if isinstance(node, nir.Flatten):
        start, end = (int(d) + 2 if d >= 0 else int(d) for d in (node.start_dim, node.end_dim))
        return nn.Flatten(start, end)
    module: nn.Linear | nn.Conv1d | nn.Conv2d
    if isinstance(node, (nir.Linear, nir.Affine)):
        outputs, inputs = node.weight.shape
        module = nn.Linear(inputs, outputs, bias=isinstance(node, nir.Affine))
    elif isinstance(node, (nir.Conv1d, nir.Conv2d)):
        outputs, inputs, *kernel = node.weight.shape
        make: Any = _Conv1d if isinstance(node, nir.Conv1d) else _Conv2d
        stride, padding, dilation = (_plain(value) for value in (node.stride, node.padding, node.dilation))
        module = make(inputs * node.groups, outputs, tuple(kernel), stride, padding, dilation, int(node.groups))
    else:
        raise ValueError(f"node {name!r} is a {type(node).__name__}, which is not supported")
    with torch.no_grad():
        module.weight.copy_(torch.as_tensor(node.weight))
        if module.bias is not None:
            module.bias.copy_(torch.as_tensor(node.bias))
    return module


def _plain(value: Any) -> Any:
    """An int, a tuple of ints or a string, also where a file made arrays of them."""
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, str) else np.asarray(value).tolist()


def _read_neuron(nir: Any, name: str, node: Any, dt: float, surrogate: Surrogate) -> Neuron:
    fields = ("r", "v_threshold", "v_reset") + (("tau", "v_leak") if isinstance(node, nir.LIF) else ())
    for field in fields:
        values = np.asarray(getattr(node, field))
        if values.size == 0 or not (values == values.flat[0]).all():
            raise ValueError(f"{field} of node {name!r} differs within its population, or is empty")
    value = {field: float(np.asarray(getattr(node, field)).flat[0]) for field in fields}

    def written_as(neuron: Neuron) -> bool:
        """Whether the node says this neuron, to rounding: it may have been edited since it was written."""
        own = _neuron_node(nir, name, neuron, (), dt)
        return type(own) is type(node) and all(np.isclose(getattr(own, f), value[f], rtol=1e-5) for f in fields)

    spec = node.metadata.get(_METADATA)
    if spec is not None:
        neuron = Neuron.from_spec(spec.decode() if isinstance(spec, bytes) else spec)
        if written_as(neuron):
            return neuron
        surrogate = neuron.surrogate
    common = {"threshold": value["v_threshold"], "v_reset": value["v_reset"], "strict": True, "surrogate": surrogate}
    candidates: list[dict[str, Any]] = [{"charge": "integrate"}]
    if isinstance(node, nir.LIF):
        steps = value["tau"] / dt
        candidates = [{"charge": "leak_input", "tau": steps}, {"charge": "leak", "tau": steps}]
        candidates.append({"charge": "decay", "decay": 1.0 - 1.0 / steps})
    for candidate in candidates:
        try:
            neuron = Neuron(**candidate, **common)  # type: ignore[arg-type]
        except ValueError:  # a time constant shorter than this charge can have
            continue
        if written_as(neuron):
            return neuron
    raise ValueError(
        f"node {name!r} is none of our neurons with dt={dt}: {value}; r must be 1/dt in an IF, and 1 or tau/dt in a"
        " LIF, with v_leak = v_reset, or v_leak = 0 and r = tau/dt"
    )
