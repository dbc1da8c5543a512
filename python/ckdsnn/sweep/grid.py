"""A grid: which options every cell of a sweep has, read from YAML and checked before anything runs."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from ckdsnn.cli.recipes import with_recipes
from ckdsnn.strict_yaml import KeyFault, Loader
from ckdsnn.sweep.merge import with_options
from ckdsnn.sweep.metrics import METRICS, Metric

GRIDS = Path(__file__).parent.parent / "grids"
KEYS = (
    "recipe",
    "seeds",
    "options",
    "cells",
    "product",
    "zip",
    "baseline",
    "metric",
    "teacher",
    "teacher_seed",
)
SETTINGS = ("recipe", "seeds", "baseline", "metric", "teacher", "teacher_seed")  # of KEYS, what `--set` replaces
SEED = ("seed", "seed_everything", "model.seed", "data.init_args.seed")  # of a run
OWN = ("teachers", "slurm", "table.csv", "table.md", "runs.csv", "bars.png", "line.png", "heatmap.png")  # in the folder
CELL = "cell"  # the dimension of the named cells


class GridError(ValueError):
    """A grid that cannot be run; the words name the key, its value and what to do."""


@dataclass(frozen=True)
class Cell:
    """One configuration of a sweep.

    Attributes:
        label: in tables and plots.
        folder: name of its folder.
        coordinates: its label along every dimension: "cell" for the named ones, else the keys of `product` and `zip`.
        values: of the coordinates, where they are keys.
        options: what it changes of the recipe, by dotted key, in the order in which they are applied.
        recipe: the whole configuration.
        teacher_recipe: the one that its teacher is trained with.
    """

    label: str
    folder: str
    coordinates: dict[str, str]
    values: dict[str, Any]
    options: dict[str, Any]
    recipe: dict[str, Any]
    teacher_recipe: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """Cells and seeds of a sweep, and what is compared.

    Attributes:
        name: of the file or of the packaged grid.
        cells: in the order of the file.
        seeds: every cell is run with each.
        baseline: the label of a cell, or of a coordinate; None: nothing is compared.
        metric: what cells are compared by; where it is of the validation, nothing is tested.
        teacher_seed: of all teachers; None: each run's own.
        content: of its file, with what `--set` has made of it: a grid of its own.
    """

    name: str
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    baseline: str | None
    metric: Metric
    teacher_seed: int | None
    content: dict[str, Any]

    def baseline_of(self, cell: Cell) -> Cell | None:
        """The cell that `cell` is compared with: the one that the baseline names, or the one that has the coordinate
        that it names and agrees with `cell` in all others."""
        for other in self.cells:
            if other.label == self.baseline:
                return None if other is cell else other
        for dimension, label in cell.coordinates.items():
            wanted = {**cell.coordinates, dimension: str(self.baseline)}
            for other in self.cells:
                if other.coordinates == wanted and label != self.baseline:
                    return other
        return None


def load_grid(name: str, settings: list[str] | None = None) -> Grid:
    """The grid of that file, or the packaged grid of that name.

    Args:
        name: of a YAML file or a packaged grid.
        settings: `KEY=VALUE`: replaces the grid's recipe, seeds, baseline, metric, teacher or teacher_seed; any other
            key is an option that all cells have.

    Raises:
        GridError: no such grid, or one that cannot be run as it is.
        UnknownRecipe: it names a recipe that is not there.

    Example:
        >>> from ckdsnn.sweep.grid import load_grid
        >>> grid = load_grid("time_steps", ["seeds=2"])
        >>> grid.cells[0].label, grid.seeds, grid.baseline_of(grid.cells[-1]).label
        ('CE, T=1', (0, 1), 'CE, T=8')
    """
    path = _find(name)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except KeyFault as error:
        raise GridError(f"{path}: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise GridError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    try:
        return build_grid(path.stem, content, settings)
    except GridError as error:
        raise GridError(f"{path}: {error}") from None


def _find(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    grids = {path.stem: path for path in GRIDS.glob("*.yaml")}
    if name in grids:
        return grids[name]
    if name.endswith((".yaml", ".yml")) or "/" in name:
        raise GridError(f"there is no file {name}: check the path")
    near = difflib.get_close_matches(name, grids, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise GridError(f"no such file or grid {name!r}; {hint}grids: {', '.join(sorted(grids))}")


def build_grid(name: str, content: Any, settings: list[str] | None = None) -> Grid:
    """The grid that a file's content says; see :func:`load_grid`."""
    if not isinstance(content, dict):
        raise GridError(f"a grid is a mapping of {', '.join(KEYS)}; got {_kind(content)}")
    for key in content:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            raise GridError(f"unknown key {key!r}; " + (f"did you mean {near[0]!r}?" if near else f"keys: {KEYS}"))
    content = dict(content)
    common = _options("options", content.get("options"))
    for setting in settings or []:
        key, given, text = setting.partition("=")
        if not given or not key:
            raise GridError(f"--set {setting}: must be KEY=VALUE")
        try:
            value = yaml.load(text, Loader)
        except yaml.YAMLError as error:
            raise GridError(f"--set {setting}: the value is no YAML") from error
        except KeyFault as error:
            raise GridError(f"--set {setting}: {error}") from None
        if key in SETTINGS:
            content[key] = value
            continue
        if key in KEYS:
            raise GridError(f"--set {setting}: {key} stands in a grid's file: set the keys of a recipe one by one")
        option = _options("--set", {key: value})
        if near := difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.75):
            raise GridError(f"--set {setting}: there is no key {key!r}; did you mean {near[0]!r}?")
        common |= option
    if common:
        content["options"] = common
    recipe = _recipe(content.get("recipe"))
    cells = _cells(content, common, recipe, _options("teacher", content.get("teacher")))
    metric = _text(content, "metric", "test/accuracy")
    if metric not in METRICS:
        raise GridError(f"metric {metric!r} is not one of a run: {', '.join(METRICS)}")
    grid = Grid(
        name,
        cells,
        _seeds(content.get("seeds", 1)),
        _text(content, "baseline", None),
        METRICS[metric],
        _whole("teacher_seed", content.get("teacher_seed")),
        content,
    )
    if any(cell.folder.lower() == f"{name}.yaml".lower() for cell in cells):
        raise GridError(f"a cell named {name}.yaml would have the place of the sweep's own file: rename it")
    if grid.baseline is not None:
        known = [cell.label for cell in cells] + [text for cell in cells for text in cell.coordinates.values()]
        if grid.baseline not in known:
            raise GridError(f"baseline {grid.baseline!r} is no cell; cells: {', '.join(dict.fromkeys(known))}")
    return grid


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"


