"""`ckdsnn demo`'s options and exit status. PyTorch is imported after they are read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ckdsnn.cli.arguments import positive
from ckdsnn.cli.stopping import until_stopped


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ckdsnn demo",
        description="Train an ANN teacher and distil a small spiking network five ways on scikit-learn's digits. "
        "It is `ckdsnn sweep demo` with a page that says what came out. Interrupted, the same command continues.",
    )
    parser.add_argument("--seeds", type=positive, default=None, help="seeds to run, from 0 on (default: 3; quick: 1)")
    parser.add_argument("--out", type=Path, default=None, help="folder for results (default: runs/demo)")
    parser.add_argument(
        "--quick", action="store_true", help="two epochs each: shows that all works (default folder: runs/demo-quick)"
    )
    parser.add_argument("--processes", type=positive, default=None, help="trainings at a time (default: one a core)")
    parser.add_argument("--fresh", action="store_true", help="delete its earlier trainings in the folder first")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo; returns the exit status."""
    options = build_parser().parse_args(arguments)
    return until_stopped(lambda: _run(options), _say_stopped)


def _run(options: argparse.Namespace) -> int:
    from ckdsnn.cli.failure import words_for
    from ckdsnn.demo.run import run_demo

    out = options.out or Path("runs/demo-quick" if options.quick else "runs/demo")
    try:
        return run_demo(out, seeds=options.seeds, quick=options.quick, processes=options.processes, fresh=options.fresh)
    except Exception as error:
        words = words_for(error, out)
        if words is None:
            raise
        print(f"ckdsnn demo: error: {words}", file=sys.stderr)
        return 1


def _say_stopped(what_happened: str) -> None:
    print(
        f"\n{what_happened}: what was trained is kept, the same command goes on from there",
        file=sys.stderr,
    )
