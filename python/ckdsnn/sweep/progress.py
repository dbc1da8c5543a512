"""How far a sweep is: a bar with the time left, or a line for every run that ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from ckdsnn.sweep.plan import Job


class Progress:
    """Shows the runs of a sweep on standard error.

    Args:
        name: of the sweep.
        jobs: of which the finished ones count as done from the start.
        metric: shown of every run that ends.
        places: runs at a time.
    """

    def __init__(self, name: str, jobs: Sequence[Job], metric: str, places: int) -> None:
        done = sum(job.finished for job in jobs)
        self._metric = metric
        self._done, self._total, self._ended = done, len(jobs), 0
        self._started = time.monotonic()
        self._bar = tqdm(
            total=self._total,
            initial=done,
            desc=f"sweep {name}",
            unit="run",
            disable=not sys.stderr.isatty(),
            bar_format="{desc}: {n_fmt} of {total_fmt} runs |{bar}| {elapsed}, left {remaining}",
        )
        if self._bar.disable and done < self._total:
            self._say(f"sweep {name}: {done} of {self._total} runs are finished, {places} at a time")

    def end(self, job: Job, why: str | None) -> None:
        """A run came to its end."""
        self._done += 1
        self._ended += 1
        self._bar.update()
        value = job.metrics().get(self._metric)
        said = "failed" if why is not None else f"{self._metric} {value:.4f}" if value is not None else "finished"
        text = f"[{self._done}/{self._total}] {job.name}: {said}, {job.seconds:.0f} s"
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
        self._bar.close()  # it stays where it is
