"""What a grid comes to: the runs, their teachers, and the commands of each, checked before the first one starts."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace

from ckdsnn.checkpoint import RunError, load_run, write_text_atomically
from ckdsnn.cli.training import plain, quiet, what_training_depends_on
from ckdsnn.configuration import TeacherConfig, differing_keys
from ckdsnn.losses import METHODS
from ckdsnn.sweep.configuration import configuration
from ckdsnn.sweep.grid import Cell, Grid, GridError
from ckdsnn.teacher import load_teacher
from ckdsnn.weights import fingerprint as fingerprint_of

RECIPE = "recipe.yaml"  # of a cell or a teacher
RECORD = "sweep.json"  # in a run's folder: what it is a run of, and how long it took


@dataclass(frozen=True)
class Job:
    """A run of a sweep: a student of one cell and seed, or a teacher.

    Attributes:
        name: for the terminal.
        folder: with its record and log.
        stages: arguments of `ckdsnn`, one command after the other.
        fingerprint: what its weights depend on.
        result: written by the last stage; None: nothing is tested, and what counts is in its log.
        needs: the folder of the job that has to be finished before; None: nothing.
        epochs: of the training; None: it ends otherwise.
        inside: where in its folder the training writes.
    """

    name: str
    folder: Path
    stages: tuple[tuple[str, ...], ...]
    fingerprint: dict[str, Any]
    result: Path | None
    needs: Path | None = None
    epochs: int | None = None
    inside: str = ""

    def __hash__(self) -> int:
        return hash(self.folder)

    @property
    def run_folder(self) -> Path:
        """Where the training writes; of a teacher, below its own."""
        return self.folder / self.inside

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
        return (self.run_folder / "last.ckpt").exists()

    def metrics(self) -> dict[str, float]:
        """Of its test and of its last validation; {} where it has not come to its end."""
        validation = last_validation(self.run_folder / "logs")
        if self.result is None:
            return validation
        try:
            metrics = json.loads(self.result.read_text())["metrics"]
            return {str(name): float(value) for name, value in metrics.items()} | validation
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}


def last_validation(logs: Path) -> dict[str, float]:
    """What was validated in the last epoch; every time that a training goes on, it begins another log."""
    last, found = -1, dict[str, float]()
    for path in logs.glob("version_*/metrics.csv"):
        with contextlib.suppress(OSError, ValueError, KeyError), path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row.get("val/accuracy") and int(row["epoch"]) >= last:
                    values = {
                        name: float(text) for name, text in row.items() if name and name.startswith("val/") and text
                    }
                    last, found = int(row["epoch"]), values
    return found


@dataclass(frozen=True)
class Student:
    """The run of a cell with a seed."""

    cell: Cell
    seed: int
    job: Job
    teacher: Job | None
    grid: str | None = None  # that has the run, where it is another one

    @property
    def folder(self) -> str:
        """Of the run, in that of the sweep."""
        own = f"{self.cell.folder}/seed{self.seed}"
        return own if self.grid is None else "/".join(["..", self.grid, *self.job.folder.parts[-2:]])


@dataclass(frozen=True)
class Plan:
    """Everything that a sweep runs.

    Attributes:
        grid: of which it is.
        out: folder of the sweep.
        students: a run a cell and seed, seed by seed, so that the seeds that are finished can be compared early.
        teachers: each needed by a student at least: trained, or one that a checkpoint brings, which is tested.
        on_cpu: whether all recipes ask for the CPU.
        only: labels or coordinates of the cells that are to be run; empty: all are.
    """

    grid: Grid
    out: Path
    students: tuple[Student, ...]
    teachers: tuple[Job, ...]
    on_cpu: bool
    only: frozenset[str] = frozenset()

    @property
    def jobs(self) -> list[Job]:
        """What is to be run, with what is finished of it."""
        students = [
            s.job for s in self.students if not self.only or self.only & {s.cell.label, *s.cell.coordinates.values()}
        ]
        needed = {student.needs for student in students}
        return [*(teacher for teacher in self.teachers if teacher.folder in needed), *students]

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
        """Writes the recipes that the commands name, and the grid itself, as `--set` has made it."""
        wanted = {self.out / cell.folder / RECIPE: cell.recipe for cell in self.grid.cells}
        wanted[self.out / f"{self.grid.name}.yaml"] = self.grid.content
        for student in self.students:
            if student.teacher is not None:
                wanted[student.teacher.folder / RECIPE] = student.cell.teacher_recipe
        for path, recipe in wanted.items():
            text = yaml.safe_dump(recipe, sort_keys=False)
            if not path.exists() or path.read_text() != text:
                write_text_atomically(text, path)


def _check_metric(grid: Grid, measured: dict[str, tuple[str, ...]]) -> None:
    """Raises GridError where no cell has the metric, or none of those that have it one to be compared with."""
    key, name = grid.metric.key, grid.metric.key.partition("/")[2]
    if name == "firing_rate":  # which all tests measure
        return
    having = [cell for cell in grid.cells if name in measured[cell.label]]
    if not having:
        known = ", ".join(dict.fromkeys(name for names in measured.values() for name in names))
        raise GridError(f"metric {key!r} is measured in no cell; they have {known}: set metric to one of them")
    others = [other for cell in grid.cells if (other := grid.baseline_of(cell)) is not None]
    if others and not any(name in measured[other.label] for other in others):
        labels = ", ".join(cell.label for cell in having)
        raise GridError(f"baseline {grid.baseline!r} has no {key!r}: set baseline to one that has it: {labels}")


def make_plan(grid: Grid, out: Path, teachers: Path | None = None) -> Plan:
    """The runs of a grid in the folder `out`, which is not touched.

    Args:
        grid: of cells and seeds.
        out: folder of the sweep.
        teachers: folder of the teachers, which other sweeps may share; None: `out / "teachers"`.

    Raises:
        GridError: a cell whose configuration is impossible, a metric that is not measured.
    """
    quiet()
    shared = out / "teachers" if teachers is None else teachers
    read = {cell.label: configuration(cell.label, cell.recipe) for cell in grid.cells}
    _check_metric(grid, {label: measured for label, (_, measured) in read.items()})
    configs = {label: config for label, (config, _) in read.items()}
    of_teachers = {
        cell.label: configs[cell.label]
        if cell.teacher_recipe == cell.recipe
        else configuration(f"{cell.label}: teacher", cell.teacher_recipe)[0]
        for cell in grid.cells
        if _wants_teacher(configs[cell.label])
    }
    tested = grid.metric.tested
    needed: dict[Path, Job] = {}
    students: list[Student] = []
    given = _given_teachers(shared, configs, tested=tested)
    for seed in grid.seeds:
        for cell in grid.cells:
            teacher = given.get(cell.label)
            if cell.label in of_teachers:
                of_seed = seed if grid.teacher_seed is None else grid.teacher_seed
                teacher = _teacher(shared, of_teachers[cell.label], of_seed, tested=tested)
            if teacher is not None and teacher.stages:
                needed.setdefault(teacher.folder, teacher)
            students.append(_student(out, cell, configs[cell.label], seed, teacher, tested=tested))
    on_cpu = all(config.trainer.accelerator == "cpu" for config in configs.values())
    return Plan(grid, out, tuple(students), tuple(needed.values()), on_cpu)


QUIET = ("--trainer.enable_progress_bar", "false")


def _identity(config: Namespace) -> dict[str, Any]:
    """What weights depend on, seed and the teacher's weights aside."""
    model = {key: value for key, value in plain(config.model).items() if key != "seed"}
    depends = what_training_depends_on(config)
    depends["data"]["init_args"].pop("seed", None)
    return {"model": model, **depends}


