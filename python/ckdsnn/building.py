"""A network and a method from their configurations."""

from __future__ import annotations

import inspect
from typing import Any

from ckdsnn.configuration import MethodConfig, ModelConfig
from ckdsnn.losses import METHODS, Method, build_method
from ckdsnn.models import MODELS


def with_method_options(network: ModelConfig, method: Method) -> dict[str, Any]:
    """The network's options, completed by what the method asks of a student; what the user said stays."""
    if network.name not in MODELS:
        return network.options  # build_model has the words for it
    asked = dict(method.student_options)
    if method.sam_stages:
        asked["sam_stages"] = method.sam_stages
    known = inspect.signature(MODELS[network.name]).parameters
    if missing := {name: value for name, value in asked.items() if name not in known}:
        raise ValueError(
            f"method {method.name} asks its student for "
            + ", ".join(f"{name}={value!r}" for name, value in missing.items())
            + f", and {network.name} has no such option: choose another network, method or preset"
        )
    return asked | network.options


def method_from(method: MethodConfig, seed: int) -> Method:
    options = dict(method.options)
    if method.name in METHODS and "seed" in inspect.signature(METHODS[method.name]).parameters:
        options.setdefault("seed", seed)
    return build_method(method.name, **options)
