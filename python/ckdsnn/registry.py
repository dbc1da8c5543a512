"""What a configuration can name, models, methods and data sets, and the options that each of them has."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar, get_type_hints

from typing_extensions import Self  # Python 3.10 has none

from ckdsnn.option_types import option_type

Entry = TypeVar("Entry", bound=type)


def nearest(name: str, known: Iterable[str]) -> str:
    """The words to end an "unknown name" message with: a suggestion where one is near, and all that is known."""
    near = difflib.get_close_matches(name, known := sorted(known), n=1)
    return (f"; did you mean {near[0]!r}? " if near else "; ") + f"known: {', '.join(known)}"


class Option(NamedTuple):
    """What `--help` says of an option; `default` is "required" where there is none."""

    name: str
    type: str
    default: str
    description: str


@dataclass(frozen=True)
class Options:
    """Base of the frozen dataclasses of options: their fields are what YAML and command line may say.

    A value is checked against the type of its field: `bool`, `int`, `float`, `str`, `Literal`, `Mapping`, a class, a
    tuple (`tuple[int, ...]`; lists become one, and so does a single number), `| None`, and `Annotated` with
    :class:`~ckdsnn.option_types.Within` or `OneOf`. What concerns several fields is checked in `__post_init__`, after
    `super().__post_init__()`. Fields are documented under `Attributes:` of the class that has them.

    Raises:
        TypeError: a value of another type.
        ValueError: a value out of bounds.

    Example:
        >>> from dataclasses import dataclass
        >>> from ckdsnn.registry import Options
        >>> @dataclass(frozen=True)
        ... class Blur(Options):
        ...     radius: float = 1.0
        >>> Blur.of({"radius": 2.5})
        Blur(radius=2.5)
        >>> Blur.of({"radios": 2.5})
        Traceback (most recent call last):
        TypeError: no option 'radios'; did you mean 'radius'? known: radius
        >>> Blur(radius="wide")
        Traceback (most recent call last):
        TypeError: radius must be a number, got 'wide'
    """

    flat: ClassVar[str | None] = None  # the field of options whose own fields are given beside the others

    def __post_init__(self) -> None:
        for name, hint in field_types(type(self)).items():
            object.__setattr__(self, name, option_type(hint).checked(getattr(self, name), name))

    @classmethod
    def of(cls, values: Mapping[str, Any], whose: str = "") -> Self:
        """The options that plain values say; a mapping for a field of options changes what that has without it.

        Args:
            values: by name, as YAML has them.
            whose: for messages, e.g. "method 'kd'".

        Raises:
            TypeError: a name that no option has, an option without a default that is missing, a value of another type.
            ValueError: a value out of bounds.
        """
        said = dict(values)
        for name, kind in _nested(cls).items():
            inner: Any = said.pop(name, None)
            changes: dict[str, Any] = {}
            if name == cls.flat:
                changes = {key: said.pop(key) for key in kind.names() if key in said}
            if isinstance(inner, Mapping):
                changes = {**inner, **changes}
                inner = None
            elif inner is not None and not isinstance(inner, kind):
                raise TypeError(f"{name} must be a mapping of options to values, got {inner!r}")
            if changes:
                kind.check_names(changes, f"{whose}: {name}" if whose else name)
                inner = dataclasses.replace(inner or cls.base_of(name, said), **changes)
            if inner is not None:
                said[name] = inner
        cls.check_names(said, whose)
        if missing := [f.name for f in dataclasses.fields(cls) if _is_required(f) and f.name not in said]:
            raise TypeError(f"{whose or cls.__name__} needs {', '.join(missing)}")
        return cls(**said)

    @classmethod
    def base_of(cls, name: str, values: Mapping[str, Any]) -> Options:
        """What a mapping for the field of options `name` changes; its class's defaults unless a subclass knows more."""
        return _nested(cls)[name]()

    @classmethod
    def check_names(cls, values: Mapping[str, Any], whose: str = "") -> None:
        """Raises TypeError for a name that no option has."""
        fields = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in fields:
                raise TypeError(
                    (f"{whose} has " if whose else "") + f"no option {name!r}" + nearest(str(name), cls.names())
                )

    @classmethod
    def names(cls) -> list[str]:
        """Of all options, as YAML has them; those of a field of options belong to it."""
        return [option.name for option in cls.listed(described=False) if "." not in option.name]

    @classmethod
    def listed(cls, *, described: bool = True) -> list[Option]:
        """All options, the class's own ones first; those of a field of options come after it, as `field.option`."""
        made: list[Option] = []
        texts = _descriptions(cls) if described else {}
        bases = [base for base in cls.__mro__ if dataclasses.is_dataclass(base)]
        of_base = {field.name: place for place, base in enumerate(bases) for field in dataclasses.fields(base)}
        for field in sorted(dataclasses.fields(cls), key=lambda field: of_base[field.name]):
            name, kind = field.name, _nested(cls).get(field.name)
            if name != cls.flat:
                shown = "mapping" if kind else option_type(field_types(cls)[name]).shown
                default = "required" if _is_required(field) else "{}" if kind else _yaml(field.default)
                made.append(Option(name, shown, default, texts.get(name, "")))
            prefix = "" if name == cls.flat else f"{name}."
            for option in kind.listed(described=described) if kind else ():
                made.append(option._replace(name=prefix + option.name))
        return made


