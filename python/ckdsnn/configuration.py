"""What a run is made of, as plain data: models, method and teacher by name and options."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelConfig:
    """A model by name (a key of `ckdsnn.models.MODELS`), its options, and where its weights come from.

    Attributes:
        name: of the model.
        options: of that model.
        weights: a file that it starts from, a checkpoint of this package or of a state_dict; None: random weights.

    Raises:
        TypeError: a name that is no string, options that are no mapping of names, weights that are no path.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None

    def __post_init__(self) -> None:
        _check_type("network.name", self.name, str)
        _check_options("network.options", self.options)
        if self.weights is not None:
            _check_type("network.weights", self.weights, str)


@dataclass(frozen=True)
class MethodConfig:
    """A method by name (a key of `ckdsnn.losses.METHODS`) and its options.

    Raises:
        TypeError: a name that is no string, options that are no mapping of names.
    """

    name: str = "ce"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_type("method.name", self.name, str)
        _check_options("method.options", self.options)


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher of a distillation.

    Attributes:
        name: model, a key of `ckdsnn.models.MODELS`; None: the network of this package that the checkpoint names.
        options: of that model.
        checkpoint: of a finished training by this package; None: an external model that brings its weights or, on the
            command line, the teacher of the same run.
        epochs: how long `ckdsnn teacher` trains it.
        cache: keep its answer to every training sample in memory after the first time; for data that is not augmented.
        unfinished: take a checkpoint from the middle of a training, too, as `best.ckpt` is one.

    Raises:
        TypeError: a value of another type.
        ValueError: epochs < 1.
    """

    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    epochs: int = 300
    cache: bool = False
    unfinished: bool = False

    @property
    def comes_trained(self) -> bool:
        """Whether the model brings weights of its own: one from timm, torchvision or the user's code."""
        asked = {**self.options, **(self.options.get("model_options") or {})}
        # timm calls it pretrained, torchvision weights.
        return self.name == "external" and bool(asked.get("weights") or asked.get("pretrained"))

    def __post_init__(self) -> None:
        for name, kind in (("name", str), ("checkpoint", str)):
            if getattr(self, name) is not None:
                _check_type(f"teacher.{name}", getattr(self, name), kind)
        _check_type("teacher.epochs", self.epochs, int)
        _check_type("teacher.cache", self.cache, bool)
        _check_type("teacher.unfinished", self.unfinished, bool)
        _check_options("teacher.options", self.options)
        if self.options.get("model_options") is not None:
            _check_options("teacher.options.model_options", self.options["model_options"])
        if self.epochs < 1:
            raise ValueError(f"teacher.epochs must be at least 1, got {self.epochs}")


def _check_type(name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{name} must be {kind.__name__}, got {type(value).__name__} {value!r:.100}")


def _check_options(name: str, value: Any) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} must be a mapping of names to values, got {type(value).__name__} {value!r:.100}")


def as_plain(config: Any) -> Any:
    """A configuration of (nested) dataclasses, tuples and dicts as what YAML and weights_only loading know."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: as_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: as_plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [as_plain(value) for value in config]
    return config


def parameter_defaults(build: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of a function's, class's or dataclass's parameters as plain values; those without one are left out.

    Example:
        >>> from ckdsnn.configuration import MethodConfig, parameter_defaults
        >>> parameter_defaults(MethodConfig)
        {'name': 'ce', 'options': {}}
    """
    if dataclasses.is_dataclass(build):
        made = {f.name: f.default_factory() for f in dataclasses.fields(build) if callable(f.default_factory)}
        plain = {f.name: f.default for f in dataclasses.fields(build) if f.default is not dataclasses.MISSING}
        return {f.name: as_plain((made | plain)[f.name]) for f in dataclasses.fields(build) if f.name in made | plain}
    parameters = inspect.signature(build).parameters.values()
    return {p.name: as_plain(p.default) for p in parameters if p.default is not p.empty}


def differing_keys(old: Any, new: Any, defaults: Any = None, path: str = "") -> list[str]:
    """Where two plain configurations differ, as "key: old -> new".

    Args:
        old, new: plain values, see :func:`as_plain`.
        defaults: what a key means where one of them lacks it, in the same nesting: versions differ in the keys that
            they know, and a user may write a default or leave it out. A key without a default means None.

    Example:
        >>> from ckdsnn.configuration import differing_keys
        >>> differing_keys({"lr": 0.1}, {"lr": 0.2, "nesterov": False}, defaults={"nesterov": False})
        ['lr: 0.1 -> 0.2']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        known = defaults if isinstance(defaults, dict) else {}
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line
            for key in keys
            for line in differing_keys(
                old.get(key, known.get(key)),
                new.get(key, known.get(key)),
                known.get(key),
                f"{path}.{key}" if path else str(key),
            )
        ]
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]
