"""usage: ckdsnn COMMAND [--config RECIPE] [--KEY VALUE ...]

  ckdsnn teacher --config RECIPE   train the recipe's teacher
  ckdsnn fit --config RECIPE       train the student, from the teacher if the
                                   method wants one
  ckdsnn distill --config RECIPE   teacher, student and test in one command
  ckdsnn validate | test | predict --config RECIPE
  ckdsnn energy RUN                firing rates, operations and energy of a
                                   trained run, layer by layer
  ckdsnn maps RUN                  where student and teacher look, how well they
                                   agree, what the noise does
  ckdsnn gradient RUN              how wrong Grad-CAM through surrogates is
  ckdsnn sweep GRID                every cell of a grid with every seed, and one
                                   table of it
  ckdsnn demo                      the whole story on scikit-learn's digits

RECIPE is a file, or the name of a packaged recipe such as digits or
cifar100_resnet19_t4. Every option of a recipe can be given on the command line
too: `ckdsnn fit --help` lists them and the recipes, `--print_config` shows what
they come to. The same command on an unfinished run goes on with it.
`ckdsnn --version` says what is installed.
"""

# This module and what it imports at once need the standard library only: PyTorch and Lightning take seconds to import,
# and a help text, a mistyped command or the parent of several stages needs neither.

from __future__ import annotations

import difflib
import os
import sys
from importlib import import_module
from importlib.util import find_spec

from ckdsnn import deferred
from ckdsnn.cli.recipes import UnknownRecipe, with_recipes
from ckdsnn.cli.stages import TEACHER, distill
from ckdsnn.cli.stopping import INTERRUPTED, say_how_to_go_on
from ckdsnn.versions import versions

LOOKS = ("energy", "maps", "gradient")
VERBS = ("fit", "validate", "test", "predict", "teacher", "distill", "sweep", *LOOKS, "demo")

# What the commands import besides the dependencies of the kernels.
TRAINING = ("lightning", "jsonargparse", "docstring_parser", "tensorboard", "torchmetrics", "PIL", "tqdm", "yaml")
LOOKING = (*TRAINING, "matplotlib")
SWEEP = (*LOOKING, "scipy")
DEMO = (*SWEEP, "sklearn")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, 1 (failed), 2 (misused), 130 (interrupted), 143 (terminated)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb in ("-h", "--help", "help"):
        return _show(__doc__ or "")
    if verb == "--version":
        return _show(", ".join(f"{name} {version}" for name, version in versions().items()))
    if verb not in (*VERBS, TEACHER):
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return _fail(f"unknown command {verb!r}; {hint}commands: {', '.join(VERBS)}", status=2)
    needed = {"demo": DEMO, "sweep": SWEEP, **dict.fromkeys(LOOKS, LOOKING)}.get(verb, TRAINING)
    if missing := [name for name in needed if find_spec(name) is None]:
        return _fail(f"{verb} needs {', '.join(missing)}: install with pip install 'ckd-kernels[train]'")
    try:
        deferred.install()
        if verb == "demo":
            from ckdsnn.demo import main as demo

            return demo(rest)
        if verb in LOOKS:
            return import_module(f"ckdsnn.cli.{verb}").main(rest)
        if verb == "sweep":
            from ckdsnn.sweep.command import main as sweep

            return sweep(rest)
        rest = with_recipes(rest)
        asked = {argument.partition("=")[0] for argument in rest}
        if verb == "distill" and not any(a in ("-h", "--print_config") or a.endswith("help") for a in asked):
            return distill(rest)
        from ckdsnn.cli.training import run

        return run(verb, rest)
    except UnknownRecipe as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        say_how_to_go_on("interrupted")
        return INTERRUPTED


def _show(text: str) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head`: whoever reads has enough, and Python shall not flush once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _fail(words: str, status: int = 1) -> int:
    print(f"ckdsnn: error: {words}", file=sys.stderr)
    return status