_FIELD_TYPES: dict[type[Options], dict[str, Any]] = {}


def field_types(cls: type[Options]) -> dict[str, Any]:
    """The annotations of the fields of a class of options."""
    if cls not in _FIELD_TYPES:
        hints = get_type_hints(cls, include_extras=True)
        _FIELD_TYPES[cls] = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    return _FIELD_TYPES[cls]


def _nested(cls: type[Options]) -> dict[str, type[Options]]:
    """The fields that are options themselves."""
    return {name: t for name, t in field_types(cls).items() if isinstance(t, type) and issubclass(t, Options)}


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return str(value) if isinstance(value, (str, int, float)) else f"{type(value).__name__}(...)"


def _descriptions(cls: type[Options]) -> dict[str, str]:
    """Of the fields, from the `Attributes:` of a class and its bases."""
    import docstring_parser  # which comes with the command line and serves its help alone

    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for entry in docstring_parser.parse(vars(base).get("__doc__") or "").params:
            for name in entry.arg_name.split(", "):
                found[name] = " ".join((entry.description or "").split())
    return found


class Registry(dict[str, Entry]):
    """Classes by the name that a configuration gives them.

    Args:
        kind: in messages, e.g. "model".
        base: of the classes.

    Example:
        >>> from ckdsnn.registry import Registry
        >>> ANIMALS = Registry("animal", object)
        >>> @ANIMALS.register("dog")
        ... class Dog:
        ...     pass
        >>> ANIMALS.find("dgo")
        Traceback (most recent call last):
        ValueError: unknown animal 'dgo'; did you mean 'dog'? known: dog; or MODULE:NAME of your own
    """

    def __init__(self, kind: str, base: type) -> None:
        super().__init__()
        self.kind, self.base = kind, base

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Class decorator that makes a class known under `name`.

        Raises:
            TypeError: no subclass of the registry's base, or options that are no frozen dataclass.
            ValueError: a name that is registered already, or that has a colon in it, see ``find``.
        """

        def add(cls: Entry) -> Entry:
            if not (isinstance(cls, type) and issubclass(cls, self.base)):
                raise TypeError(f"{self.kind} {name!r} must be a subclass of {self.base.__name__}, got {cls!r}")
            options = self.options_class(cls)
            if options is not None and "__dataclass_params__" not in vars(options):  # fields of its bases alone
                raise TypeError(f"{options.__qualname__} must be decorated with @dataclass(frozen=True)")
            if name in self or ":" in name:
                why = "is registered already" if name in self else "has a colon, which ends the name of a module"
                raise ValueError(f"a {self.kind} named {name!r} {why}")
            self[name] = cls
            return cls

        return add

    def find(self, name: str) -> Entry:
        """The class of that name. `MODULE:NAME` imports MODULE, which registers NAME: code that a user vouches for by
        naming it, so a name from a file of somebody else is looked up with `get`, which imports nothing.

        Raises:
            TypeError: no name.
            ValueError: an unknown name, a module that cannot be imported.
        """
        if not isinstance(name, str):
            raise TypeError(f"the {self.kind} must be a name, got {name!r}")
        module, given, own = name.rpartition(":")
        if given:
            try:
                importlib.import_module(module)
            except (ImportError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{self.kind} {name!r}: {module!r} cannot be imported: {error}; install it, or set PYTHONPATH to "
                    "the folder that it is in"
                ) from error
        if own not in self:
            own_words = "" if given else "; or MODULE:NAME of your own"
            raise ValueError(f"unknown {self.kind} {name!r}" + nearest(own, self) + own_words)
        return self[own]

    @staticmethod
    def options_class(entry: type) -> type[Options] | None:
        """The options of a class: itself, or what it has under the name `Options`."""
        return entry if issubclass(entry, Options) else getattr(entry, "Options", None)

    def options(self, name: str, values: Mapping[str, Any] | Options) -> Any:
        """The options of what is named, from plain values; options that are made already are only looked at.

        Raises:
            TypeError, ValueError: see :meth:`find` and :meth:`Options.of`.
        """
        kind = self.options_class(self.find(name))
        assert kind is not None
        if isinstance(values, kind):
            return values
        if not isinstance(values, Mapping):
            wanted = f"{kind.__qualname__}, or a mapping of names to values"
            raise TypeError(f"the options of {self.kind} {name!r} must be {wanted}, got {values!r:.100}")
        return kind.of(values, f"{self.kind} {name!r}")
