"""usage: ckdsnn COMMAND [--config RECIPE] [--KEY VALUE ...]

    ckdsnn teacher --config RECIPE     train the recipe's teacher
    ckdsnn fit --config RECIPE         train the student, from the teacher if the method wants one
    ckdsnn distill --config RECIPE     teacher, student and test in one command
    ckdsnn validate | test | predict --config RECIPE
    ckdsnn demo                        the whole story on scikit-learn's digits

RECIPE is a file, or the name of a packaged recipe such as cifar100_resnet19_t4. Every option of a recipe can be given
on the command line too: `ckdsnn fit --help` lists them, `--print_config` shows what they come to. The same command on
an unfinished run goes on with it. `ckdsnn --version` says what is installed.
"""

from __future__ import annotations

import difflib
import inspect
import json
import logging
import re
import shutil
import subprocess
import sys
import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from ckdsnn.callbacks import PredictionWriter, ProgressBar
from ckdsnn.checkpoint import (
    AtomicCheckpointIO,
    ResumeCheckpoint,
    RunError,
    load_run,
    provenance,
    write_text_atomically,
)
from ckdsnn.configuration import TeacherConfig
from ckdsnn.data import DataModule
from ckdsnn.losses import METHODS
from ckdsnn.train import Distillation

VERBS = ("fit", "validate", "test", "predict", "teacher", "distill", "demo")


class Parser(LightningArgumentParser):
    """Reports errors without the two screens of usage before them, and says which option was probably meant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation that is clear today may mean something else tomorrow.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        known = _option_names(self)
        last_parts = {name.rsplit(".", 1)[-1] for name in known}
        for key in dict.fromkeys(re.findall(UNKNOWN_OPTION, message)):
            near = difflib.get_close_matches(key, sorted(known | last_parts), n=1, cutoff=0.5)
            message += f"\n  unknown option {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        print(f"ckdsnn: error: {message}", file=sys.stderr)
        sys.exit(2)


# The ways in which jsonargparse says that it does not know an option.
UNKNOWN_OPTION = r"(?:unrecognized arguments: --|does not accept option '|[Oo]ption '|Key ')([\w.]+)"


def _option_names(parser: LightningArgumentParser) -> set[str]:
    names = {action.dest for action in parser._actions}
    for data in _subclasses(DataModule):
        names |= {f"data.init_args.{name}" for name in inspect.signature(data).parameters}
    for subparser in getattr(parser._subparsers, "_group_actions", []):
        for choice in set(subparser.choices.values()):
            names |= _option_names(choice)
    return names


def _subclasses(cls: type) -> set[type]:
    found = {cls}
    subclass: type
    for subclass in cls.__subclasses__():
        found |= _subclasses(subclass)
    return found


class SaveConfig(SaveConfigCallback):
    """Writes the whole configuration of a training to `config.yaml` in its folder."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            text = self.parser.dump(self.config, skip_none=False)
            write_text_atomically(text, Path(trainer.default_root_dir) / self.config_filename)