def _wants_teacher(config: Namespace) -> bool:
    """Whether a cell needs a teacher that has to be trained: not none, nor one that it brings."""
    model = plain(config.model)
    if not METHODS.find(model["method"]["name"]).needs_teacher:
        return False
    return model["teacher"]["checkpoint"] is None and not TeacherConfig(**model["teacher"]).comes_trained


def _teacher(teachers: Path, config: Namespace, seed: int, *, tested: bool) -> Job:
    """The training of a teacher in the folder `teachers`: one for all runs whose teacher has that recipe and seed."""
    identity = _identity(config)
    teacher = identity["model"]["teacher"]
    fingerprint = {
        "teacher": {key: teacher[key] for key in ("name", "options", "epochs")},
        "optimizer": identity["model"]["optimizer"],
        "channels_last": identity["model"].get("channels_last"),
        "data": identity["data"],
        "trainer": {key: value for key, value in identity["trainer"].items() if key != "max_epochs"},
    }
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:8]
    folder = teachers / f"{teacher['name']}-{digest}-seed{seed}"
    common = ("--config", str(folder / RECIPE), "--seed_everything", str(seed))
    stages: tuple[tuple[str, ...], ...] = (("teacher", *common, "--out", str(folder), *QUIET),)
    if tested:
        stages += (_test_of_teacher(folder, seed, teacher["name"], teacher["options"]),)
    name = f"teacher {teacher['name']} ({teacher['epochs']} epochs), seed {seed}"
    result = folder / "teacher" / "test.json" if tested else None
    made = {**fingerprint, "seed": seed}
    return Job(name, folder, stages, made, result, epochs=teacher["epochs"], inside="teacher")


