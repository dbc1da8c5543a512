"""The commands of Lightning's trainer, with run folders."""

from __future__ import annotations

import json
import logging
import sys
import warnings
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ckdsnn.callbacks import PredictionWriter, ProgressBar
from ckdsnn.checkpoint import RunError, load_run, provenance, write_text_atomically
from ckdsnn.cli.failure import words_for
from ckdsnn.cli.options_help import OptionsHelp
from ckdsnn.cli.output import BestCheckpoint, SaveConfig, TensorBoard, Termination
from ckdsnn.cli.overrides import with_fresh_options
from ckdsnn.cli.parser import Parser
from ckdsnn.cli.stages import TEACHER
from ckdsnn.cli.stopping import INTERRUPTED, TERMINATED, say_how_to_go_on
from ckdsnn.configuration import TeacherConfig
from ckdsnn.data import DataModule
from ckdsnn.losses import METHODS
from ckdsnn.models import MODELS
from ckdsnn.run_folder import alone_in, check_writable, forget_logs
from ckdsnn.train import Distillation
from ckdsnn.training.writer import BackgroundCheckpointIO, ResumeCheckpoint


@dataclass
class Run:
    """What is known of a run while it goes, for the words at its end.

    Attributes:
        held: closed at the end.
        out: its folder, once the configuration is read.
        trains: whether it has something to go on with.
    """

    held: ExitStack
    out: Path | None = None
    trains: bool = False


class NothingToTrain(Exception):
    """What a command is to train is there already, or nobody needs it; the words say which."""


_parsers: dict[str, Any] = {}  # what Lightning's command line keeps of its parser and those of its commands


