"""How far a sweep is: a bar with the time left and one for each run, or a line for every run that ends."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from ckdsnn.sweep.plan import Job
from ckdsnn.sweep.run import Running

BARS = 8  # runs at a time that are shown each
SHOWN = ("test/accuracy", "val/accuracy")  # of a run that ends, the first that it has


class Progress:
    """Shows the runs of a sweep on standard error.

    Args:
        name: of the sweep.
        jobs: of which the finished ones count as done from the start.
        places: runs at a time.
    """

    def __init__(self, name: str, jobs: Sequence[Job], places: int) -> None:
        done = sum(job.finished for job in jobs)
        self._done, self._total, self._ended = done, len(jobs), 0
        self._started = self._looked = time.monotonic()
        self._several = places <= BARS
        self._bars: dict[Job, tqdm[Any]] = {}
        self._bar = tqdm(
            total=self._total,
            initial=done,
            desc=self._title(name),
            unit="run",
            disable=not sys.stderr.isatty(),
            bar_format="{desc} |{bar}| {elapsed}, left {remaining}",
        )
        self._name = name
        if self._bar.disable and done < self._total:
            self._say(f"{name}: {done} of {self._total} runs are finished, {places} at a time")

    def _title(self, name: str) -> str:
        return f"{name}: {self._done} of {self._total} runs"

    def watch(self, running: Sequence[Running]) -> None:
        """Shows how far the runs are, as their logs say it."""
        if self._bar.disable or time.monotonic() - self._looked < 0.9:
            return
        self._looked = time.monotonic()
        parts = 0.0
        for run in running:
            epoch, words = last_epoch(run.job)
            parts += min(0.99, epoch / run.job.epochs) if run.job.epochs else 0.0
            if self._several:
                self._show(run.job, epoch, words)
        self._bar.n = self._done + parts
        self._bar.refresh()

    def _show(self, job: Job, epoch: int, words: str) -> None:
        if job not in self._bars:
            taken = {-bar.pos for bar in self._bars.values()}
            self._bars[job] = tqdm(
                total=job.epochs,
                desc=f"  {job.name:.36}",
                position=next(place for place in range(1, BARS + 2) if place not in taken),
                leave=False,
                bar_format="{desc:<38} epoch {n_fmt:>3}/{total_fmt} |{bar:16}| {unit}",
            )
        self._bars[job].n = epoch
        self._bars[job].unit = words
        self._bars[job].refresh()

    def end(self, job: Job, why: str | None) -> None:
        """A run came to its end."""
        self._done += 1
        self._ended += 1
        if job in self._bars:
            self._bars.pop(job).close()
        self._bar.n = self._done
        self._bar.set_description_str(self._title(self._name))
        metrics = job.metrics()
        found = next((f"{name} {metrics[name]:.4f}" for name in SHOWN if name in metrics), "finished")
        text = f"[{self._done}/{self._total}] {job.name}: {found if why is None else 'failed'}, {job.seconds:.0f} s"
        if self._bar.disable:
            left = (time.monotonic() - self._started) / self._ended * (self._total - self._done)
            text += f"; left {tqdm.format_interval(left)}"
        self._say(text)

    def _say(self, text: str) -> None:
        if self._bar.disable:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bar.write(text, file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        for bar in self._bars.values():
            bar.close()
        self._bar.close()  # it stays where it is


def last_epoch(job: Job) -> tuple[int, str]:
    """Epochs that a run has behind it, and loss and training accuracy of the last one, in words."""
    logs = sorted((job.run_folder / "logs").glob("version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    epochs, words = 0, ""
    try:
        with logs[-1].open(newline="") as file:
            for row in csv.DictReader(file):
                if row.get("train/loss"):
                    epochs, accuracy = int(row["epoch"]) + 1, row.get("train/accuracy")
                    words = f"loss {float(row['train/loss']):.3f}"
                    words += f"  training accuracy {100 * float(accuracy):.1f} %" if accuracy else ""
    except (OSError, ValueError, KeyError, IndexError):  # nothing yet, or half a line
        pass
    return epochs, words
