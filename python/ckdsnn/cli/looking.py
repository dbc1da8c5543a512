"""What the commands that look at a run have in common: their options, and how they fail."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from ckdsnn.cli.arguments import positive


class _Paragraphs(argparse.HelpFormatter):
    """Wraps the paragraphs of a description to the terminal; those with commands, which are indented, stay."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.strip().split("\n\n")
        return "\n\n".join(part if "\n  " in f"\n{part}" else textwrap.fill(part, width) for part in parts)


def parser_of(verb: str, description: str, *, samples: int, batch_size: int) -> argparse.ArgumentParser:
    """The options that name a run, its data and where results go."""
    parser = argparse.ArgumentParser(
        prog=f"ckdsnn {verb}",
        description=description,
        formatter_class=_Paragraphs,
        allow_abbrev=False,
    )
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="folder of the run: the --out of `ckdsnn fit` or `distill`"
    )
    parser.add_argument(
        "--samples", type=positive, default=samples, metavar="N", help=f"first N test samples (default {samples})"
    )
    parser.add_argument(
        "--batch_size", type=positive, default=batch_size, metavar="N", help=f"samples at a time (default {batch_size})"
    )
    parser.add_argument("--data.root", dest="root", metavar="DIR", help="where the data lies, if not where it lay")
    parser.add_argument(
        "--teacher", metavar="FILE", help="checkpoint of a teacher to compare with (default: the one of the run)"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder for results (default: RUN/{verb})")
    return parser


def index(text: str) -> int:
    """A sample's number, counted from 0, or a seed."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text!r}")
    return int(text)


def told(work: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Does the work; returns the exit status, after a line on what to do where it is not 0."""
    from ckdsnn.cli.failure import words_for

    try:
        work(options)
    except Exception as error:
        words = words_for(error, options.out)
        if words is None:
            raise
        print(f"ckdsnn: error: {words}", file=sys.stderr)
        return 1
    return 0