def _text(content: Mapping[str, Any], key: str, default: Any) -> Any:
    value = content.get(key, default)
    if value is not None and not isinstance(value, str):
        raise GridError(f"{key} must be a name, got {_kind(value)}: put it in quotes")
    return value


def _whole(key: str, value: Any) -> Any:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise GridError(f"{key} must be a whole number of at least 0, got {_kind(value)}")
    return value


def _seeds(value: Any) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return tuple(range(value))
    if not isinstance(value, list) or not value:
        raise GridError(f"seeds must be a number of seeds (at least 1) or a list of them, got {_kind(value)}")
    for seed in value:
        if seed is None or _whole("a seed", seed) >= 2**32:
            raise GridError(f"a seed must be a whole number below 2^32, got {_kind(seed)}")
    if len(set(value)) < len(value):
        raise GridError(f"seeds {value} name one twice: remove it")
    return tuple(value)


def _options(where: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise GridError(f"{where} must be a mapping of keys of a recipe to values, got {_kind(value)}")
    made = {}
    for key, option in value.items():
        if not isinstance(key, str) or not all(key.split(".")):
            raise GridError(f"{where}: a key must be one of a recipe, e.g. model.optimizer.lr, got {_kind(key)}")
        if key in ("out", "ckpt_path"):
            raise GridError(f"{where}: {key} is set by the sweep itself: remove it")
        parts = key.split(".")
        if parts[0] == "data" and len(parts) > 1 and parts[1] not in ("class_path", "init_args"):
            key = ".".join(["data", "init_args", *parts[1:]])  # as on the command line
        if key in SEED:  # a typing error of the grid's own key, or one that the run's seed would replace
            raise GridError(
                f"{where}: {key} is set by the sweep itself: set the grid's seeds, a number or a list of them"
            )
        if key in made:
            raise GridError(f"{where}: {key} is given twice: remove one of them")
        made[key] = option
    return made


def _recipe(name: Any) -> dict[str, Any]:
    if not isinstance(name, str) or not name:
        raise GridError(f"recipe must be the name or file of a recipe, got {_kind(name)}")
    path = Path(with_recipes(["--config", name])[1])
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, GridError) as error:
        raise GridError(f"recipe {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise GridError(f"recipe {path} is no mapping of options, but {_kind(content)}")
    return content


@dataclass(frozen=True)
class _Point:
    """A choice along one or several dimensions."""

    coordinates: dict[str, str]
    values: dict[str, Any]
    options: dict[str, Any]


def _cells(
    content: Mapping[str, Any], common: dict[str, Any], recipe: dict[str, Any], teacher: dict[str, Any]
) -> tuple[Cell, ...]:
    axes = list(_axes(content))
    if not axes:
        raise GridError("the grid has no cells: give it cells, product or zip; `cells: {NAME: {}}` is the recipe alone")
    keys = list(itertools.chain.from_iterable({key for point in axis for key in point.options} for axis in axes))
    for key in keys:
        if keys.count(key) > 1:
            raise GridError(f"{key} is varied twice, by two of cells, product and zip: remove it from one")
    dimensions = list(itertools.chain.from_iterable(axis[0].coordinates for axis in axes))
    shown = {dimension: _short(dimension, dimensions) for dimension in dimensions}
    made: list[Cell] = []
    for points in itertools.product(*axes):
        coordinates = {key: text for point in points for key, text in point.coordinates.items()}
        values = {key: value for point in points for key, value in point.values.items()}
        options = dict(common)
        for point in points:
            for key, value in point.options.items():
                options.pop(key, None)  # so that the order is that of the places that they come from
                options[key] = value
        named = ((text, key == CELL or not text, shown[key]) for key, text in coordinates.items())
        label = ", ".join(text if alone else f"{key}={text}" for text, alone, key in named)
        folder = re.sub(r"[^A-Za-z0-9.+=_-]+", "_", label).strip("._") or "cell"
        merged = with_options(recipe, options)
        made.append(Cell(label, folder[:120], coordinates, values, options, merged, with_options(merged, teacher)))
    for what in ("label", "folder"):
        names = [getattr(cell, what).lower() for cell in made]
        for name in names:
            if names.count(name) > 1:
                raise GridError(f"two cells have the {what} {name!r}: name them differently")
            if what == "folder" and name in OWN:
                raise GridError(f"a cell named {name!r} would have the folder of the sweep's own {name}: rename it")
    return tuple(made)


def _axes(content: Mapping[str, Any]) -> Iterator[list[_Point]]:
    if "cells" in content:
        cells = content["cells"]
        if not isinstance(cells, dict) or not cells:
            raise GridError(f"cells must be a mapping of names to options, and have one at least; got {_kind(cells)}")
        points = []
        for label, options in cells.items():
            if not isinstance(label, (str, int, float)) or not str(label).strip():
                raise GridError(f"cells: the name of a cell must be a text, got {_kind(label)}")
            points.append(_Point({CELL: str(label)}, {}, _options(f"cells.{label}", options)))
        yield points
    for key, choices in _choices(content, "product").items():
        yield [_Point({key: text}, {key: value}, {key: value}) for text, value in choices]
    zipped = _choices(content, "zip")
    lengths = {key: len(choices) for key, choices in zipped.items()}
    if len(set(lengths.values())) > 1:
        raise GridError(f"zip: all keys need the same number of values, got {lengths}")
    if zipped:
        points = []
        for row in zip(*zipped.values(), strict=True):
            values = {key: value for key, (_, value) in zip(zipped, row, strict=True)}
            points.append(_Point({key: text for key, (text, _) in zip(zipped, row, strict=True)}, values, values))
        yield points


def _choices(content: Mapping[str, Any], where: str) -> dict[str, list[tuple[str, Any]]]:
    """Key -> labels and values, of `product` or `zip`."""
    if where not in content:
        return {}
    options = _options(where, content[where])
    if not options:
        raise GridError(f"{where} must be a mapping of keys of a recipe to lists of values, got nothing: remove it")
    made = {}
    for key, values in options.items():
        if not isinstance(values, (list, dict)) or not values:
            raise GridError(
                f"{where}.{key} must be a list of values, or a mapping of labels to them, and have one at least; got "
                f"{_kind(values)}"
            )
        named = values.items() if isinstance(values, dict) else ((_label(value), value) for value in values)
        made[key] = [(str(text), value) for text, value in named]
        texts = [text for text, _ in made[key]]
        if where == "product" and len(set(texts)) < len(texts):
            raise GridError(f"{where}.{key} has a value twice: {', '.join(texts)}")
    return made


def _label(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
    return "none" if value is None else str(value)


NAMES = {"time_steps": "T", "strength": "lambda"}


def _short(dimension: str, dimensions: list[str]) -> str:
    """The last part of a key, or as many as tell it from the others."""
    parts = dimension.split(".")
    for count in range(1, len(parts) + 1):
        end = ".".join(parts[-count:])
        if sum(other == end or other.endswith("." + end) for other in dimensions) == 1:
            return NAMES.get(end, end)
    return dimension
