"""Lightning's parser, with errors of one line and recipes of this machine alone."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from typing import Any, NoReturn

from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from ckdsnn.cli.options_help import listing
from ckdsnn.cli.recipes import recipes
from ckdsnn.data import DATA
from ckdsnn.losses import METHODS
from ckdsnn.models import MODELS
from ckdsnn.registry import nearest

# Lightning lets every option that takes a file fetch it from anywhere; a configuration can name code to run.
set_parsing_settings(config_read_mode_fsspec_enabled=False, config_read_mode_urls_enabled=False)


class Parser(LightningArgumentParser):
    """Reports errors without the two screens of usage before them, and says which option was probably meant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation that is clear today may mean something else tomorrow.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def remove(self, ending: str) -> None:
        """Takes back the options whose names end so: jsonargparse adds a help page for every class in a type."""
        for action in [a for a in self._actions if any(name.endswith(ending) for name in a.option_strings)]:
            for group in self._action_groups:
                if action in group._group_actions:
                    group._group_actions.remove(action)
            self._actions.remove(action)
            for name in action.option_strings:
                self._option_string_actions.pop(name)

    def format_help(self, formatter: Any = None) -> str:
        of_a_verb = any(action.dest == "model.method.options" for action in self._actions)
        if of_a_verb:
            self._teach(self.prog.split()[-1])
        text: str = super().format_help(formatter)
        if of_a_verb:
            text += "\n" + listing("model.method.options, by model.method.name", "model.method", METHODS)
            text += "\n" + listing("model.network.options, model.teacher.options, by name", "model.network", MODELS)
        return text

    def _teach(self, verb: str) -> None:
        """Says what the command does here, in place of what Lightning says of its trainer's method."""
        names = "fit|teacher|distill" if verb == "fit" else verb
        self.usage = f"ckdsnn {names} --config RECIPE [--KEY VALUE ...]"
        self.description = DOES[verb]
        replaced = {
            "config": f"a YAML file, or the name of a packaged recipe: {', '.join(recipes())}",
            "ckpt_path": "the checkpoint to go on from" if verb == "fit" else "the checkpoint whose weights are meant",
            "weights_only": "true, as null is: no checkpoint runs code",
            "trainer.default_root_dir": "not used here: all that a run writes lies in --out",
        }
        replaced["ckpt_path"] += " (default: OUT/last.ckpt" + (", where it is there)" if verb == "fit" else ")")
        for action in self._actions:
            action.help = replaced.get(action.dest, action.help)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        known = _option_names(self)
        last_parts = {name.rsplit(".", 1)[-1] for name in known}
        separator = "\n  "
        for key in dict.fromkeys(re.findall(UNKNOWN_OPTION, message)):
            near = difflib.get_close_matches(key, sorted((known | last_parts) - {key}), n=1, cutoff=0.6)
            of_another = key in last_parts and "is not accepted" in message  # data set
            if re.fullmatch(UNKNOWN_ALONE, message):
                message, separator = "", ""
            message += f"{separator}unknown option {key!r}"
            if of_another:
                message += "; --data.help NAME lists those that the data set of that name has"
            elif near:
                message += f"; did you mean {near[0]!r}?"
        if message.startswith("the following arguments are required"):
            # Those of this package stand there with the verb before them, those of a data set alone.
            message = re.sub(r"(?<= )\w+\.(?=model|data)", "--", message)
            message = re.sub(rf"(?<= )(?=(?:{'|'.join(_data_options())})\b)", "--data.", message)
            message += "; give these, or a recipe: --config RECIPE"
        if unknown := re.match(NO_CLASS, message):
            message = f"{unknown[1]}: there is no class {unknown[2]}: `ckdsnn fit --help` lists those that are known"
            if unknown[1] == "data":
                message = f"unknown data set {unknown[2]!r}" + nearest(unknown[2], DATA)
            message += "; or module.Class of your own"
        if missing := re.search(NOT_IMPORTED, message):
            message = f"{missing[1]}: {missing[2]}; install it, or set PYTHONPATH to the folder that its module is in"
        print(f"ckdsnn: error: {message}", file=sys.stderr)
        sys.exit(2)


DOES = {
    "fit": "fit trains the student, from the teacher where the method wants one; teacher trains the recipe's teacher, "
    "in OUT/teacher; distill does both, and tests. The same command goes on with what is unfinished.",
    "validate": "Prints the metrics of the validation part.",
    "test": "Prints the metrics of the test part, and writes them to OUT/test.json.",
    "predict": "Writes what the network says of each test sample to OUT/predictions.csv (of pixels: predictions.npz).",
}

# The ways in which jsonargparse says that it does not know an option.
UNKNOWN_OPTION = r"(?:unrecognized arguments: --|does not accept option '|[Oo]ption '|Key ')([\w.]+)"

# What says nothing else.
UNKNOWN_ALONE = r"Subcommand '\w+' does not accept option '[\w.]+'|Option '[\w.]+' is not accepted"

# The way in which it says that a class is not there, between the types of which none fits.
NOT_IMPORTED = r"Problem with given class_path '([\w.]+)':\s+(No module named .*|module .* has no attribute .*)"


# The way in which it says that a name is no class, which may be that of a data set or of something of Lightning's.
NO_CLASS = r'(?s)Parser key "([\w.]+)":.*?Expected a dot import path string: (\w+)'


def _option_names(parser: LightningArgumentParser) -> set[str]:
    names = {action.dest for action in parser._actions}
    names |= {f"data.init_args.{name}" for name in _data_options()}
    for subparser in getattr(parser._subparsers, "_group_actions", []):
        for choice in set(subparser.choices.values()):
            names |= _option_names(choice)
    return names


def _data_options() -> set[str]:
    return {name for data in DATA.values() for name in inspect.signature(data).parameters}
