"""SpikingJelly's multi-step neurons on our kernels.

Those of ``activation_based`` (2.0.0 and 0.0.0.0.14), and those of ``clock_driven`` (0.0.0.0.12 and 0.0.0.0.14), where
multi-step neurons are classes of their own.  No version is imported: their classes are known by name, and the nodes
keep their own code for what is not ours (single-step mode, ``store_v_seq``, an attribute that was changed to something
that we do not have).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import surrogate
from ..functional import bn_lif, lif
from ..neuron import Neuron, cached_neuron
from .adopt import Adopted, Unsupported, own_class
from .batch_norm import DeferredNorm, DeferringNorm

_NODES = ("IFNode", "LIFNode", "ParametricLIFNode")
_NORMS = ("BatchNorm", "ThresholdDependentBatchNorm")
_MULTI_STEP = "MultiStep"  # how the names of clock_driven's multi-step neurons start
_PACKAGE, _OLD = "spikingjelly.activation_based", "spikingjelly.clock_driven"
_SURROGATES: dict[str, type[surrogate.Surrogate]] = {
    "Sigmoid": surrogate.Sigmoid,
    "ATan": surrogate.ATan,
    "PiecewiseQuadratic": surrogate.Triangle,
    "PiecewiseExp": surrogate.PiecewiseExp,
    "SoftSign": surrogate.SoftSign,
    "SuperSpike": surrogate.SuperSpike,
    "Erf": surrogate.Erf,
    "Rect": surrogate.Rectangle,
}


def _belongs(cls: type, part: str) -> bool:
    """Whether a class is SpikingJelly's own, from its ``part`` (a module in 0.0.0.0.14, a package in 2.0.0)."""
    return any(f"{cls.__module__}.".startswith(f"{package}.{part}.") for package in (_PACKAGE, _OLD))


def _is_old(cls: type) -> bool:
    return cls.__module__ == f"{_OLD}.neuron"


def is_spikingjelly_neuron(module: nn.Module) -> bool:
    """Any of SpikingJelly's neurons, or a neuron that somebody derived from one."""
    return any(_belongs(cls, "neuron") for cls in type(module).__mro__)


def _surrogate_of(function: Any) -> tuple[type[surrogate.Surrogate], float]:
    """A surrogate's class and sharpness; or Unsupported."""
    cls = type(function)
    ours = _SURROGATES.get(cls.__name__) if _belongs(cls, "surrogate") else None
    if ours is None:
        raise Unsupported(f"surrogate_function {cls.__name__} has no counterpart in ckd_kernels.surrogate")
    if not function.spiking:
        raise Unsupported("surrogate_function has spiking=False, which outputs no spikes")
    return ours, function.alpha


def _leak_of(node: Any, own: type) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Charge of a node, its constant leak, and its learnable one."""
    kind, old = own.__name__.removeprefix(_MULTI_STEP), _is_old(own)
    if kind == "IFNode":
        return "integrate", {}, {}
    # Up to 0.0.0.0.14 this charge is written as a decay of v, but for a hard-resetting LIFNode in eval() in
    # activation_based.
    decays = (old or own.__module__ == f"{_PACKAGE}.neuron") and not node.decay_input and node.v_reset in (None, 0.0)
    if kind == "ParametricLIFNode":
        if node.w.dim() != 0:
            raise Unsupported(f"w has shape {tuple(node.w.shape)}; SpikingJelly's is one value")
        if decays:
            return "decay", {}, {"decay": 1.0 - node.w.sigmoid()}
        return "leak_input" if node.decay_input else "leak", {}, {"tau": 1.0 / node.w.sigmoid()}
    if decays and (old or node.training or node.v_reset is None):
        return "decay", {"decay": 1.0 - 1.0 / node.tau}, {}
    return "leak_input" if node.decay_input else "leak", {"tau": node.tau}, {}


def neuron_of(node: Any, own: type) -> tuple[Neuron, dict[str, Tensor]]:
    """The neuron that a node is now, and its learnable decay or tau, as arguments of `lif`; or Unsupported.

    Read at every call, because SpikingJelly's users change attributes on the way (``surrogate_function.alpha`` above
    all).
    """
    if getattr(node, "store_v_seq", False):
        raise Unsupported("store_v_seq=True needs the membrane potential of every time step, which is never stored")
    if getattr(node, "_neuron_precision", None) is not None:
        raise Unsupported("a neuron precision was set, which SpikingJelly's Triton kernels serve")
    charge, constant, learnable = _leak_of(node, own)
    try:
        neuron = cached_neuron(
            *_surrogate_of(node.surrogate_function),
            charge=charge,
            threshold=node.v_threshold,
            v_reset=node.v_reset,
            reset="soft" if node.v_reset is None else "hard",
            detach_reset=node.detach_reset,
            **constant,
        )
    except (TypeError, ValueError) as error:
        raise Unsupported(str(error)) from None
    return neuron, learnable


def plan_neuron(node: Any) -> type[Adopted]:
    """What to put before a SpikingJelly neuron's class; or Unsupported."""
    kind = type(node).__name__
    if _is_old(type(node)):
        return _plan_old_neuron(node)
    if kind not in _NODES or not _belongs(type(node), "neuron"):
        raise Unsupported(f"{kind} is none of {', '.join(_NODES)}, and what is derived from them may compute anything")
    if node.step_mode != "m":
        raise Unsupported("step_mode is 's'; call functional.set_step_mode(net, 'm') first")
    neuron_of(node, type(node))
    return MultiStepNode


