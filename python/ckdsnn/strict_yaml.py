"""YAML as grids and recipes are read: strict about keys, and with the numbers that the recipes' parser knows."""

from __future__ import annotations

import re
from typing import Any

import yaml  # type: ignore[import-untyped]


class KeyFault(ValueError):
    """A key that is given twice or is no name; the words name its line and what to do."""


class Loader(yaml.SafeLoader):
    """YAML in which a key that is given twice is an error, where PyYAML takes the last one."""


def _mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    made: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        try:
            twice = key in made
        except TypeError:
            raise KeyFault(f"line {key_node.start_mark.line + 1}: a key must be a name, got {key!r:.60}") from None
        if twice:
            raise KeyFault(f"line {key_node.start_mark.line + 1}: {key!r} is given twice: remove one of them")
        made[key] = loader.construct_object(value_node, deep=True)
    return made


Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
# YAML 1.1 takes 5e-4 for a string; the recipes' parser takes it for a number.
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
