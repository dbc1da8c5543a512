"""A cell's recipe as the command line reads it, and what can be said of it before anything runs."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace

from ckdsnn.cli.overrides import with_fresh_options
from ckdsnn.cli.training import CLI, Run, plain
from ckdsnn.configuration import MethodConfig, ModelConfig, TeacherConfig
from ckdsnn.data import Augmentation
from ckdsnn.models import make_model
from ckdsnn.optimisation import OptimizerConfig
from ckdsnn.sweep.grid import GridError
from ckdsnn.training.evaluation import metric_names


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


def configuration(label: str, recipe: dict[str, Any], seed: int = 0) -> tuple[Namespace, tuple[str, ...]]:
    """What the recipe of a cell comes to, read as the command line reads it and built where that takes no memory, and
    the metrics that its evaluations have.

    Raises:
        GridError: an option that does not exist, or that the method or the network refuses.
    """
    arguments = ["fit", "--config", yaml.safe_dump(recipe), "--seed_everything", str(seed)]
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            config = _ParserAlone().parser.parse_args(with_fresh_options(arguments)).fit
        return config, tuple(_build(config))
    except SystemExit:
        said = messages.getvalue().removeprefix("ckdsnn: error: ").replace("\n  unknown option", "; unknown option")
        raise GridError(f"cell {label!r}: {' '.join(said.split())}") from None
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        raise GridError(f"cell {label!r}: {' '.join(str(error).split())}") from error


def _build(config: Namespace) -> list[str]:
    """Builds method, networks, optimiser and augmentation as far as data and files are not needed; returns the names of
    what is measured."""
    model, data = plain(config.model), plain(config.data)["init_args"]
    OptimizerConfig(**model["optimizer"])
    if data.get("augmentation") is not None:
        Augmentation(**data["augmentation"])
    method = MethodConfig(**model["method"]).build()
    network, teacher = ModelConfig(**model["network"]), model["teacher"]
    with torch.device("meta"):
        student = network.build(10, None, method)
        measured = metric_names(method, dense=student.dense)
        if not method.needs_teacher:
            return measured
        if teacher is None:
            raise ValueError(f"method {model['method']['name']} needs a teacher: set model.teacher.name")
        named = TeacherConfig(**teacher)
        if named.name is None and named.checkpoint is None:
            raise ValueError("model.teacher names neither a network nor a checkpoint: set model.teacher.name")
        if named.name not in (None, "external"):  # whose code is not ours to run here
            method.bind(student, make_model(named.name, 10, None, named.options))  # type: ignore[arg-type]
    return measured
