"""What a grid comes to: the runs, their teachers, and the commands of each, checked before the first one starts."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace

from ckdsnn.checkpoint import RunError, write_text_atomically
from ckdsnn.cli.overrides import with_fresh_options
from ckdsnn.cli.training import CLI, Run, plain, quiet, what_training_depends_on
from ckdsnn.configuration import MethodConfig, ModelConfig, TeacherConfig, differing_keys
from ckdsnn.losses import METHODS
from ckdsnn.models import make_model
from ckdsnn.sweep.grid import Cell, Grid, GridError

RECORD = "sweep.json"  # in a run's folder: what it is a run of, and how long it took


@dataclass(frozen=True)
class Job:
    """A run of a sweep: a student of one cell and seed, or a teacher.

    Attributes:
        name: for the terminal.
        folder: with its record and log.
        stages: arguments of `ckdsnn`, one command after the other.
        fingerprint: what its weights depend on.
        result: written by the last stage.
        needs: the folder of the job that has to be finished before; None: nothing.
    """

    name: str
    folder: Path
    stages: tuple[tuple[str, ...], ...]
    fingerprint: dict[str, Any]
    result: Path
    needs: Path | None = None

    def record(self) -> dict[str, Any]:
        """What is known of it from earlier; {}: nothing."""
        try:
            content = json.loads((self.folder / RECORD).read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def write_record(self, seconds: float, *, finished: bool) -> None:
        """Keeps what it is a run of, and for how many seconds it has run so far."""
        content = {"fingerprint": self.fingerprint, "seconds": seconds, "finished": finished}
        write_text_atomically(json.dumps(content, indent=1), self.folder / RECORD)

    @property
    def seconds(self) -> float:
        """So far."""
        seconds = self.record().get("seconds", 0.0)
        return float(seconds) if isinstance(seconds, (int, float)) else 0.0

    @property
    def finished(self) -> bool:
        """Whether its result is there, and is one of this configuration."""
        record = self.record()
        return bool(record.get("finished")) and record.get("fingerprint") == self.fingerprint and bool(self.metrics())

    @property
    def started(self) -> bool:
        return (self.folder / "last.ckpt").exists() or (self.folder / "teacher" / "last.ckpt").exists()

    def metrics(self) -> dict[str, float]:
        """Of its test; {} where there is none."""
        try:
            metrics = json.loads(self.result.read_text())["metrics"]
            return {str(name): float(value) for name, value in metrics.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}


@dataclass(frozen=True)
class Student:
    """The run of a cell with a seed."""

    cell: Cell
    seed: int
    job: Job
    teacher: Job | None


@dataclass(frozen=True)
class Plan:
    """Everything that a sweep runs.

    Attributes:
        grid: of which it is.
        out: folder of the sweep.
        students: a run a cell and seed, seed by seed, so that the seeds that are finished can be compared early.
        teachers: each needed by a student at least.
        on_cpu: whether all recipes ask for the CPU.
    """

    grid: Grid
    out: Path
    students: tuple[Student, ...]
    teachers: tuple[Job, ...]
    on_cpu: bool

    @property
    def jobs(self) -> list[Job]:
        return [*self.teachers, *(student.job for student in self.students)]

    def check_folders(self) -> None:
        """Raises RunError where a folder holds a run of another configuration, which is not to be lost or mixed."""
        for job in self.jobs:
            held = job.record().get("fingerprint")
            if held is not None and held != job.fingerprint:
                changes = "; ".join(differing_keys(held, json.loads(json.dumps(job.fingerprint)))) or repr(held)
                raise RunError(
                    f"{job.folder} holds a run of another configuration ({changes:.500}): name another folder with "
                    f"--out, or remove that one"
                )

    def write_recipes(self) -> None:
        """Writes the recipes that the commands name."""
        for cell in self.grid.cells:
            text = yaml.safe_dump(cell.recipe, sort_keys=False)
            path = recipe_of(self.out, cell)
            if not path.exists() or path.read_text() != text:
                write_text_atomically(text, path)


def recipe_of(out: Path, cell: Cell) -> Path:
    return out / cell.folder / "recipe.yaml"


class _ParserAlone(CLI):
    """The command line's parser: nothing is read, seeded, built or run yet."""

    def __init__(self) -> None:
        super().__init__([], Run(contextlib.ExitStack()))

    def parse_arguments(self, parser: Any, args: Any) -> None:
        self.config = Namespace(subcommand=None)

    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


@lru_cache(maxsize=1)
def _parser() -> Any:
    return _ParserAlone().parser


def configuration(cell: Cell, seed: int = 0) -> Namespace:
    """What the recipe of a cell comes to, read as the command line reads it, and built where that takes no memory.

    Raises:
        GridError: an option that does not exist, or that the method or the network refuses.
    """
    arguments = ["fit", "--config", yaml.safe_dump(cell.recipe), "--seed_everything", str(seed)]
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            config = _parser().parse_args(with_fresh_options(arguments)).fit
        _build(config)
    except SystemExit:
        said = " ".join(messages.getvalue().removeprefix("ckdsnn: error: ").split())
        raise GridError(f"cell {cell.label!r}: {said}") from None
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        raise GridError(f"cell {cell.label!r}: {' '.join(str(error).split())}") from error
    return config