def _plan_old_neuron(node: Any) -> type[Adopted]:
    kind = type(node).__name__
    if kind in _NODES:
        raise Unsupported(f"{kind} takes one time step a call; make it a {_MULTI_STEP}{kind}, which takes all of them")
    if kind.removeprefix(_MULTI_STEP) not in _NODES:
        raise Unsupported(f"{kind} is none of {', '.join(_MULTI_STEP + name for name in _NODES)}")
    if "v_seq" not in node._memories or "spike_seq" in node._memories:
        raise Unsupported("it is of a SpikingJelly before 0.0.0.0.12, whose neurons may compute something else")
    if node.backend == "lava":
        raise Unsupported("backend='lava' computes in integers; leave it 'torch' or 'cupy'")
    neuron_of(node, type(node))
    return ClockDrivenNode


def plan_norm(norm: Any) -> type[Adopted] | None:
    """What to put before the class of a SpikingJelly normalisation over time and batch; None for anything else."""
    cls = type(norm)
    known = cls.__name__[:-2] in _NORMS and cls.__name__[-2:] in ("1d", "2d", "3d") and _belongs(cls, "layer")
    return DeferringNorm if known and norm.step_mode == "m" else None


if TYPE_CHECKING:
    _Base = nn.Module
else:
    _Base = object


class MultiStepNode(Adopted, _Base):
    """A SpikingJelly neuron whose multi-step mode is one call of `lif`, or of `bn_lif` after a `DeferringNorm`."""

    v: Any

    def current_neuron(self) -> tuple[Neuron, dict[str, Tensor]]:
        """Its neuron and learnable leak, as arguments of `lif`; or Unsupported."""
        return neuron_of(self, own_class(self))

    def multi_step_forward(self, x_seq: Any, *args: Any, **kwargs: Any) -> Any:
        """Spikes of ``[T, B, ...]`` currents; the membrane potential stays in ``self.v``, as ever."""
        return self._run("multi_step_forward", x_seq, *args, **kwargs)

    def _run(self, own_way: str, x_seq: Any, *args: Any, **kwargs: Any) -> Any:
        """On our kernels, or by the module's own method ``own_way``."""
        v, frame, device = self.v, x_seq.shape[1:], x_seq.device
        try:
            if isinstance(v, Tensor) and (v.shape != frame or v.device != device):
                raise Unsupported("what a state that does not fit means differs between SpikingJelly's versions")
            neuron, leak = self.current_neuron()
        except Unsupported:
            return getattr(own_class(self), own_way)(self, _tensor(x_seq), *args, **kwargs)
        if isinstance(v, float):
            v = None if v == neuron.rest else torch.full(frame, v, dtype=torch.float64, device=device)
        deferred = x_seq.take() if isinstance(x_seq, DeferredNorm) else None
        if deferred is not None:
            y, normalisation = deferred
            out: Any = bn_lif(y, neuron=neuron, v_init=v, return_v=True, **normalisation, **leak)  # type: ignore[call-overload]
            x_seq.counted()
        else:
            out = lif(_tensor(x_seq), neuron, v_init=v, return_v=True, **leak)  # type: ignore[call-overload]
        self.v = out.v
        return out.spikes


class ClockDrivenNode(MultiStepNode):
    """A multi-step neuron of ``clock_driven``, of which this is what it does."""

    v_seq: Any

    def forward(self, x_seq: Any) -> Any:
        """Spikes of ``[T, B, ...]`` currents; ``v_seq``, the potential of every time step, is None: not stored."""
        self.v_seq = None
        return self._run("forward", x_seq)


def _tensor(x: Any) -> Tensor:
    return x.tensor() if isinstance(x, DeferredNorm) else x
