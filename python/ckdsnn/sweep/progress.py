"""How far a sweep is: a bar with the time left and one for each run, or lines with it on a pipe or file."""

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
SAY_EVERY = 60.0  # seconds between two lines on a pipe or file where no run ends
LITTLE = 0.05  # of a run
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
        self._parts: dict[Job, float] = {}  # of what runs, the share that is done
        self._before = 0.0  # of all that has been started, the shares that earlier sweeps had done
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
        for run in running:
            if run.job not in self._parts:
                self._parts[run.job] = _share(run.job, last_epoch(run.job)[0])
                self._before += self._parts[run.job]
        if time.monotonic() - self._looked < (SAY_EVERY if self._bar.disable else 0.9):
            return
        self._looked = time.monotonic()
        shown = []
        for run in running:
            epoch, words = last_epoch(run.job)
            self._parts[run.job] = _share(run.job, epoch)
            shown.append(f"{run.job.name}: epoch {epoch}/{run.job.epochs or '?'}")
            if self._several and not self._bar.disable:
                self._show(run.job, epoch, words)
        if self._bar.disable:
            runs = "; ".join(shown[:BARS]) + ("; ..." if len(shown) > BARS else "")
            self._say(f"[{self._done}/{self._total}] {runs}; left {self._left()}")
            return
        self._bar.n = self._done + sum(self._parts.values())
        self._bar.refresh()

    def _left(self) -> str:
        """The time left at the rate so far, in runs; that of earlier sweeps does not count."""
        going = sum(self._parts.values())
        made = self._ended + going - self._before
        # The end of a run that an earlier sweep had nearly finished is a start and a test, which tell no rate.
        if made <= (LITTLE if self._before else 0):
            return "?"
        seconds = (time.monotonic() - self._started) / made * (self._total - self._done - going)
        return str(tqdm.format_interval(round(seconds)))

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
        self._parts.pop(job, None)
        self._looked = time.monotonic()
        if job in self._bars:
            self._bars.pop(job).close()
        self._bar.n = self._done
        self._bar.set_description_str(self._title(self._name))
        metrics = job.metrics()
        found = next((f"{name} {metrics[name]:.4f}" for name in SHOWN if name in metrics), "finished")
        text = f"[{self._done}/{self._total}] {job.name}: {found if why is None else 'failed'}, {job.seconds:.0f} s"
        if self._bar.disable:
            text += f"; left {self._left()}"
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


def _share(job: Job, epoch: int) -> float:
    return min(0.99, epoch / job.epochs) if job.epochs else 0.0


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