def _build(config: Namespace) -> None:
    """Builds method and networks as far as data and files are not needed."""
    model = plain(config.model)
    method = MethodConfig(**model["method"]).build()
    network, teacher = ModelConfig(**model["network"]), model["teacher"]
    with torch.device("meta"):
        student = network.build(10, None, method)
        if not method.needs_teacher:
            return
        if teacher is None:
            raise ValueError(f"method {model['method']['name']} needs a teacher: set model.teacher.name")
        named = TeacherConfig(**teacher)
        if named.name is None and named.checkpoint is None:
            raise ValueError("model.teacher names neither a network nor a checkpoint: set model.teacher.name")
        if named.name not in (None, "external"):  # whose code is not ours to run here
            method.bind(student, make_model(named.name, 10, None, named.options))  # type: ignore[arg-type]


def make_plan(grid: Grid, out: Path) -> Plan:
    """The runs of a grid in the folder `out`, which is not touched.

    Raises:
        GridError: a cell whose configuration is impossible.
    """
    quiet()
    configs = {cell.label: configuration(cell) for cell in grid.cells}
    teachers: dict[Path, Job] = {}
    students: list[Student] = []
    for seed in grid.seeds:
        for cell in grid.cells:
            config = configs[cell.label]
            teacher = _teacher(grid, out, cell, config, seed)
            if teacher is not None:
                teacher = teachers.setdefault(teacher.folder, teacher)
            students.append(_student(out, cell, config, seed, teacher))
    on_cpu = all(config.trainer.accelerator == "cpu" for config in configs.values())
    return Plan(grid, out, tuple(students), tuple(teachers.values()), on_cpu)


QUIET = ("--trainer.enable_progress_bar", "false")


def _identity(config: Namespace) -> dict[str, Any]:
    """What a run's weights depend on, its seed and its teacher's weights aside."""
    model = {key: value for key, value in plain(config.model).items() if key != "seed"}
    depends = what_training_depends_on(config)
    depends["data"]["init_args"].pop("seed", None)
    return {"model": model, **depends}


def _teacher(grid: Grid, out: Path, cell: Cell, config: Namespace, seed: int) -> Job | None:
    """The training of the teacher that a cell needs; None: it needs none, or brings its own."""
    identity = _identity(config)
    teacher = identity["model"]["teacher"]
    if not METHODS.find(identity["model"]["method"]["name"]).needs_teacher:
        return None
    if teacher["checkpoint"] is not None or TeacherConfig(**teacher).comes_trained:
        return None
    seed = seed if grid.teacher_seed is None else grid.teacher_seed
    fingerprint = {
        "teacher": {key: teacher[key] for key in ("name", "options", "epochs")},
        "optimizer": identity["model"]["optimizer"],
        "channels_last": identity["model"].get("channels_last"),
        "data": identity["data"],
        "trainer": {key: value for key, value in identity["trainer"].items() if key != "max_epochs"},
    }
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:8]
    folder = out / "teachers" / f"{teacher['name']}-{digest}-seed{seed}"
    common = ("--config", str(recipe_of(out, cell)), "--seed_everything", str(seed))
    network = ("--model.network.name", teacher["name"], "--model.network.options", json.dumps(teacher["options"]))
    tested = (*network, "--model.method.name", "ce", "--model.method.options", "{}")
    stages = (
        ("teacher", *common, "--out", str(folder), *QUIET),
        ("test", *common, *tested, "--out", str(folder / "teacher"), *QUIET),
    )
    name = f"teacher {teacher['name']} ({teacher['epochs']} epochs), seed {seed}"
    return Job(name, folder, stages, {**fingerprint, "seed": seed}, folder / "teacher" / "test.json")


def _student(out: Path, cell: Cell, config: Namespace, seed: int, teacher: Job | None) -> Student:
    folder = out / cell.folder / f"seed{seed}"
    fingerprint = {**_identity(config), "seed": seed, "teacher": None if teacher is None else teacher.fingerprint}
    if teacher is not None or not METHODS.find(fingerprint["model"]["method"]["name"]).needs_teacher:
        fingerprint["model"] = {key: value for key, value in fingerprint["model"].items() if key != "teacher"}
    common = ["--config", str(recipe_of(out, cell)), "--seed_everything", str(seed), "--out", str(folder)]
    if teacher is not None:
        common += ["--model.teacher.checkpoint", str(teacher.folder / "teacher" / "last.ckpt")]
    stages = tuple((verb, *common, *QUIET) for verb in ("fit", "test"))
    needs = None if teacher is None else teacher.folder
    job = Job(f"{cell.label}, seed {seed}", folder, stages, fingerprint, folder / "test.json", needs)
    return Student(cell, seed, job, teacher)
