"""A finished run, opened for a look at what it has trained: its network, teacher and data, as its folder says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from ckdsnn.checkpoint import RunError, load_run
from ckdsnn.cli.training import CLI, Run, quiet
from ckdsnn.configuration import TeacherConfig
from ckdsnn.data import Batch, DataModule
from ckdsnn.models import ANN, SNN
from ckdsnn.teacher import load_teacher
from ckdsnn.train import Distillation


class _Opening(CLI):
    """The command line of a run up to where its trainer would be made."""

    datamodule: DataModule
    model: Distillation

    def __init__(self, arguments: list[str], run: Run, teacher: str | None) -> None:
        self.named_teacher = teacher
        super().__init__(arguments, run)

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        config.model.compile = False  # what is watched runs as it is written
        if config.model.get("teacher") is not None:
            config.model.teacher.unfinished = True  # looked at, not learnt from
            if self.named_teacher is not None:
                config.model.teacher.checkpoint = self.named_teacher
                name = config.model.teacher.name or ""
                if name != "external" and ":" not in name:  # code from elsewhere is named by the run, not by the file
                    config.model.teacher.name, config.model.teacher.options = None, {}
        # Of a training elsewhere: its devices and its callbacks are not needed here.
        for name in ("callbacks", "plugins", "profiler"):
            config.trainer[name] = None
        config.trainer.logger = False
        config.trainer.strategy = config.trainer.accelerator = "auto"
        super().before_instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        return None  # type: ignore[return-value]

    def _run_subcommand(self, subcommand: str) -> None:
        pass


@dataclass
class OpenedRun:
    """What lies in a run's folder.

    Attributes:
        folder: of the run.
        task: its network, in eval mode on `device` and with the weights of `checkpoint`, its method, and its teacher.
        data: its data set.
        teacher: in eval mode on `device`, without gradients; None where the run has none and none was named.
        checkpoint: whose weights the network has.
        device: of networks and batches.
    """

    folder: Path
    task: Distillation
    data: DataModule
    teacher: ANN | None
    checkpoint: Path
    device: torch.device

    def load(self, checkpoint: str | os.PathLike[str]) -> int | None:
        """Gives the network the weights of `checkpoint`, which must be of this run's network.

        Returns:
            How many epochs it had been trained; None where the checkpoint does not say.

        Raises:
            FileNotFoundError: there is no such file.
            RunError: it cannot be read, or holds another network.
        """
        content = load_run(checkpoint)
        self.task.check_checkpoint(content)
        state = content["state_dict"]
        weights = {name.removeprefix("network."): v for name, v in state.items() if name.startswith("network.")}
        try:
            self.task.network.load_state_dict(weights)
        except RuntimeError as error:
            raise RunError(f"the weights in {checkpoint} do not fit the run's network: {error}") from error
        with torch.no_grad():  # what a method has learnt: the strength of its noise
            for name, parameter in self.task.method.named_parameters():
                learnt = state.get(f"method.{name}")
                if isinstance(learnt, Tensor) and learnt.shape == parameter.shape:
                    parameter.copy_(learnt)
        self.checkpoint = Path(checkpoint)
        epoch = content.get("epoch")
        return epoch + 1 if type(epoch) is int else None

    @property
    def network(self) -> SNN:
        """The student, in eval mode."""
        return cast(SNN, self.task.network)

    @property
    def size(self) -> int:
        """How many samples the test part has."""
        self.data.setup("test")
        return len(self.data.test_dataloader().targets)

    def boxes(self, samples: int) -> tuple[Tensor, int] | None:
        """Where the objects of the first test samples are, if the data set knows: corners int64 [N, 2] and a side."""
        if not hasattr(self.data, "test_boxes"):
            return None
        corners, side = self.data.test_boxes()
        return corners[:samples], side

    def batches(self, samples: int, batch_size: int | None = None) -> Iterator[Batch]:
        """The first `samples` samples of the test part, or all where there are fewer, in order and not augmented."""
        data: Any = self.data
        if batch_size is not None:
            data.eval_batch_size = batch_size
        self.data.setup("test")
        left = samples
        for images, targets, indices in self.data.test_dataloader():
            count = min(left, len(targets))
            images = images[:, :count] if images.dim() == 5 else images[:count]
            images = self.task._in_memory_format(images.to(self.device))
            yield Batch(images, targets[:count].to(self.device), indices[:count].to(self.device))
            left -= count
            if left == 0:
                return


def open_run(
    folder: str | os.PathLike[str],
    *,
    root: str | None = None,
    teacher: str | None = None,
    checkpoint: str | None = None,
    device: str | None = None,
) -> OpenedRun:
    """Opens a run of a spiking network by its `config.yaml`, a recipe as any other, and its `last.ckpt`.

    Args:
        folder: of the run, as `ckdsnn fit --out` was given it.
        root: where the data lies now; None: where it lay.
        teacher: a checkpoint that takes the place of the run's own teacher.
        checkpoint: takes the place of `last.ckpt`.
        device: as PyTorch names it; None: a GPU where there is one.

    Raises:
        RunError: there is no run in the folder, it is one of a conventional network, its checkpoint does not belong to
            its configuration, or the device is not there.
        ValueError, FileNotFoundError: the data, the network or the teacher cannot be built.
    """
    folder = Path(folder)
    config = folder / "config.yaml"
    if not folder.is_dir():
        raise RunError(f"there is no folder {folder}: name the folder of a run, the --out of `ckdsnn fit`")
    weights = folder / "last.ckpt" if checkpoint is None else Path(checkpoint)
    for path in (config, weights):
        if not path.is_file():
            raise RunError(
                f"{folder} is not the folder of a run: {path} is missing; name one that `ckdsnn fit` or `distill` wrote"
            )
    if teacher is not None and not Path(teacher).is_file():
        raise FileNotFoundError(f"--teacher {teacher}: no checkpoint at {teacher}: check the path")
    place = _device(device)
    arguments = ["validate", "--config", str(config), "--out", str(folder), "--ckpt_path", str(weights)]
    if root is not None:
        arguments += ["--data.root", root]
    quiet()
    with ExitStack() as held:
        opened = _Opening(arguments, Run(held), teacher)
    task, data = opened.model, opened.datamodule
    if not isinstance(task.network, SNN):
        raise RunError(
            f"{folder} holds {task.run_config['network']['name']}, a conventional network: name the run of its student"
        )
    task.eval().to(place)
    own = task.teacher.model if task.teacher is not None else None
    if own is None and teacher is not None:  # for a run that was trained without one
        own = load_teacher(TeacherConfig(checkpoint=teacher, unfinished=True), data.num_classes, data.in_channels)
    if own is not None:
        own = own.eval().requires_grad_(False).to(place)
    run = OpenedRun(folder, task, data, own, weights, place)
    run.load(weights)
    return run


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RunError(
            f"--device {name} is not there: {str(error).splitlines()[0]}; leave it out, or name cpu"
        ) from error
    return device
