"""What a run is made of, as plain data: models, method and teacher by name and options."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelConfig:
    """A model by name (a key of `ckdsnn.models.MODELS`), its options, and where its weights come from.

    Attributes:
        name: of the model.
        options: of that model.
        weights: a file that it starts from, a checkpoint of this package or of a state_dict; None: random weights.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None


@dataclass(frozen=True)
class MethodConfig:
    """A method by name (a key of `ckdsnn.losses.METHODS`) and its options."""

    name: str = "ce"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher of a distillation.

    Attributes:
        name: model, a key of `ckdsnn.models.MODELS`; None: whatever the checkpoint holds.
        options: of that model.
        checkpoint: of a finished training by this package; None: an external model that brings its weights or, on the
            command line, the teacher of the same run.
        epochs: how long `ckdsnn teacher` trains it.
        cache: keep its answer to every training sample in memory after the first time; for data that is not augmented.
        unfinished: take a checkpoint of a training that has not come to its end.
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
        if self.epochs < 1:
            raise ValueError(f"teacher.epochs must be at least 1, got {self.epochs}")


def as_plain(config: Any) -> Any:
    """A configuration of (nested) dataclasses, tuples and dicts as what YAML and weights_only loading know."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: as_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {key: as_plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [as_plain(value) for value in config]
    return config


def differing_keys(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two plain configurations differ, as "key: old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line
            for key in keys
            for line in differing_keys(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]