def _test_of_teacher(folder: Path, seed: int, name: str, options: dict[str, Any]) -> tuple[str, ...]:
    network = ("--model.network.name", name, "--model.network.options", json.dumps(options))
    method = ("--model.method.name", "ce", "--model.method.options", "{}")
    of = ("--config", str(folder / RECIPE), "--seed_everything", str(seed), "--out", str(folder / "teacher"))
    return ("test", *of, *network, *method, *QUIET)


def _given_teachers(teachers: Path, configs: dict[str, Namespace], *, tested: bool) -> dict[str, Job]:
    """By label of a cell, the teacher that a checkpoint brings, and the test of it that is to be run, if any.

    It is known by its weights: the file may lie elsewhere when the sweep goes on.

    Raises:
        FileNotFoundError, RunError, ValueError: the file cannot teach; see `load_teacher`.
    """
    found, made = dict[str, Job](), dict[str, Job]()
    for label, config in configs.items():
        model = plain(config.model)
        named, method = model["teacher"] or {}, METHODS.find(model["method"]["name"])
        path = named.get("checkpoint")
        # The code of an external network is not ours to run here.
        if path is None or named["name"] == "external" or not method.needs_teacher:
            continue
        what = json.dumps(named, sort_keys=True)
        if what not in made:
            network = load_run(path)["ckdsnn"]["network"]
            teacher = load_teacher(TeacherConfig(**named), network["num_classes"], network["in_channels"])
            digest = fingerprint_of(teacher.state_dict())
            folder = teachers / f"{network['name']}-{digest[:8]}-given"
            test = _test_of_teacher(folder, 0, network["name"], network["options"])
            stages = ((*test, "--ckpt_path", path),) if tested else ()
            result = folder / "teacher" / "test.json" if tested else None
            made[what] = Job(f"test of {path}", folder, stages, {"given": digest}, result, inside="teacher")
        found[label] = made[what]
    return found


def _student(out: Path, cell: Cell, config: Namespace, seed: int, teacher: Job | None, *, tested: bool) -> Student:
    folder = out / cell.folder / f"seed{seed}"
    fingerprint = {**_identity(config), "seed": seed, "teacher": None if teacher is None else teacher.fingerprint}
    if teacher is not None or not METHODS.find(fingerprint["model"]["method"]["name"]).needs_teacher:
        fingerprint["model"] = {key: value for key, value in fingerprint["model"].items() if key != "teacher"}
    common = ["--config", str(out / cell.folder / RECIPE), "--seed_everything", str(seed), "--out", str(folder)]
    if teacher is not None and config.model.teacher.checkpoint is None:
        common += ["--model.teacher.checkpoint", str(teacher.folder / "teacher" / "last.ckpt")]
    stages = tuple((verb, *common, *QUIET) for verb in (("fit", "test") if tested else ("fit",)))
    teacher = teacher if teacher is not None and teacher.stages else None  # of a given one, nothing may be to be done
    needs = None if teacher is None else teacher.folder
    result = folder / "test.json" if tested else None
    epochs = config.trainer.max_epochs if (config.trainer.max_epochs or 0) > 0 else None
    job = Job(f"{cell.label}, seed {seed}", folder, stages, fingerprint, result, needs, epochs)
    return Student(cell, seed, job, teacher)
