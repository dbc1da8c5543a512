"""Which neuron: how it charges, fires and resets, as one immutable value.

A :class:`Neuron` holds no state and no tensors; functions and layers take one as an
argument, and two equal ones are the same neuron on every backend.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from numbers import Real  # NumPy's numbers, too
from typing import Any

import numpy as np
import torch

from .surrogate import BY_NAME, ATan, Sigmoid, Surrogate, Triangle

CHARGES = ("decay", "leak", "leak_input", "integrate")
RESETS = ("hard", "soft", "soft_delayed", "none")
_PLAIN = ("charge", "decay", "tau", "threshold", "v_reset", "reset", "strict", "detach_reset")


def _derived() -> Any:
    return dataclasses.field(init=False, repr=False, compare=False)


@dataclass(frozen=True)
class Neuron:
    """A multi-step spiking neuron.  With membrane potential ``v`` and input ``x[t]``:

    ============== =================================== =======================================
    charge         h[t] =                              used by
    ============== =================================== =======================================
    ``decay``      ``v*decay + x[t]``                  CKDSNN, snnTorch (``beta``)
    ``leak``       ``v - (v - v_reset)/tau + x[t]``    SpikingJelly LIF, ``decay_input=False``
    ``leak_input`` ``v + (x[t] - (v - v_reset))/tau``  SpikingJelly LIF, ``decay_input=True``
    ``integrate``  ``v + x[t]``                        IF
    ============== =================================== =======================================

    It fires, ``s[t] = 1``, where ``h[t] >= threshold`` (``h[t] > threshold`` with ``strict``).

    ================ ===========================================================================
    reset            v after step t
    ================ ===========================================================================
    ``hard``         ``v_reset`` where it fired, else ``h[t]``
    ``soft``         ``h[t] - s[t]*threshold`` (and 0 stands for v_reset in the charge)
    ``soft_delayed`` ``h[t]``; ``threshold*s[t]`` is subtracted from ``h[t+1]`` (snnTorch)
    ``none``         ``h[t]``
    ================ ===========================================================================

    Args:
        charge: one of the charges above.
        decay: factor of v a time step, in [0, 1]; only with ``charge="decay"`` (default 0.5).
        tau: membrane time constant in time steps, > 1 for ``leak`` and >= 1 for ``leak_input``;
            only with those (default 2.0).
        threshold: firing threshold, finite.
        v_reset: potential after a spike and at the start; only with ``reset="hard"`` (default 0.0).
        reset: one of the resets above.
        strict: fire at ``h > threshold`` instead of ``h >= threshold``.
        detach_reset: no gradient through the reset; refused with ``reset="none"``.
        surrogate: surrogate derivative, see :mod:`ckd_kernels.surrogate`.

    Made inside of what `torch.compile` compiles, a neuron ends the graph, unless one of the methods `paper` to
    `snntorch_leaky` makes it: make it once, outside.

    Raises:
        TypeError, ValueError: a value out of its range, or one that the charge or the reset does not use.

    Example:
        >>> from ckd_kernels import Neuron, surrogate
        >>> Neuron(charge="leak_input", tau=2.0, surrogate=surrogate.Sigmoid(4.0)) == Neuron.spikingjelly_lif()
        True
    """

    charge: str = "decay"
    decay: float | None = None
    tau: float | None = None
    threshold: float = 1.0
    v_reset: float | None = None
    reset: str = "hard"
    strict: bool = False
    detach_reset: bool = False
    surrogate: Surrogate = Triangle()
    # What follows from them.  No properties, which torch.compile does not read from a constant of the graph.
    #: The parameter of the charge that may be learnt: ``"decay"``, ``"tau"`` or None.
    leak_name: str | None = _derived()
    #: Membrane potential before the first step, and what stands for v_reset in the charge.
    rest: float = _derived()
    #: Text that determines the neuron: how it travels through torch.library's schemas.
    spec: str = _derived()

    def __post_init__(self) -> None:
        if self.charge not in CHARGES:
            raise ValueError(f"charge must be one of {', '.join(CHARGES)}; got {self.charge!r}")
        if self.reset not in RESETS:
            raise ValueError(f"reset must be one of {', '.join(RESETS)}; got {self.reset!r}")
        for name in ("strict", "detach_reset"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if type(self.surrogate) not in BY_NAME.values():
            raise TypeError(f"surrogate must be one of ckd_kernels.surrogate, e.g. Triangle(); got {self.surrogate!r}")
        self._settle("decay", 0.5, used=self.charge == "decay", by="charge='decay'")
        self._settle("tau", 2.0, used=self.charge in ("leak", "leak_input"), by="charge='leak' or 'leak_input'")
        self._settle("v_reset", 0.0, used=self.reset == "hard", by="reset='hard'")
        self._settle("threshold", 1.0, used=True, by="")
        if self.decay is not None and not 0.0 <= self.decay <= 1.0:
            raise ValueError(f"decay must be in [0, 1], got {self.decay!r}")
        if self.charge == "leak" and not self.tau > 1.0:  # type: ignore[operator]
            raise ValueError(f"tau must be > 1 for charge='leak', got {self.tau!r}; for no leak use charge='integrate'")
        if self.charge == "leak_input" and not self.tau >= 1.0:  # type: ignore[operator]
            raise ValueError(f"tau must be >= 1 for charge='leak_input', got {self.tau!r}")
        if self.detach_reset and self.reset == "none":
            raise ValueError("detach_reset is not used with reset='none'; leave it False")
        leak = {"decay": "decay", "leak": "tau", "leak_input": "tau"}.get(self.charge)
        object.__setattr__(self, "leak_name", leak)
        object.__setattr__(self, "rest", 0.0 if self.v_reset is None else self.v_reset)
        values = [repr(getattr(self, name)) for name in _PLAIN]
        object.__setattr__(self, "spec", "|".join([*values, self.surrogate.name, repr(self.surrogate.alpha)]))

    def __hash__(self) -> int:
        return hash(self.spec)  # a string's, which is computed once

    def _settle(self, name: str, default: float, *, used: bool, by: str) -> None:
        value = getattr(self, name)
        if not used:
            if value is not None:
                raise ValueError(f"{name}={value!r} is only used with {by}; leave it out")
            return
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {value!r}; learnable values are an argument of lif()")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value!r}")
        object.__setattr__(self, name, float(value))

    @staticmethod
    def from_spec(spec: str) -> Neuron:
        """The neuron whose ``spec`` attribute is ``spec``.

        Raises:
            TypeError, ValueError: ``spec`` is none.
        """
        return _of_spec(spec)

    def fire_level(self, dtype: torch.dtype) -> float:
        """The least ``h`` of ``dtype`` that fires, so that ``h >= fire_level`` is the only comparison."""
        real = {torch.float32: np.float32, torch.float64: np.float64}[dtype]
        with np.errstate(over="ignore"):  # beyond float32, infinity
            threshold = real(self.threshold)
        return float(np.nextafter(threshold, real(math.inf)) if self.strict else threshold)

    @staticmethod
    def paper() -> Neuron:
        """The CKDSNN paper's LIFSpike: decay 0.5, strict threshold 1, hard reset to 0, triangle."""
        return cached_neuron(Triangle, 1.0, charge="decay", decay=0.5, strict=True)

    @staticmethod
    def spikingjelly_lif() -> Neuron:
        """SpikingJelly's ``LIFNode()`` with its defaults."""
        return cached_neuron(Sigmoid, 4.0, charge="leak_input", tau=2.0)

    @staticmethod
    def spikingjelly_if() -> Neuron:
        """SpikingJelly's ``IFNode()`` with its defaults."""
        return cached_neuron(Sigmoid, 4.0, charge="integrate")

    @staticmethod
    def snntorch_leaky(beta: float) -> Neuron:
        """snnTorch's ``Leaky(beta)`` with its defaults: the subtraction is delayed by a step and detached.

        Raises:
            TypeError, ValueError: ``beta`` is no number in [0, 1].
        """
        if isinstance(beta, bool) or not isinstance(beta, Real):
            raise TypeError(f"beta must be a number in [0, 1], got {beta!r}")
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"beta must be a number in [0, 1], got {beta!r}")
        return cached_neuron(
            *(ATan, 2.0), charge="decay", decay=beta, strict=True, reset="soft_delayed", detach_reset=True
        )


