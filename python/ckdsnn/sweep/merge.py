"""A recipe with some of its options changed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ckdsnn.cli.overrides import OPTIONS


def with_options(recipe: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """`recipe` with `options` merged in, one after the other; a mapping is merged key by key.

    A new name of a network, method, teacher or optimiser, or a new class of the data, drops what belonged to the old
    one, as on the command line.

    Example:
        >>> from ckdsnn.sweep.merge import with_options
        >>> recipe = {"model": {"method": {"name": "ckd", "options": {"beta": 2.0}}}}
        >>> with_options(recipe, {"model.method.options.gamma": 0.0})
        {'model': {'method': {'name': 'ckd', 'options': {'beta': 2.0, 'gamma': 0.0}}}}
        >>> with_options(recipe, {"model.method.name": "kd"})
        {'model': {'method': {'name': 'kd'}}}
    """
    made = copy.deepcopy(recipe)
    for key, value in options.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        _merge(made, copy.deepcopy(value), ())
    return made


def _merge(into: dict[str, Any], new: dict[str, Any], path: tuple[str, ...]) -> None:
    told_by, dependent = None, set()
    if len(path) == 2 and path[0] == "model" and path[1] in OPTIONS:
        told_by, dependent = "name", set(OPTIONS[path[1]])
    elif path == ("data",):
        told_by, dependent = "class_path", {"init_args"}
    if told_by in new and told_by in into and new[told_by] != into[told_by]:
        for key in dependent:
            into.pop(key, None)
    for key, value in new.items():
        old = into.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            _merge(old, value, (*path, key))
        else:
            into[key] = value
