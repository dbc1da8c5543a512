"""What `--help` says of the options of methods and networks."""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap
from typing import Any

from ckdsnn.registry import Registry

WIDTH = 100


def listing(title: str, key: str, registry: Registry[Any]) -> str:
    """The options of everything in a registry, a paragraph each, with their types and defaults."""
    lines = [f"{title} (--{key}.help NAME says what they mean):"]
    for name in sorted(registry):
        options = registry.options_class(registry[name])
        assert options is not None
        said = ", ".join(f"{o.name}: {o.type} = {o.default}" for o in options.listed(described=False))
        lines.append(textwrap.fill(f"{name}  {said}", WIDTH, initial_indent="  ", subsequent_indent="      "))
    return "\n".join(lines) + "\n"


def page(name: str, registry: Registry[Any]) -> str:
    """What is named, and what each of its options means.

    Raises:
        ValueError: nothing has that name.
    """
    entry = registry.find(name)
    options = registry.options_class(entry)
    assert options is not None
    lines = [f"{registry.kind} {name}", "", _without_markup(inspect.getdoc(entry) or ""), "", "Options:"]
    for option in options.listed():
        lines.append(f"  {option.name}: {option.type} (default: {option.default})")
        text = _without_markup(option.description)
        lines.append(textwrap.fill(text, WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8))
    return "\n".join(lines)


def _without_markup(text: str) -> str:
    """A docstring's text as a terminal shows it."""
    return re.sub(r":\w+:`~?([\w.]+)`", r"\1", text).replace("``", "")


class OptionsHelp(argparse.Action):
    """`--KEY.help NAME`: prints the page of that name and ends.

    Args:
        registry: where the name is looked up.
    """

    def __init__(self, option_strings: list[str], *, registry: Registry[Any], **options: Any) -> None:
        options |= {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS, "metavar": "NAME"}
        super().__init__(option_strings, **options)
        self.registry = registry

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, name: Any, option: str | None = None) -> None:
        try:
            print(page(name, self.registry))
        except ValueError as error:
            parser.error(str(error))
        parser.exit()