@functools.lru_cache(maxsize=1024)
def _of_spec(spec: str) -> Neuron:
    if not isinstance(spec, str):
        raise TypeError(f"spec must be a string, got {type(spec).__name__}")
    try:
        *values, name, alpha = spec.split("|")
        plain = {field: _value(text) for field, text in zip(_PLAIN, values, strict=True)}
        return Neuron(**plain, surrogate=BY_NAME[name](float(alpha)))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"spec must be a Neuron's spec attribute, got {spec[:200]!r}: {error}") from None


def _value(text: str) -> Any:
    """What ``repr`` of a field's value says."""
    if text.startswith("'"):
        return text.strip("'")
    return {"None": None, "True": True, "False": False}[text] if text[:1] in "NTF" else float(text)


def cached_neuron(surrogate: type[Surrogate], alpha: float, **options: Any) -> Neuron:
    """``Neuron(surrogate=surrogate(alpha), **options)``, checked once: for who takes the options anew at every call."""
    if not torch.compiler.is_compiling():
        return _remembered(surrogate, alpha, **options)  # type: ignore[arg-type]  # a class has a hash
    found = _constant(surrogate, _specialised(alpha), **{name: _specialised(v) for name, v in options.items()})
    if isinstance(found, str):
        raise ValueError(found)
    return found


@functools.lru_cache(maxsize=256)
def _remembered(surrogate: type[Surrogate], alpha: float, **options: Any) -> Neuron:
    return Neuron(surrogate=surrogate(alpha), **options)


def _constant(*given: Any, **options: Any) -> Neuron | str:
    """The neuron, or what is wrong with it; a constant of the graph, whose guards are those of the arguments."""
    try:
        return _remembered(*given, **options)
    except (TypeError, ValueError) as error:
        return str(error)


# What torch.compiler.assume_constant_result sets, and would import torch._dynamo for.
_constant._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _specialised(value: Any) -> Any:
    """A number, where torch.compile traces with a symbol for it."""
    if type(value) is not float:
        return value
    from torch.fx.experimental.symbolic_shapes import guard_scalar

    return guard_scalar(value)
