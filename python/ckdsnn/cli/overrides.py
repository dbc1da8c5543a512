"""A new name on the command line, or in a later file, drops the options that the recipe gave to the old one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from ckdsnn.checkpoint import RunError
from ckdsnn.cli.recipes import config_places
from ckdsnn.strict_yaml import KeyFault, Loader

# What belongs to the thing of that name, and what it is when nothing is said.
OPTIONS = {
    "network": {"options": "{}"},
    "method": {"options": "{}"},
    "teacher": {"options": "{}"},
    "optimizer": {"momentum": "null", "nesterov": "false"},
}


def with_fresh_options(arguments: list[str]) -> list[str]:
    """`arguments` with the options of a network, method, teacher or optimiser set back where another one is named.

    Files and command line are read in their order, and of two values the later one counts; `--model.method.name kd`
    after a recipe whose method is `ckd` would otherwise be `kd` with the options of `ckd`. Options that are given
    together with the new name, before or after it, stay.
    """
    made: list[str] = []
    names: dict[str, str] = {}
    for source in _sources(arguments):
        model = _model_of(source)
        for part, options in OPTIONS.items():
            name = _name(model.get(part))
            if name is None:
                continue
            if names.get(part, name) != name:
                made += [f"--model.{part}.{option}={value}" for option, value in options.items()]
            names[part] = name
        made += source
    return made


def _name(part: Any) -> str | None:
    name = part.get("name") if isinstance(part, dict) else None
    return name if isinstance(name, str) else None


def _sources(arguments: list[str]) -> Iterator[list[str]]:
    """The arguments in groups: those of one `--config`, or those between two of them."""
    cuts = {0, len(arguments)}
    for place, count, _ in config_places(arguments):
        cuts |= {place, place + count}
    for start, end in pairwise(sorted(cuts)):
        yield arguments[start:end]


def _model_of(source: list[str]) -> dict[str, Any]:
    """What a group of arguments says of `model`: {"method": {"name": ...}, ...}."""
    for _, _, file in config_places(source):
        content = _recipe(file) if _is_file(file) else _yaml(file)  # sweeps give theirs as text
        return content["model"] if isinstance(content, dict) and isinstance(content.get("model"), dict) else {}
    model: dict[str, Any] = {}
    for place, argument in enumerate(source):
        option, given, value = argument.partition("=")
        if not given:
            value = source[place + 1] if place + 1 < len(source) else ""
        said: Any = None
        match option.split("."):
            case ["--model"]:
                said = _yaml(value)
            case ["--model", part]:
                said = {part: _yaml(value)}
            case ["--model", part, "name"]:
                said = {part: {"name": value}}
        if isinstance(said, dict):
            model |= said
    return model


def _recipe(file: str) -> dict[Any, Any]:
    """What a recipe says, read as grids are: the parser takes the last of two equal keys, and names no file.

    Raises:
        RunError: it is no recipe; the words name the file, and the line where there is one.
    """
    try:
        content = yaml.load(Path(file).read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise RunError(f"--config {file} is no YAML: {' '.join(str(error).split())}") from error
    except KeyFault as error:
        raise RunError(f"--config {file}: {error}") from error
    if not isinstance(content, dict):
        said = "nothing" if content is None else f"{type(content).__name__} {content!r:.60}"
        raise RunError(f"--config {file}: a recipe is a mapping of trainer, model, data ...; got {said}")
    return content


def _yaml(text: str) -> Any:
    """What a value, or the file that it names, says; None where it is neither, for which the parser has the words."""
    try:
        return yaml.safe_load(Path(text).read_text() if _is_file(text) else text)
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return None


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than a name can be, or with a null character
        return False
