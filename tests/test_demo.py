"""The demo: its numbers, its figures, and that neither interruption nor leftovers harm it."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from ckdsnn.demo import DemoSettings, main, run, schedule
from ckdsnn.demo.cells import read_cell
from ckdsnn.demo.figures import MapRow, accuracy_figure, curves_figure, maps_figure
from ckdsnn.demo.report import Spread, statement, summarise, table
from ckdsnn.demo.settings import STUDENTS, TEACHER

GAINS = {"ce": (0, 0, 0), "kd": (2, 4, 6), "samd": (1, -1, 0), "nld": (3, 3, 3), "samd_nld": (5, 4, 6)}


def cells(seeds=3, epochs=4):
    made = {}
    for seed in range(seeds):
        curve = [(e, 0.1 * seed + 0.2 * e) for e in range(1, epochs + 1)]
        common = {"train_curve": curve, "validation_curve": curve}
        made[seed, TEACHER] = {"test_accuracy": 0.9, "firing_rate": None, "seconds": 20.0, **common}
        for key, gain in GAINS.items():
            accuracy = (60 + seed + gain[seed]) / 100
            made[seed, key] = {"test_accuracy": accuracy, "firing_rate": 0.1 + 0.01 * seed, "seconds": 30.0, **common}
    return made


def test_table_gives_mean_deviation_and_paired_gain():
    settings = DemoSettings()
    summary = summarise(cells(), settings)
    assert summary["kd"]["gain"] == pytest.approx([2, 4, 6])
    lines = {line.split("  ")[0].strip(): line for line in table(summary).splitlines()}
    assert "90.0 ± 0.0" in lines["ANN teacher"]
    assert "61.0 ± 1.0" in lines["CE only"]
    assert "65.0 ± 3.0" in lines["KD"]
    assert "+4.0 ± 2.0" in lines["KD"]
    assert "3 of 3" in lines["KD"]
    assert "+0.0 ± 1.0" in lines["SAMD only"]
    assert "1 of 3" in lines["SAMD only"]
    assert "0.110 ± 0.010" in lines["NLD only"]


def test_statement_says_what_is_not_shown():
    text = statement(summarise(cells(), DemoSettings()), DemoSettings())
    assert "+5.0 ± 1.0 over CE" in text
    assert "+1.0 ± 1.7 over KD" in text
    assert "does not show that SAMD + NLD beats KD" in text
    assert "p = .27" in text
    assert "accuracies mean nothing" not in text
    assert "accuracies mean nothing" in statement(summarise(cells(1), DemoSettings.quick()), DemoSettings.quick())


def test_a_single_seed_has_no_deviation():
    assert Spread.of([1.5]).show("+.1f") == "+1.5"
    assert Spread.of([1.0, 3.0]).show(".1f") == "2.0 ± 1.4"
    assert "±" not in table(summarise(cells(1), DemoSettings(seeds=1)))


@pytest.mark.parametrize("seeds", [1, 3])
def test_figures_are_drawn(seeds):
    settings = DemoSettings(seeds=seeds)
    bars = accuracy_figure(summarise(cells(seeds), settings))
    assert [len(axis.patches) for axis in bars.axes] == [5, 4]
    curves = curves_figure(cells(seeds), settings)
    assert [len(axis.lines) for axis in curves.axes] == [5, 5]
    assert len(curves.axes[0].collections) == (5 if seeds > 1 else 0)
    rows = [MapRow(name, torch.rand(4, 5, 5), torch.tensor([0, 1, 2, 9])) for name in ("a", "b")]
    maps = maps_figure(torch.rand(4, 1, 20, 20), torch.arange(4), torch.zeros(4, 2, dtype=torch.long), 12, rows)
    assert len(maps.axes) == 12
    assert [axis.get_xlabel() for axis in maps.axes[4:8]] == ["says 0", "says 1", "says 2", "says 9"]


def command(out, *more):
    return [sys.executable, "-m", "ckdsnn.cli", "demo", "--quick", "--out", str(out), *more]


def test_interrupted_and_run_again(tmp_path, capsys):
    """Ctrl-C keeps what is finished; the same command does the rest, whatever else lies in the folder."""
    out = tmp_path / "demo"
    running = subprocess.Popen(
        command(out),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=tmp_path,  # not in the source tree, whose packages are not compiled and would come first
        # As in a terminal, also where the tests run in the background of a shell, which ignores interrupts there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    finished = out / "seed0" / TEACHER / "result.json"
    deadline = time.monotonic() + 240
    while not finished.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGINT)
    _, messages = running.communicate(timeout=120)
    assert running.returncode == 130, messages
    assert "the same command goes on from there" in messages
    assert "Traceback" not in messages
    assert not (out / "results.json").exists()
    made_at = finished.stat().st_mtime_ns

    # What a killed process could leave: half a cell, a result that is cut short.
    (out / "seed0" / "kd").mkdir(exist_ok=True)
    (out / "seed0" / "kd" / "metrics.csv").write_text("epoch,step\n")
    (out / "seed0" / "nld").mkdir(exist_ok=True)
    (out / "seed0" / "nld" / "result.json").write_text('{"seed": 0, "meth')
    assert main(["--quick", "--out", str(out)]) == 0
    assert finished.stat().st_mtime_ns == made_at
    shown = capsys.readouterr()
    assert "SAMD + NLD" in shown.out
    assert "accuracies mean nothing" in shown.out
    results = json.loads((out / "results.json").read_text())
    assert len(results["cells"]) == 6
    assert {p.name for p in (out / "figures").iterdir()} == {"maps.png", "accuracy.png", "curves.png"}
    for key in STUDENTS:
        folder = out / "seed0" / key
        log = (folder / "metrics.csv").read_text()
        assert "train/loss" in log.splitlines()[0]
        assert len(log.splitlines()) > 3
        assert read_cell(out, 0, key, DemoSettings.quick()) is not None
        assert read_cell(out, 0, key, DemoSettings()) is None  # other settings, other results
    assert 0 < results["summary"]["ce"]["firing_rate"][0] < 1
    assert results["versions"]["torch"] == torch.__version__

    # All there: nothing is trained again.
    assert main(["--quick", "--out", str(out)]) == 0
    assert finished.stat().st_mtime_ns == made_at


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--seeds", "0"], "at least 1, got '0'"), (["--seed", "x"], "at least 1"), (["--processes", "-1"], "at least 1")],
)
def test_bad_options(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("number", "word"), [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")])
def test_a_signal_is_its_status(monkeypatch, tmp_path, capsys, number, word):
    def run_demo(*arguments, **options):
        os.kill(os.getpid(), number)
        time.sleep(60)

    monkeypatch.setattr(run, "run_demo", run_demo)
    terminate, interrupt = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["--quick", "--out", str(tmp_path)]) == 128 + number
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert f"{word}: the trainings that were finished are kept" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == terminate


@pytest.mark.parametrize("number", schedule.STOPPING)
def test_signals_wait_while_a_worker_starts(number):
    came = []
    before = signal.signal(number, lambda *_: came.append(number))
    with schedule._signals_held_back():
        os.kill(os.getpid(), number)
        assert number in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        assert came == []
    assert came == [number]
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    signal.signal(number, before)


def test_out_that_is_a_file_or_taken(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--quick", "--out", str(tmp_path / "file")]) == 1
    assert "is not a folder: name another one" in capsys.readouterr().err
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(["--quick", "--out", str(tmp_path)]) == 1
    assert "another demo is running in" in capsys.readouterr().err
