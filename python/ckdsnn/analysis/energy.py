"""Operations and energy of an inference: multiply-accumulates where a layer reads real numbers, accumulations where it
reads spikes, counted while samples pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ckdsnn.models import SNN
from ckdsnn.models.layout import Projection

# Horowitz: Computing's energy problem (ISSCC 2014): 45 nm, float32; an addition 0.9 pJ, with a multiplication 4.6 pJ.
MAC_PJ, AC_PJ = 4.6, 0.9
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
KINDS = ("binary", "integer", "real")
PJ_TO_MJ = 1e-9

_ATEN = torch.ops.aten
# Where an operator has the two factors of its product.
_FACTORS = {
    _ATEN.convolution: (0, 1), _ATEN._convolution: (0, 1), _ATEN.mm: (0, 1), _ATEN.addmm: (1, 2), _ATEN.bmm: (0, 1),
    _ATEN.baddbmm: (1, 2),
}  # fmt: skip


@dataclass
class LayerCount:
    """What one layer computes, summed over the samples that it has seen.

    Attributes:
        name: of its module; the products of activations in an attention are numbered.
        macs: multiply-accumulates if nothing were sparse, positions of padding included, of all samples and steps.
        samples: how many there were.
        steps: how often a sample passes: T, or 1 where the layer sees an image once for all time steps.
        kind: of its input, measured: "binary" (all values 0 or 1), "integer" (whole and not negative), "real".
        inputs: how many input values it has read.
        total: their sum: of spikes, how many arrived.
        nonzero: how many were not 0.
    """

    name: str
    macs: int = 0
    samples: int = 0
    steps: int = 1
    kind: str = "binary"
    inputs: int = 0
    total: float = 0.0
    nonzero: int = 0
    rows: int = field(default=0, repr=False)

    @property
    def macs_per_step(self) -> int:
        """MAC_l: multiply-accumulates of one sample in one time step."""
        return self.macs // (self.samples * self.steps)

    @property
    def rate(self) -> float | None:
        """fr_l: spikes per input and time step; None of real numbers. Above 1 it can be where spikes were added."""
        return None if self.kind == "real" or not self.inputs else self.total / self.inputs

    def operations(self, *, integers_as_spikes: bool = False) -> tuple[float, float]:
        """Multiply-accumulates and accumulations of one sample over all time steps, (MAC, AC).

        Spikes cost accumulations, ``fr_l * T * MAC_l`` of them, everything else multiply-accumulates, ``T * MAC_l``.

        Args:
            integers_as_spikes: whole numbers, as sums of spikes are, count as that many spikes each; else only an input
                of zeros and ones is made of spikes.
        """
        if self.kind == "binary" or (integers_as_spikes and self.kind == "integer"):
            return 0.0, self.total * self.macs / self.inputs / self.samples
        return self.macs / self.samples, 0.0

    def millijoules(
        self, mac_pj: float = MAC_PJ, ac_pj: float = AC_PJ, *, integers_as_spikes: bool = False
    ) -> tuple[float, float]:
        """Energy of one sample's multiply-accumulates and accumulations, in mJ; see :meth:`operations`."""
        mac, ac = self.operations(integers_as_spikes=integers_as_spikes)
        return mac * mac_pj * PJ_TO_MJ, ac * ac_pj * PJ_TO_MJ


