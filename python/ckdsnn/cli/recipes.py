"""Recipes: the files that `--config` names, and the ones that come with this package."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

RECIPES = Path(__file__).parent.parent / "recipes"


class UnknownRecipe(ValueError):
    """There is no such file or recipe, or it is not on this machine."""


def recipes() -> dict[str, str]:
    """The files of the packaged recipes, by their names in order."""
    return {path.stem: str(path) for path in sorted(RECIPES.glob("*.yaml"))}


def config_places(arguments: list[str]) -> Iterator[tuple[int, int, str]]:
    """Every `--config VALUE` or `--config=VALUE`: its place, the number of arguments that it takes, the value."""
    place = 0
    while place < len(arguments):
        option, given, value = arguments[place].partition("=")
        count = 1
        if option in ("--config", "-c"):
            if not given and place + 1 < len(arguments):
                count, value = 2, arguments[place + 1]
            yield place, count, value
        place += count


def with_recipes(arguments: list[str]) -> list[str]:
    """`--config NAME` means the packaged recipe of that name, where there is no such file.

    Raises:
        UnknownRecipe: neither a file of this machine nor a recipe of this package.
    """
    known = recipes()
    found = list(arguments)
    for place, count, name in config_places(arguments):
        if "://" in name:
            raise UnknownRecipe(
                f"--config {name}: a recipe can name code to run, so it is a file of this machine: download it, and "
                "read it first"
            )
        if Path(name).exists() or not name:
            continue
        if name.endswith((".yaml", ".yml", ".json")) or "/" in name:
            raise UnknownRecipe(f"--config {name}: there is no such file")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UnknownRecipe(f"--config {name}: no such file or recipe; {hint}recipes: {', '.join(known)}")
        found[place + count - 1] = known[name] if count == 2 else f"--config={known[name]}"
    return found
