"""Models by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from .base import ANN, SNN

MODELS: dict[str, Callable[..., ANN | SNN]] = {}

Builder = TypeVar("Builder", bound=Callable[..., ANN | SNN])


def register_model(name: str) -> Callable[[Builder], Builder]:
    """Decorator that makes a model available to :func:`build_model` under ``name``."""

    def add(build: Builder) -> Builder:
        if name in MODELS:
            raise ValueError(f"a model named {name!r} is registered already")
        MODELS[name] = build
        return build

    return add


def nearest(name: str, known: list[str]) -> str:
    """The words to end an "unknown name" message with: a suggestion where one is near, and all that is known."""
    near = difflib.get_close_matches(name, known, n=1)
    return (f"; did you mean {near[0]!r}? " if near else "; ") + f"known: {', '.join(sorted(known))}"


def build_model(name: str, num_classes: int, **options: Any) -> ANN | SNN:
    """The model registered under ``name``.

    Args:
        name: a key of ``MODELS``, e.g. ``"ann_resnet19"`` or ``"snn_resnet20"``.
        num_classes: K, size of the logits.
        options: arguments of that model, see its docstring.

    Raises:
        ValueError: unknown name, num_classes < 1, or a value that the model refuses.
        TypeError: an option that the model does not have.

    Example:
        >>> import torch
        >>> from ckdsnn.models import build_model
        >>> model = build_model("snn_resnet_small", num_classes=10, in_channels=1, time_steps=2)
        >>> model(torch.zeros(3, 1, 20, 20)).logits.shape
        torch.Size([3, 10])
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}" + nearest(name, list(MODELS)))
    if num_classes < 1:
        raise ValueError(f"num_classes must be >= 1, got {num_classes}")
    build = MODELS[name]
    known = [p for p in inspect.signature(build).parameters if p != "num_classes"]
    for option in options:
        if option not in known:
            raise TypeError(f"model {name!r} has no option {option!r}" + nearest(option, known))
    return build(num_classes=num_classes, **options)
