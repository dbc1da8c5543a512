"""The demo from the command line to the figures."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from ckdsnn.checkpoint import RunError, provenance, write_text_atomically
from ckdsnn.demo.cells import load_cell
from ckdsnn.demo.figures import MapRow, accuracy_figure, curves_figure, maps_figure, save_figure
from ckdsnn.demo.report import statement, summarise, table
from ckdsnn.demo.schedule import run_cells
from ckdsnn.demo.settings import STUDENTS, TEACHER, DemoSettings
from ckdsnn.losses import grad_cam_closed_form

SAMPLES = 8  # columns of the figure of maps


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ckdsnn demo",
        description="Train an ANN teacher and distil a small spiking network five ways on scikit-learn's digits. "
        "Interrupted, the same command continues with the trainings that are missing.",
    )
    parser.add_argument("--seeds", type=_positive, default=None, help="seeds to run, from 0 on (default: 3; quick: 1)")
    parser.add_argument("--out", type=Path, default=None, help="folder for results (default: runs/demo)")
    parser.add_argument(
        "--quick", action="store_true", help="two epochs each: shows that all works (default folder: runs/demo-quick)"
    )
    parser.add_argument("--processes", type=_positive, default=None, help="trainings at a time (default: one a core)")
    parser.add_argument("--fresh", action="store_true", help="delete the folder's earlier trainings first")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo; returns the exit status."""
    options = build_parser().parse_args(arguments)
    settings = DemoSettings.quick() if options.quick else DemoSettings()
    if options.seeds is not None:
        settings = dataclasses.replace(settings, seeds=options.seeds)
    out = options.out or Path("runs/demo-quick" if options.quick else "runs/demo")
    try:
        run_demo(settings, out, processes=options.processes, fresh=options.fresh)
    except (RunError, NotADirectoryError) as error:
        print(f"ckdsnn demo: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\ninterrupted: the trainings that were finished are kept, the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    return 0


def run_demo(settings: DemoSettings, out: Path, *, processes: int | None = None, fresh: bool = False) -> dict[str, Any]:
    """Trains what is missing, prints the table and writes `results.json` and the figures.

    Args:
        settings: seeds and sizes.
        out: folder; holds `results.json`, `figures/` and, per seed and training, logs, checkpoint and result.
        processes: trainings at a time; None: one for each core this process may use.
        fresh: delete earlier trainings first.

    Returns:
        The content of `results.json`.
    """
    started = time.perf_counter()
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"out must be a folder, {out} is a file: name another one")
    out.mkdir(parents=True, exist_ok=True)
    with _alone_in(out):
        if fresh:
            for folder in out.glob("seed[0-9]*"):
                shutil.rmtree(folder)
        cells = run_cells(out, settings, processes or len(os.sched_getaffinity(0)))
    summary = summarise(cells, settings)
    results = {
        "settings": dataclasses.asdict(settings),
        "summary": summary,
        "cells": [
            {name: value for name, value in result.items() if name != "settings"} for _, result in sorted(cells.items())
        ],
        "seconds": time.perf_counter() - started,
        **provenance(),
    }
    write_text_atomically(json.dumps(results, indent=1), out / "results.json")
    save_figure(accuracy_figure(summary), out / "figures" / "accuracy.png")
    save_figure(curves_figure(cells, settings), out / "figures" / "curves.png")
    save_figure(_maps(out, settings), out / "figures" / "maps.png")
    print(f"\n{table(summary)}\n\n{statement(summary, settings)}\n")
    print(f"{time.perf_counter() - started:.0f} s; results in {out / 'results.json'}, figures in {out / 'figures'}")
    return results


@contextlib.contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Holds the folder: two demos in it would delete each other's unfinished trainings."""
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however that ends
        except BlockingIOError:
            raise RunError(
                f"another demo is running in {out}: wait for it, or name another folder with --out"
            ) from None
        yield


@torch.no_grad()
def _maps(out: Path, settings: DemoSettings) -> Figure:
    """The figure of maps for the first test digits of seed 0, one of each of the first classes."""
    data = settings.student_data(seed=0)
    data.setup("test")
    images, targets = data.arrays("test")
    chosen = torch.tensor([int((targets == digit).nonzero()[0]) for digit in range(SAMPLES)])
    images, targets = images[chosen], targets[chosen]
    teacher = load_cell(out, 0, TEACHER, settings).network
    answer = teacher(images)
    cam = grad_cam_closed_form(answer.features[teacher.num_stages], answer.classifier_weight, targets)
    rows = [MapRow("ANN teacher\nGrad-CAM", cam, answer.logits.argmax(1))]
    for key in ("ce", "samd_nld"):
        student = load_cell(out, 0, key, settings).network
        answer = student(images)
        sam = answer.sams[student.num_stages]
        rows.append(MapRow(f"SNN, {STUDENTS[key].label}\nspike map", sam, answer.logits.argmax(1)))
    corners, side = data.test_boxes()
    return maps_figure(images, targets, corners[chosen], side, rows)
