"""Runs the cells of the demo, one process a core, with progress bars; interrupting it loses unfinished cells only."""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ckdsnn.demo import worker
from ckdsnn.demo.cells import epochs_of, read_cell
from ckdsnn.demo.report import Cells
from ckdsnn.demo.settings import STUDENTS, TEACHER, DemoSettings

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Ctrl-C goes to all processes of a terminal, as SIGTERM may, but the parent alone is to answer them.

    Processes that are started inside inherit the mask and keep it; the parent gets what came meanwhile at the end.
    The mask alone would not hold them back: another thread, one of PyTorch's, may take the signal, and Python then
    hands it to this one.
    """
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in STOPPING}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


class _Bars:
    """One bar for all epochs of all cells and one for each running cell; on a pipe or file, a line a finished cell."""

    def __init__(self, total_epochs: int, done_epochs: int, cells: int, done_cells: int) -> None:
        self.live = sys.stderr.isatty()
        self.cells, self.finished = cells, done_cells
        self._bars: dict[tuple[int, str], tqdm] = {}
        self._epochs: dict[tuple[int, str], int] = {}
        self.overall = tqdm(
            total=total_epochs,
            initial=done_epochs,
            desc=self._title(),
            unit="epoch",
            position=0,
            disable=not self.live,
            bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed} < {remaining}",
        )

    def _title(self) -> str:
        return f"demo: {self.finished} of {self.cells} trainings done"

    def update(self, cell: tuple[int, str], epochs: int, total: int, metrics: dict[str, float]) -> None:
        self.overall.update(epochs - self._epochs.get(cell, 0))
        self._epochs[cell] = epochs
        if not self.live:
            return
        if cell not in self._bars:
            taken = {bar.pos for bar in self._bars.values()}
            place = next(p for p in range(1, len(taken) + 2) if -p not in taken)
            self._bars[cell] = tqdm(
                total=total,
                desc=f"  {name_of(cell)}",
                position=place,
                leave=False,
                bar_format="{desc:<24} epoch {n_fmt:>2}/{total_fmt} |{bar:24}| {postfix}",
            )
        bar = self._bars[cell]
        bar.set_postfix_str(
            f"loss {metrics['loss']:.3f}  training accuracy {100 * metrics['accuracy']:.1f} %", refresh=False
        )
        bar.update(epochs - bar.n)

    def finish(self, cell: tuple[int, str], result: dict[str, Any]) -> None:
        self.finished += 1
        if cell in self._bars:
            self._bars.pop(cell).close()
        self.overall.set_description(self._title())
        text = f"{name_of(cell):<20} test accuracy {100 * result['test_accuracy']:5.1f} %  {result['seconds']:5.1f} s"
        if self.live:
            self.overall.write(text, file=sys.stderr)
        else:
            print(f"[{self.finished:2d}/{self.cells}] {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()
        self.overall.close()


def name_of(cell: tuple[int, str]) -> str:
    seed, key = cell
    return f"seed {seed}  {'teacher' if key == TEACHER else STUDENTS[key].label}"


def run_cells(out: Path, settings: DemoSettings, processes: int) -> Cells:
    """Results of all cells; those that an earlier run finished with the same settings are read, the rest is trained.

    Args:
        out: folder of the demo.
        settings: seeds and sizes.
        processes: how many to run at a time.

    Raises:
        KeyboardInterrupt: after all workers have stopped; finished cells stay.
    """
    wanted = [(seed, key) for seed in range(settings.seeds) for key in (TEACHER, *STUDENTS)]
    cells: Cells = {}
    for seed, key in wanted:
        # A student belongs to the teacher that is there: without it, or with another one, it is trained again.
        if key != TEACHER and (seed, TEACHER) not in cells:
            continue
        if (result := read_cell(out, seed, key, settings)) is not None:
            cells[seed, key] = result
    missing = [cell for cell in wanted if cell not in cells]
    if not missing:
        return cells
    context = multiprocessing.get_context("spawn")  # a forked copy of a process that ran OpenMP may hang
    events, stop = context.Queue(), context.Event()
    bars = _Bars(
        sum(epochs_of(settings, key) for _, key in wanted),
        sum(epochs_of(settings, key) for _, key in cells),
        len(wanted),
        len(cells),
    )
    workers = min(processes, len(missing))
    pool = ProcessPoolExecutor(workers, context, initializer=worker.start, initargs=(events, stop))
    try:
        _drive(pool, events, bars, out, settings, missing, cells)
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        bars.close()
    return cells


def _drive(
    pool: ProcessPoolExecutor,
    events: Any,
    bars: _Bars,
    out: Path,
    settings: DemoSettings,
    missing: list[tuple[int, str]],
    cells: Cells,
) -> None:
    """Starts every missing cell as soon as its teacher is there, and collects results and progress."""
    waiting = list(missing)
    running: dict[Future, tuple[int, str]] = {}
    while waiting or running:
        ready = [(seed, key) for seed, key in waiting if key == TEACHER or (seed, TEACHER) in cells]
        for seed, key in ready:
            waiting.remove((seed, key))
            with _signals_held_back():
                running[pool.submit(worker.run_cell, out, seed, key, settings)] = (seed, key)
        done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
        _show(events, bars, settings)
        for future in done:
            cell = running.pop(future)
            cells[cell] = future.result()
            bars.finish(cell, cells[cell])


def _show(events: Any, bars: _Bars, settings: DemoSettings) -> None:
    while True:
        try:
            cell, epochs, metrics = events.get_nowait()
        except queue.Empty:
            return
        bars.update(cell, epochs, epochs_of(settings, cell[1]), metrics)
