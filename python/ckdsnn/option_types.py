"""The types that options may have: what their fields are annotated with, checked at run time and told by `--help`."""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin


@dataclass(frozen=True)
class Within:
    """Bounds of a number, as metadata of `Annotated`.

    Example:
        >>> from ckdsnn.option_types import Within
        >>> Within(low=0, below=1).words
        'in [0, 1)'
    """

    low: float | None = None
    above: float | None = None
    high: float | None = None
    below: float | None = None

    def holds(self, value: Any) -> bool:
        return (
            (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
            and (self.below is None or value < self.below)
        )

    @property
    def words(self) -> str:
        if self.high is None and self.below is None:
            return f">= {self.low:g}" if self.above is None else f"> {self.above:g}"
        start = f"[{self.low:g}" if self.above is None else f"({self.above:g}"
        return f"in {start}, {self.high:g}]" if self.below is None else f"in {start}, {self.below:g})"


@dataclass(frozen=True)
class OneOf:
    """The names that there are, as metadata of `Annotated`, where code lists them; else take `Literal`."""

    known: tuple[str, ...]


class NotEmpty:
    """Metadata of a tuple that must have a value."""


class LayerName:
    """Metadata of a name: layers of an nn.Sequential have numbers for names."""


Layer = Annotated[str, LayerName()]
Positive = Annotated[float, Within(above=0)]
NotNegative = Annotated[float, Within(low=0)]
Share = Annotated[float, Within(low=0, high=1)]
Stages = Annotated[tuple[int, ...], NotEmpty()]

# What a value must be an instance of, and how that is said in messages and by --help.
PLAIN: dict[Any, tuple[type, str, str]] = {
    bool: (bool, "True or False", "true | false"),
    int: (Integral, "a whole number", "whole number"),
    float: (Real, "a number", "number"),
    str: (str, "a name", "name"),
    Mapping: (Mapping, "a mapping of names to values", "mapping"),
}


@dataclass(frozen=True)
class Kind:
    """One of the types that an option may have.

    Attributes:
        type: that a value is an instance of; for a list, that its elements are.
        words: in messages, e.g. "a number".
        shown: by `--help`, e.g. "number in [0, 1]".
        bounds: of a number.
        known: names, where there are some only.
        listed: whether the option is a list of such values.
        filled: whether the list must have a value.
        finite: whether infinity and NaN are refused.
        of_layer: whether a whole number is a name, too.
    """

    type: Any
    words: str
    shown: str
    bounds: Within | None = None
    known: tuple[str, ...] = ()
    listed: bool = False
    filled: bool = False
    finite: bool = False
    of_layer: bool = False

    @classmethod
    def of(cls, hint: Any) -> Kind:
        """The kind that an annotation means, unions aside."""
        origin, arguments = get_origin(hint), get_args(hint)
        if origin is Annotated and isinstance(arguments[1], NotEmpty):
            return replace(cls.of(arguments[0]), filled=True)
        if origin is Annotated and isinstance(arguments[1], LayerName):
            return replace(cls.of(arguments[0]), of_layer=True)
        if origin is tuple:
            one = cls.of(arguments[0])
            return replace(one, shown=f"list of {one.shown}s", listed=True)
        known: tuple[str, ...] = arguments if origin is Literal else ()
        bounds = None
        if origin is Annotated:
            hint, limit = arguments[0], arguments[1]
            known, bounds = (limit.known, None) if isinstance(limit, OneOf) else ((), limit)
        if known:
            return cls(str, f"one of {', '.join(known)}", " | ".join(known), known=known)
        plain = get_origin(hint) or hint
        kind, words, shown = PLAIN.get(plain, (plain, f"a {plain.__name__}", plain.__name__))
        return cls(kind, words, f"{shown} {bounds.words}" if bounds else shown, bounds, finite=plain is float)

    def fits(self, value: Any) -> bool:
        """Whether the value is of the type, its bounds aside; a single number is a list of one."""
        if self.listed and isinstance(value, Sequence) and not isinstance(value, str):
            return True
        if self.listed and self.type is str:
            return False
        value = self._read(value)
        return isinstance(value, self.type) and (self.type is bool or not isinstance(value, bool))

    def _read(self, value: Any) -> Any:
        """The name that YAML, or the command line, takes for a number."""
        return str(value) if self.of_layer and type(value) is int else value

    def checked(self, value: Any, name: str) -> Any:
        """The value, a tuple where it is a list.

        Raises:
            TypeError: an element of another type.
            ValueError: a value out of bounds.
        """
        if not self.listed:
            value = self._read(value)
            self._check(value, name)
            return value
        values = tuple(map(self._read, value)) if isinstance(value, Sequence) else (value,)
        if self.filled and not values:
            raise ValueError(f"{name} must have at least one value, got none")
        for one in values:
            if isinstance(one, bool) or not isinstance(one, self.type):
                raise TypeError(f"each of {name} must be {self.words}, got {one!r}")
            self._check(one, f"each of {name}")
        return values

    def _check(self, value: Any, name: str) -> None:
        if self.known and value not in self.known:
            near = difflib.get_close_matches(value, self.known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name} must be {self.words}, got {value!r}{hint}")
        if self.bounds and not self.bounds.holds(value):
            raise ValueError(f"{name} must be {self.bounds.words}, got {value!r}")
        if self.finite and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value!r}")


@dataclass(frozen=True)
class OptionType:
    """What an option may be: one of several kinds, and null where `nullable`."""

    kinds: tuple[Kind, ...]
    nullable: bool

    @property
    def shown(self) -> str:
        return " | ".join([kind.shown for kind in self.kinds] + ["null"] * self.nullable)

    def checked(self, value: Any, name: str) -> Any:
        """The value, as :meth:`Kind.checked`, which raises the same."""
        if value is None and self.nullable:
            return None
        for kind in self.kinds:
            if kind.fits(value):
                return kind.checked(value, name)
        words = ["a list" if kind.listed else kind.words for kind in self.kinds]
        raise TypeError(f"{name} must be {' or '.join(words)}, got {value!r}")


@cache
def option_type(hint: Any) -> OptionType:
    """What an annotation means.

    Example:
        >>> from ckdsnn.option_types import Share, option_type
        >>> option_type(Share | None).shown
        'number in [0, 1] | null'
        >>> option_type(Share | None).checked("half", "weight")
        Traceback (most recent call last):
        TypeError: weight must be a number, got 'half'
    """
    hints = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return OptionType(tuple(Kind.of(h) for h in hints if h is not type(None)), type(None) in hints)