class CLI(LightningCLI):
    """Lightning's command line with run folders: checkpoints, logs and results of a run lie in `--out`.

    Args:
        arguments: of the command line, starting with a verb of Lightning's Trainer.
        teacher: train the recipe's teacher in place of its student.
    """

    def __init__(self, arguments: list[str], *, teacher: bool = False) -> None:
        self.for_teacher = teacher
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
            trainer_defaults={"log_every_n_steps": 1, "num_sanity_val_steps": 0},
            auto_configure_optimizers=False,
            args=arguments,
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=int, default=0, help="seed of weights, data order and noise")
        parser.add_argument("--out", type=str, default="runs/default", help="folder of the run")
        parser.add_argument(
            "--save_every_n_steps",
            type=int | None,
            default=None,
            help="checkpoints within an epoch (default: at its end)",
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.in_channels", "model.in_channels", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Lightning would take the model's arguments from the checkpoint; here the recipe says what to build, and a
        checkpoint that holds something else is refused."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        self.out = Path(config.out)
        teacher = config.model.get("teacher")
        if self.for_teacher:
            if teacher is None or teacher.name is None:
                raise RunError("the configuration names no teacher to train: set model.teacher.name")
            self.out = self.out / "teacher"
            config.model.network = Namespace(name=teacher.name, options=teacher.options)
            config.model.method = Namespace(name="ce", options={})
            config.model.teacher = None
            config.trainer.max_epochs = teacher.epochs
        elif teacher is not None:
            method = METHODS.get(config.model.method.name)
            if method is not None and not method.needs_teacher:
                config.model.teacher = None  # a recipe's teacher stays unused when the command line asks for ce
            elif teacher.checkpoint is None:
                trained = self.out / "teacher" / "last.ckpt"
                # One that comes with weights of its own may still have been trained on by `ckdsnn teacher`.
                if trained.exists() or not TeacherConfig(**teacher.as_dict()).comes_trained:
                    teacher.checkpoint = str(trained)
        last = self.out / "last.ckpt"
        if config.ckpt_path is None and (self.subcommand != "fit" or last.exists()):
            config.ckpt_path = str(last)
        if config.ckpt_path is not None:
            load_run(config.ckpt_path)  # fails before anything else is done

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, ImportError, FileNotFoundError) as error:
            # jsonargparse wraps what a data module refuses into a page about unions of types.
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            raise RunError(str(cause)) from error

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config[self.subcommand]
        self.model.run_config |= {"seed": config.seed_everything} | _what_training_depends_on(config)
        callbacks: list[Any] = [PredictionWriter(self.out / "predictions.csv")]
        if config.trainer.enable_progress_bar is not False:
            callbacks.append(ProgressBar())
        if self.subcommand == "fit":
            callbacks.append(ResumeCheckpoint(self.out / "last.ckpt", config.save_every_n_steps))
            if self.datamodule.has_validation:
                best = ModelCheckpoint(
                    self.out,
                    "best",
                    monitor="val/accuracy",
                    mode="max",
                    enable_version_counter=False,
                    save_on_train_epoch_end=False,
                )
                callbacks.append(best)
        self.trainer_defaults["callbacks"] = callbacks
        kwargs |= {"default_root_dir": str(self.out), "plugins": [AtomicCheckpointIO()], "enable_model_summary": False}
        if config.trainer.logger is None:
            kwargs["logger"] = False
            if self.subcommand == "fit":
                csv_log = CSVLogger(self.out, name="logs")  # a new version every time the run goes on
                kwargs["logger"] = [csv_log, TensorBoardLogger(self.out, name="tensorboard", version=csv_log.version)]
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        path = self.config.fit.ckpt_path
        if path is None:
            self._say(f"training in {self.out}")
            return
        checkpoint = load_run(path)
        self.model.check_resumable(checkpoint, self.trainer.world_size)
        self._say(f"{self.out} is finished" if checkpoint["ckdsnn"]["finished"] else f"going on with {path}")

    def after_fit(self) -> None:
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        if "val/accuracy" in metrics:
            self._say(f"validation accuracy at the last epoch {100 * metrics['val/accuracy']:.2f} %")
        self._say(f"weights: {self.out / 'last.ckpt'}")

    def after_test(self) -> None:
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        path = self.out / "test.json"
        written = {"checkpoint": str(self.config.test.ckpt_path), "metrics": metrics, **provenance()}
        if self.trainer.is_global_zero:
            write_text_atomically(json.dumps(written, indent=1), path)
        self._say(f"test metrics: {path}")

    def _say(self, text: str) -> None:
        if self.trainer.is_global_zero:
            print(text, flush=True)


# What of the trainer's options changes the weights that come out; the rest may differ when a run goes on.
TRAINER_OPTIONS = (
    "max_epochs",
    "max_steps",
    "precision",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "limit_train_batches",
    "callbacks",
)