class OperationCounter(TorchDispatchMode):
    """Counts what convolutions, linear layers and matrix products of a network compute while it is open.

    Convolutions, linear layers and the products of queries, keys and values in attentions are counted, whoever calls
    them; normalisation, neurons, pooling and additions are not, as is usual. Of a product of two activations the first
    factor is the input, unless the second alone is binary. A pooled 1x1 convolution
    (:class:`~ckdsnn.models.layout.Projection`) is counted as such on every device.

    Args:
        network: is not changed, and runs without gradients while it is counted.
        time_steps: T of a spiking network; None: the network's own, or 1.

    Attributes:
        layers: counts by layer, in the order in which they run.

    Example:
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Linear(4, 3, bias=False))
        >>> with OperationCounter(network) as counter:
        ...     counter(torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
        >>> counter.layers["0"].operations()  # 2 spikes, to 3 neurons each
        (0.0, 6.0)
    """

    def __init__(self, network: nn.Module, time_steps: int | None = None) -> None:
        super().__init__()
        self.network = network
        own = network.time_steps if isinstance(network, SNN) else 1
        self.time_steps = own if time_steps is None else time_steps
        self.layers: dict[str, LayerCount] = {}
        self.samples = 0
        self._inside: list[tuple[str, nn.Module]] = []
        self._products: dict[str, int] = {}
        self._held = contextlib.ExitStack()

    def __call__(self, images: Tensor) -> None:
        """Runs the network on images [B, ...] or frames [T, B, C, H, W] and counts them as B samples."""
        samples = images.shape[1] if images.dim() == 5 else len(images)
        self.samples += samples
        self._products.clear()
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # which is made of products that can be seen
            self.network(images)
        for layer in self.layers.values():
            layer.samples = self.samples
            layer.steps = self.time_steps if layer.rows % (self.time_steps * self.samples) == 0 else 1

    def __enter__(self) -> OperationCounter:
        for name, module in self.network.named_modules():
            self._held.callback(module.register_forward_pre_hook(self._entering(name)).remove)
            self._held.callback(module.register_forward_hook(self._leave, always_call=True).remove)
            if isinstance(module, Projection):
                self._held.enter_context(_pooling_apart(module))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._held.close()

    def _entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, args: Any) -> None:
            self._inside.append((name, module))

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._inside.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        factors = _FACTORS.get(func._overloadpacket)
        if factors is not None and self._inside:
            first, second = (args[place] for place in factors)
            macs = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out) // 2
            self._count(first, second, macs)
        return out

    def _count(self, first: Tensor, second: Tensor, macs: int) -> None:
        name, module = self._inside[-1]
        entered = first
        if not (isinstance(module, LAYERS) or _is_parameter(second, module)):
            if _is_parameter(first, module):
                entered = second
            else:
                number = self._products[name] = self._products.get(name, 0) + 1
                name = f"{name}.product{number}"
                if _kind(first) != "binary" and _kind(second) == "binary":
                    entered = second
        layer = self.layers.setdefault(name, LayerCount(name))
        layer.macs += macs
        layer.rows += len(first)
        layer.inputs += entered.numel()
        layer.nonzero += int(entered.count_nonzero())
        layer.total += float(entered.sum(dtype=torch.float64))
        layer.kind = max(layer.kind, _kind(entered, layer.kind), key=KINDS.index)


def _kind(values: Tensor, at_least: str = "binary") -> str:
    if at_least == "real":
        return "real"
    if at_least == "binary" and bool(((values == 0) | (values == 1)).all()):
        return "binary"
    return "integer" if bool(((values >= 0) & (values.floor() == values) & values.isfinite()).all()) else "real"


def _is_parameter(tensor: Tensor, module: nn.Module) -> bool:
    """Whether `tensor` is a parameter of `module` itself, or a view of one."""
    places = (parameter.untyped_storage().data_ptr() for parameter in module.parameters(recurse=False))
    return tensor.untyped_storage().data_ptr() in places


@contextlib.contextmanager
def _pooling_apart(projection: Projection) -> Iterator[None]:
    projection.forward = MethodType(nn.Sequential.forward, projection)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del projection.forward


def energy_of(
    layers: dict[str, LayerCount], mac_pj: float = MAC_PJ, ac_pj: float = AC_PJ, *, integers_as_spikes: bool = False
) -> float:
    """Energy of one sample in all layers, in mJ; see :meth:`LayerCount.operations`."""
    return sum(
        sum(layer.millijoules(mac_pj, ac_pj, integers_as_spikes=integers_as_spikes)) for layer in layers.values()
    )


def energy_of_ann(layers: dict[str, LayerCount], mac_pj: float = MAC_PJ) -> float:
    """Energy of one sample in a conventional network, in mJ: every operation is a multiply-accumulate."""
    return sum(layer.macs / layer.samples for layer in layers.values()) * mac_pj * PJ_TO_MJ
