"""What a run is made of: models, method and teacher by name and options."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckdsnn.losses import METHODS, Method
from ckdsnn.models import ANN, MODELS, SNN, make_model
from ckdsnn.registry import Options, Registry, field_types


@dataclass(frozen=True)
class MethodConfig:
    """A method by name and its options.

    Attributes:
        name: of the method: a key of `ckdsnn.losses.METHODS`, or `MODULE:NAME` of your own.
        options: of that method, listed at the end; in Python also its own dataclass, `CKD.Options(beta=2.0)`.

    Raises:
        TypeError: an option that the method does not have, or a value of another type.
        ValueError: an unknown name, or a value that the method refuses.
    """

    name: str = "ce"
    options: Mapping[str, Any] | Options = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_options("method.options", METHODS, self.name, self.options)

    def build(self, seed: int = 0) -> Method:
        """The method; it draws its random numbers by `seed` where its options do not say otherwise."""
        method, options = METHODS.find(self.name), self.options
        if not isinstance(options, Options) and "seed" in field_types(method.Options):
            options = {"seed": seed, **options}
        return method(METHODS.options(self.name, options))


@dataclass(frozen=True)
class ModelConfig:
    """A model by name, its options, and where its weights come from.

    Attributes:
        name: of the model: a key of `ckdsnn.models.MODELS`, or `MODULE:NAME` of your own.
        options: of that model, listed at the end; in Python also its own dataclass, `SNNResNet19(width=0.5)`.
        weights: a file that it starts from, a checkpoint of this package or of a state_dict; None: random weights.

    Raises:
        TypeError: an option that the model does not have, a value of another type, weights that are no path.
        ValueError: an unknown name, or a value that the model refuses.
    """

    name: str
    options: Mapping[str, Any] | Options = field(default_factory=dict)
    weights: str | None = None

    def __post_init__(self) -> None:
        _check_options("network.options", MODELS, self.name, self.options)
        if self.weights is not None:
            _check_type("network.weights", self.weights, str)

    def build(self, num_classes: int, in_channels: int | None, method: Method) -> ANN | SNN:
        """The network, with random weights, as `method` asks for it; what the user said stays.

        Raises:
            ValueError: the method asks for what the network does not have.
        """
        options = self.options
        if not isinstance(options, Options):
            asked = method.student_options | ({"sam_stages": method.sam_stages} if method.sam_stages else {})
            known = field_types(MODELS.find(self.name))
            if missing := {name: value for name, value in asked.items() if name not in known}:
                raise ValueError(
                    f"method {method.name} asks its student for "
                    + ", ".join(f"{name}={value!r}" for name, value in missing.items())
                    + f", and {self.name} has no such option: choose another network, method or preset"
                )
            options = {**asked, **options}
        return make_model(self.name, num_classes, in_channels, options)


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher of a distillation.

    Attributes:
        name: of the model, as that of the network; None: the network of this package that the checkpoint names.
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
    options: Mapping[str, Any] | Options = field(default_factory=dict)
    checkpoint: str | None = None
    epochs: int = 300
    cache: bool = False
    unfinished: bool = False

    @property
    def comes_trained(self) -> bool:
        """Whether the model brings weights of its own: one from timm, torchvision or the user's code."""
        return self.name == "external" and bool(MODELS.options("external", self.options).comes_trained)

    def __post_init__(self) -> None:
        if self.name is not None:
            _check_options("teacher.options", MODELS, self.name, self.options)
        elif not isinstance(self.options, Mapping):
            raise TypeError(f"teacher.options must be a mapping of names to values, got {self.options!r:.100}")
        if self.checkpoint is not None:
            _check_type("teacher.checkpoint", self.checkpoint, str)
        _check_type("teacher.epochs", self.epochs, int)
        _check_type("teacher.cache", self.cache, bool)
        _check_type("teacher.unfinished", self.unfinished, bool)
        if self.epochs < 1:
            raise ValueError(f"teacher.epochs must be at least 1, got {self.epochs}")


def _check_type(name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{name} must be {kind.__name__}, got {type(value).__name__} {value!r:.100}")


def _check_options(key: str, registry: Registry[Any], name: str, options: Any) -> None:
    """Raises TypeError or ValueError, with the key, for options that what is named does not take."""
    registry.find(name)
    try:
        registry.options(name, options)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{key}: {error}") from None


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