class CLI(LightningCLI):
    """Lightning's command line with run folders: checkpoints, logs and results of a run lie in `--out`.

    Args:
        arguments: of the command line, starting with a verb of Lightning's Trainer.
        run: told where the run is, and ends what it holds.
        teacher: train the recipe's teacher in place of its student.
        if_needed: unless the method has no use for a teacher.
    """

    def __init__(self, arguments: list[str], run: Run, *, teacher: bool = False, if_needed: bool = False) -> None:
        self.for_teacher, self.if_needed, self.run = teacher, if_needed, run
        self.out = Path()
        super().__init__(
            Distillation,
            DataModule,
            subclass_mode_data=True,
            parser_class=Parser,
            parser_kwargs={"prog": "ckdsnn"},
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={"log_every_n_steps": 50, "num_sanity_val_steps": 0},
            auto_configure_optimizers=False,
            args=arguments,
        )

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """The same for all commands of a process: it takes as long to make as some trainings do."""
        if not _parsers:
            before = dict(vars(self))
            super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
            _parsers.update({name: value for name, value in vars(self).items() if name not in before})
        vars(self).update(_parsers)

    def _add_instantiators(self) -> None:
        """The parser stays, and would keep this run's networks and data, on the device too, until the next one's."""
        LightningCLI._add_instantiators(weakref.proxy(self))

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=int, default=0, help="seed of weights, data order and noise")
        parser.add_argument("--out", type=str, default="runs/default", help="folder of the run")
        parser.add_argument(
            "--save_every_n_steps",
            type=int | None,
            default=None,
            help="write a checkpoint every so many optimiser steps, too",
        )
        parser.add_argument(
            "--save_every_seconds", type=float, default=60.0, help="time between two checkpoints of a training"
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        assert isinstance(parser, Parser)
        parser.remove(".options.help")  # empty ones: what there is depends on the name
        parser.add_argument("--model.network.help", action=OptionsHelp, registry=MODELS, help="its options, and exit")
        parser.add_argument("--model.method.help", action=OptionsHelp, registry=METHODS, help="its options, and exit")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.in_channels", "model.in_channels", apply_on="instantiate")

    def _set_seed(self) -> None:
        seed = self.config[self.subcommand].seed_everything
        if not 0 <= seed < 2**32:  # of numpy's
            raise RunError(f"seed_everything must lie in [0, {2**32 - 1}], got {seed}")
        super()._set_seed()

    def _parse_ckpt_path(self) -> None:
        """Lightning would take the model's arguments from the checkpoint; here the recipe says what to build, and a
        checkpoint that holds something else is refused."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        training = self.subcommand == "fit"
        if config.trainer.default_root_dir is not None:
            raise RunError("trainer.default_root_dir: the folder of a run is --out, and all that it writes lies there")
        if config.weights_only is False:
            raise RunError("weights_only must be true or null: no checkpoint runs code")
        if training and config.trainer.limit_train_batches == 0:
            raise RunError("trainer.limit_train_batches must leave batches to train on, got 0")
        if self.if_needed and not METHODS.find(config.model.method.name).needs_teacher:
            raise NothingToTrain(f"the method {config.model.method.name} needs no teacher: none is trained")
        self.out = Path(config.out) / "teacher" if self.for_teacher else Path(config.out)
        self.run.out, self.run.trains = self.out, training
        if self.subcommand != "validate":
            check_writable(self.out)
        last = self.out / "last.ckpt"
        if config.ckpt_path is None and (not training or last.exists()):
            config.ckpt_path = str(last)
        if config.ckpt_path in ("best", "last", "hpc") and not Path(config.ckpt_path).exists():
            file = self.out / ("best.ckpt" if config.ckpt_path == "best" else "last.ckpt")
            raise RunError(f"ckpt_path must be a file, got Lightning's word {config.ckpt_path!r}: write {file}")
        if config.ckpt_path is not None:
            load_run(config.ckpt_path)  # fails before anything else is done
        if self.for_teacher:
            self._train_the_teacher(config)
        elif config.model.get("teacher") is not None:
            self._find_the_teacher(config)
        if not training:
            config.model.network.weights = None  # those of the checkpoint are tested

    def _train_the_teacher(self, config: Namespace) -> None:
        teacher = config.model.get("teacher")
        given = teacher.checkpoint if teacher is not None else None
        if given not in (None, str(self.out / "last.ckpt")):
            load_run(given)
            raise NothingToTrain(f"the teacher is {given} (model.teacher.checkpoint): none is trained")
        if teacher is None or teacher.name is None:
            raise RunError("the configuration names no teacher to train: set model.teacher.name")
        config.model.network = Namespace(name=teacher.name, options=teacher.options, weights=None)
        config.model.method = Namespace(name="ce", options={})
        config.model.teacher = None
        config.trainer.max_epochs = teacher.epochs

    def _find_the_teacher(self, config: Namespace) -> None:
        teacher, trained = config.model.teacher, self.out / "teacher" / "last.ckpt"
        if not METHODS.find(config.model.method.name).needs_teacher:
            config.model.teacher = None  # a recipe's teacher stays unused when the command line asks for ce
        elif teacher.checkpoint is None:
            # One that comes with weights of its own may still have been trained on by `ckdsnn teacher`.
            if trained.exists() or not TeacherConfig(**teacher.as_dict()).comes_trained:
                teacher.checkpoint = str(trained)
        elif not Path(teacher.checkpoint).exists() and trained.exists() and config.ckpt_path is not None:
            # The folder has moved since its config.yaml was written; whether it is the same teacher is checked.
            self._say(f"there is no {teacher.checkpoint} any more: the teacher is {trained}")
            teacher.checkpoint = str(trained)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, ImportError, FileNotFoundError) as error:
            # jsonargparse wraps what a data module refuses into a page about unions of types.
            raise RunError(words_for(error) or str(error.__cause__ or error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config[self.subcommand]
        self.model.run_config |= {"seed": config.seed_everything} | what_training_depends_on(config)
        last = self.out / "last.ckpt"
        callbacks: list[Any] = [PredictionWriter(self.out / "predictions.csv")]
        callbacks.append(Termination(last if self.subcommand == "fit" else None))
        if config.trainer.enable_progress_bar is not False:
            callbacks.append(ProgressBar())
        if self.subcommand == "fit":
            callbacks.append(ResumeCheckpoint(last, config.save_every_seconds, config.save_every_n_steps))
            if self.datamodule.has_validation:
                callbacks.append(BestCheckpoint(self.out, dense=self.datamodule.dense))
        self.trainer_defaults["callbacks"] = callbacks
        given = self.config_init[self.subcommand].trainer.plugins or []
        plugins = [*(given if isinstance(given, list) else [given]), BackgroundCheckpointIO()]
        kwargs |= {"default_root_dir": str(self.out), "plugins": plugins}
        kwargs["enable_model_summary"] = bool(config.trainer.enable_model_summary)
        if config.trainer.logger is None:
            kwargs["logger"] = False
            if self.subcommand == "fit":
                csv_log = CSVLogger(self.out, name="logs")  # a new version every time the run goes on
                kwargs["logger"] = [csv_log, TensorBoard(self.out, name="tensorboard", version=csv_log.version)]
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        path, last = self.config.fit.ckpt_path, self.out / "last.ckpt"
        if self.trainer.is_global_zero:
            self.run.held.enter_context(alone_in(self.out, "training"))
            if path is None and last.exists():
                raise RunError(f"another training has written {last} meanwhile: give the same command again")
        if path is None:
            epochs = f" for {self.trainer.max_epochs} epochs (model.teacher.epochs)" if self.for_teacher else ""
            self._say(f"training in {self.out}{epochs}")
            return
        checkpoint = load_run(path)
        if missing := [key for key in RESUME_KEYS if key not in checkpoint]:
            raise RunError(
                f"{path} cannot be resumed, it has no {', '.join(missing)}: name another checkpoint, or another folder "
                "for a new run"
            )
        self.model.check_resumable(checkpoint, self.trainer.world_size)
        if self.trainer.is_global_zero:
            forget_logs(self.out / "logs", checkpoint["global_step"])
        self._say(f"{self.out} is finished" if checkpoint["ckdsnn"]["finished"] else f"going on with {path}")

    def after_fit(self) -> None:
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        if "val/accuracy" in metrics:
            iou = f", mean IoU {100 * metrics['val/mean_iou']:.2f} %" if "val/mean_iou" in metrics else ""
            self._say(f"validation accuracy at the last epoch {100 * metrics['val/accuracy']:.2f} %{iou}")
        last = self.out / "last.ckpt"
        self._say(f"weights: {last}" if last.exists() else f"no step was taken, and nothing saved in {self.out}")

    def after_test(self) -> None:
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        path = self.out / "test.json"
        written = {"checkpoint": str(self.config.test.ckpt_path), "metrics": metrics, **provenance()}
        if self.trainer.is_global_zero:
            write_text_atomically(json.dumps(written, indent=1), path)
        self._say(f"test metrics: {path}")

    def _say(self, text: str) -> None:
        if getattr(rank_zero_only, "rank", 0) == 0:
            print(text, flush=True)


# What Lightning and this package need to go on with a training as if it had never stopped.
RESUME_KEYS = (
    "state_dict",
    "optimizer_states",
    "lr_schedulers",
    "loops",
    "callbacks",
    "epoch",
    "global_step",
    "random_state",
    "train_loader",
)

# What of the trainer's options changes the weights that come out; the rest may differ when a run goes on.
TRAINER_OPTIONS = (
    "max_epochs",
    "max_steps",
    "fast_dev_run",
    "precision",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "limit_train_batches",
    "overfit_batches",
    "sync_batchnorm",
    "callbacks",
)


def what_training_depends_on(config: Namespace) -> dict[str, Any]:
    data = plain(config.data)
    data["init_args"].pop("root", None)  # the same data may lie elsewhere
    trainer = {name: plain(config.trainer)[name] for name in TRAINER_OPTIONS}
    if not trainer["fast_dev_run"]:  # as in runs that were recorded before it was among them
        del trainer["fast_dev_run"]
    return {"data": data, "trainer": trainer}


def plain(config: Any) -> Any:
    """jsonargparse's namespaces as dictionaries of plain values."""
    if isinstance(config, Namespace):
        return {key: plain(value) for key, value in vars(config).items()}
    if isinstance(config, dict):
        return {key: plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [plain(value) for value in config]
    return config if isinstance(config, (str, int, float, bool, type(None))) else str(config)


def quiet() -> None:
    """Keeps from the terminal what says nothing about the user's run."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.callbacks.model_summary").setLevel(logging.INFO)  # where it is asked for
    # The verbs are mapped to Lightning's.
    warnings.filterwarnings("ignore", message=r"LightningCLI's args parameter is intended")
    # Going on with a run is what its folder is for.
    warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")
    # Testing needs the weights of a checkpoint, not the callbacks of its training.
    warnings.filterwarnings("ignore", message=r"Be aware that when using `ckpt_path`")
    # With averaged weights, they are what a checkpoint holds and what is to be tested.
    warnings.filterwarnings("ignore", message=r"You're using the WeightAveraging callback, but loading")
    # The batches say themselves which samples they hold.
    warnings.filterwarnings("ignore", message=r"Couldn't infer the batch indices")
    # A cluster's tools on the machine do not mean that this is one of its jobs.
    warnings.filterwarnings("ignore", message=r"The `srun` command is available")
    # Epochs are logged when they end.
    warnings.filterwarnings("ignore", message=r"The number of training batches .* is smaller than the logging interval")
    # Lightning 2.6 calls what torch 2.13 deprecates.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(lightning|torch)\.")


def run(verb: str, rest: list[str]) -> int:
    """Runs a command of the trainer; returns the exit status, see `ckdsnn.cli.main`.

    Args:
        verb: a verb of Lightning's trainer, "teacher", `TEACHER`, or "distill" for what its options come to.
        rest: the options.
    """
    quiet()
    with ExitStack() as held:
        run = Run(held)
        try:
            trainer_verb = "fit" if verb in ("teacher", TEACHER, "distill") else verb
            arguments = [trainer_verb, *with_fresh_options(rest)]
            CLI(arguments, run, teacher=verb in ("teacher", TEACHER), if_needed=verb == TEACHER)
        except NothingToTrain as reason:
            print(reason, flush=True)
        except SIGTERMException:
            return _stopped("terminated", run, TERMINATED)
        except KeyboardInterrupt:
            return _stopped("interrupted", run, INTERRUPTED)
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # how Lightning's trainer ends then
                return _stopped("interrupted", run, INTERRUPTED)
            raise
        except Exception as error:
            words = words_for(error, run.out)
            if words is None:
                raise
            print(f"ckdsnn: error: {words}", file=sys.stderr)
            return 1
    return 0


def _stopped(what_happened: str, run: Run, status: int) -> int:
    if getattr(rank_zero_only, "rank", 0) == 0:
        say_how_to_go_on(what_happened, run.out / "last.ckpt" if run.out is not None and run.trains else None)
    return status