def _what_training_depends_on(config: Namespace) -> dict[str, Any]:
    data = _plain(config.data)
    data["init_args"].pop("root", None)  # the same data may lie elsewhere
    trainer = _plain(config.trainer)
    return {"data": data, "trainer": {name: trainer[name] for name in TRAINER_OPTIONS}}


def _plain(config: Any) -> Any:
    """jsonargparse's namespaces as dictionaries of plain values."""
    if isinstance(config, Namespace):
        return {key: _plain(value) for key, value in vars(config).items()}
    if isinstance(config, dict):
        return {key: _plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [_plain(value) for value in config]
    return config if isinstance(config, (str, int, float, bool, type(None))) else str(config)


def quiet() -> None:
    """Keeps from the terminal what says nothing about the user's run."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
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
    # Lightning 2.6 calls what torch 2.13 deprecates.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(lightning|torch)\.")


def with_recipes(arguments: list[str]) -> list[str]:
    """`--config NAME` means the packaged recipe of that name, where there is no such file."""
    recipes = {path.name.removesuffix(".yaml"): str(path) for path in (files("ckdsnn") / "recipes").iterdir()}
    found = list(arguments)
    for place, argument in enumerate(arguments):
        option, _, value = argument.partition("=")
        if option not in ("--config", "-c"):
            continue
        where = place if value else place + 1
        name = value or (arguments[where] if where < len(arguments) else "")
        if Path(name).exists() or not name or name.endswith((".yaml", ".yml", ".json")):
            continue
        if name not in recipes:
            near = difflib.get_close_matches(name, recipes, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise RunError(f"--config {name}: no such file or recipe; {hint}recipes: {', '.join(sorted(recipes))}")
        found[where] = f"{option}={recipes[name]}" if value else recipes[name]
    return found


def _own_command() -> list[str]:
    """How this command is started. By its script where it is installed: `python -m` would put the working folder before
    what is installed, and the packages of a source tree are not compiled."""
    script = shutil.which("ckdsnn", path=str(Path(sys.executable).parent))
    return [sys.executable, script] if script else [sys.executable, "-m", "ckdsnn.cli"]


def distill(options: list[str]) -> int:
    """Teacher, student and test, each a process: where Lightning starts processes for several devices, it starts them
    with the command of the process that it finds itself in."""
    for verb in ("teacher", "fit", "test"):
        stage = subprocess.Popen([*_own_command(), verb, *options])
        try:
            status = stage.wait()
        except KeyboardInterrupt:  # the stage got it too, and says so
            return stage.wait()
        if status:
            return status
    return 0


def is_explained(error: BaseException) -> bool:
    """Whether a check of this distribution raised `error`: its words tell the user what to do.

    What comes from elsewhere keeps its traceback, because somebody has to find it.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].split(".")[0] in ("ckdsnn", "ckd_kernels")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb in ("-h", "--help"):
        print(__doc__)
        return 0
    if verb == "--version":
        print(", ".join(f"{name} {version}" for name, version in provenance()["versions"].items()))
        return 0
    if verb == "demo":
        from ckdsnn.demo import main as demo

        return demo(rest)
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        print(f"ckdsnn: error: unknown command {verb!r}; {hint}commands: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    quiet()
    try:
        rest = with_recipes(rest)
        if verb == "teacher":
            CLI(["fit", *rest], teacher=True)
        elif verb == "distill" and not {"-h", "--help", "--print_config"}.intersection(rest):
            return distill(rest)
        elif verb == "distill":
            CLI(["fit", *rest])
        else:
            CLI([verb, *rest])
    except (RunError, FileNotFoundError, ValueError, TypeError) as error:
        if not (isinstance(error, (RunError, FileNotFoundError)) or is_explained(error)):
            raise
        print(f"ckdsnn: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
