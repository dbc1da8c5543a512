"""snnTorch's ``Leaky`` over all time steps in one call."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import surrogate
from ..functional import LIFOutput, lif
from ..neuron import Neuron, cached_neuron
from .adopt import Adopted, Unsupported, adopt

# snnTorch's surrogates are closures: which function made them, and the variable that holds the sharpness.
_SURROGATES: dict[str, tuple[type[surrogate.Surrogate], str]] = {
    "atan": (surrogate.ATan, "alpha"),
    "fast_sigmoid": (surrogate.FastSigmoid, "slope"),
    "sigmoid": (surrogate.Sigmoid, "slope"),
}


def is_snntorch_neuron(module: nn.Module) -> bool:
    """Any of snnTorch's neurons, or a neuron that somebody derived from one."""
    return any(cls.__module__.startswith("snntorch._neurons.") for cls in type(module).__mro__)


def _surrogate_of(function: Any) -> tuple[type[surrogate.Surrogate], float]:
    """A surrogate's class and sharpness; or Unsupported."""
    maker = getattr(function, "__qualname__", type(function).__name__).partition(".")[0]
    if getattr(function, "__module__", "") != "snntorch.surrogate" or maker not in _SURROGATES:
        raise Unsupported(f"spike_grad {maker} has no counterpart in ckd_kernels.surrogate")
    ours, variable = _SURROGATES[maker]
    return ours, inspect.getclosurevars(function).nonlocals[variable]


def _neuron_of(leaky: Any) -> Neuron:
    """The neuron that a Leaky is, its beta aside; or Unsupported."""
    for option in ("surrogate_disable", "inhibition", "state_quant"):
        if getattr(leaky, option):
            raise Unsupported(f"{option}={getattr(leaky, option)!r} is not supported")
    for name in ("threshold", "graded_spikes_factor"):
        if isinstance(getattr(leaky, name), nn.Parameter):
            raise Unsupported(f"a learnable {name} is not supported")
    if leaky.threshold.numel() != 1:
        raise Unsupported("a threshold of its own for every neuron is not supported")
    if leaky.graded_spikes_factor.numel() != 1 or leaky.graded_spikes_factor.item() != 1.0:
        raise Unsupported("graded_spikes_factor must be 1: a spike is 0 or 1")
    reset = {"subtract": "soft_delayed", "zero": "hard", "none": "none"}[leaky.reset_mechanism]
    if reset == "soft_delayed" and not leaky.reset_delay:
        raise Unsupported(
            "reset_mechanism='subtract' with reset_delay=False subtracts twice from a potential that is"
            " above the threshold after its reset, which is none of our resets"
        )
    try:
        return cached_neuron(
            *_surrogate_of(leaky.spike_grad),
            charge="decay",
            threshold=leaky.threshold.item(),
            strict=True,
            reset=reset,
            detach_reset=reset != "none" and leaky.reset_delay,
        )
    except (TypeError, ValueError) as error:
        raise Unsupported(str(error)) from None


if TYPE_CHECKING:
    _Base = nn.Module
else:
    _Base = object


_BLANK = object()  # what copy and pickle make, to be filled


class MultiStep(Adopted, _Base):
    """Makes a ``snntorch.Leaky`` take all time steps in one call, ``[T, B, ...]``, instead of one a call.

    It replaces the loop ``for step in range(T): spk, mem = leaky(x[step], mem)``: given all of ``x`` it returns the
    spikes of all time steps, and the membrane potential after the last.  The neuron stays the object that it was, with
    another ``forward``: ``state_dict``, learnable ``beta``, ``mem``, ``reset_mem`` and ``snntorch.utils.reset`` are as
    ever.  Spikes are equal to the loop's, bit by bit, in float32; with 2-byte input, arithmetic is float32 and spikes
    are of the input's dtype.  With ``reset_mechanism="zero"`` the potential that is returned has been reset already,
    where snnTorch's resets at the start of the next step; the spikes that follow are the same.

    Args:
        neuron: a ``snntorch.Leaky``; not with ``learn_threshold``, ``inhibition``, ``state_quant``,
            ``surrogate_disable``, graded spikes, a surrogate that we do not have, or ``reset_delay=False`` with
            ``reset_mechanism="subtract"``.  ``beta`` is one value or one a channel (``[C]``, or ``[C, 1, 1]``).

    Returns:
        The neuron itself.  Called, it returns what Leaky does: ``(spk, mem)``, or ``spk`` with ``init_hidden`` and
        without ``output``.

    Raises:
        TypeError: ``neuron`` is no Leaky.
        ValueError: an option that is not supported; the neuron is untouched.

    Example:
        >>> import snntorch  # doctest: +SKIP
        >>> leaky = MultiStep(snntorch.Leaky(beta=0.9))  # doctest: +SKIP
        >>> spk, mem = leaky(torch.rand(25, 2, 10))  # doctest: +SKIP
        >>> spk.shape, mem.shape  # doctest: +SKIP
        (torch.Size([25, 2, 10]), torch.Size([2, 10]))
    """

    mem: Tensor

    def __new__(cls, neuron: Any = _BLANK) -> Any:
        if neuron is _BLANK:
            return super().__new__(cls)
        if type(neuron).__name__ != "Leaky" or not is_snntorch_neuron(neuron):
            raise TypeError(f"neuron must be a snntorch.Leaky, got {type(neuron).__name__}")
        try:
            _neuron_of(neuron)
        except Unsupported as reason:
            raise ValueError(f"this Leaky cannot run on our kernels: {reason}") from None
        adopt(neuron, MultiStep)
        return neuron

    def __init__(self, neuron: Any) -> None:
        """It is initialised already."""

    def current_neuron(self) -> tuple[Neuron, dict[str, Tensor]]:
        """Its neuron and its beta, as arguments of `lif`."""
        try:
            return _neuron_of(self), {"decay": self.beta.clamp(0, 1)}  # type: ignore[operator]
        except Unsupported as reason:
            raise ValueError(f"this Leaky was changed to what our kernels do not do: {reason}") from None

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        """Spikes of ``[T, B, ...]`` currents, and the potential after the last time step."""
        if mem is not None:
            if self.init_hidden:
                raise TypeError("`mem` should not be passed as an argument while `init_hidden=True`")
            self.mem = mem
        neuron, leak = self.current_neuron()
        v = self.mem if self.mem.shape == input_.shape[1:] else None
        if v is not None and neuron.reset == "hard":
            v = torch.where(v > neuron.threshold, 0.0, v)
        beta = leak["decay"]
        out = lif(
            input_,
            neuron,
            v_init=v,
            decay=beta if beta.numel() == 1 else self._per_channel(beta, input_),
            return_v=True,
            channel_dim=None if beta.numel() == 1 else 2,
        )
        assert isinstance(out, LIFOutput)
        assert out.v is not None
        self.mem = out.v
        return out.spikes if self.init_hidden and not self.output else (out.spikes, out.v)

    @staticmethod
    def _per_channel(beta: Tensor, input_: Tensor) -> Tensor:
        frame = input_.dim() - 1
        if beta.shape != (beta.numel(), *(1,) * (frame - 2)) or beta.numel() != input_.shape[2]:
            raise ValueError(
                f"beta must be one value or one a channel, which is dimension 2 of the input {tuple(input_.shape)};"
                f" got shape {tuple(beta.shape)}"
            )
        return beta.flatten()
