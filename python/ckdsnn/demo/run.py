"""The demo from the first training to the figures."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from ckdsnn.analysis.style import write_figure
from ckdsnn.checkpoint import provenance, write_text_atomically
from ckdsnn.demo.cells import load_cell
from ckdsnn.demo.figures import MapRow, accuracy_figure, curves_figure, maps_figure
from ckdsnn.demo.report import statement, summarise, table
from ckdsnn.demo.schedule import run_cells
from ckdsnn.demo.settings import STUDENTS, TEACHER, DemoSettings
from ckdsnn.losses import grad_cam_closed_form
from ckdsnn.run_folder import alone_in, check_writable

SAMPLES = 8  # columns of the figure of maps


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
    check_writable(out)
    # Two in one folder would delete each other's unfinished trainings.
    with alone_in(out, "demo"):
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
    write_figure(accuracy_figure(summary), out / "figures" / "accuracy.png")
    write_figure(curves_figure(cells, settings), out / "figures" / "curves.png")
    write_figure(_maps(out, settings), out / "figures" / "maps.png")
    print(f"\n{table(summary)}\n\n{statement(summary, settings)}\n")
    print(f"{time.perf_counter() - started:.0f} s; results in {out / 'results.json'}, figures in {out / 'figures'}")
    return results


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
