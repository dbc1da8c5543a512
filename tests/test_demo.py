"""The demo: its numbers, its figures, and that neither interruption nor leftovers harm it."""

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from ckdsnn.demo import main, run
from ckdsnn.demo.figures import accuracy_figure, curve, curves_figure
from ckdsnn.demo.report import first_line, gain, read_reference, seeds_to_show, statement
from ckdsnn.demo.run import delete_trainings, demo_grid
from ckdsnn.sweep.plan import make_plan
from ckdsnn.sweep.table import Difference, summarise

GAINS = {"CE": (0, 0, 0), "KD": (2, 4, 6), "SAMD": (1, -1, 0), "NLD": (3, 3, 3), "SAMD + NLD": (5, 4, 6)}


def finished(out, seeds=3):
    """A plan whose runs are finished, with accuracies of 60 % and more."""
    plan = make_plan(demo_grid(seeds), out)
    for student in plan.students:
        accuracy = (60 + student.seed + GAINS[student.cell.label][student.seed]) / 100
        student.job.write_record(30.0, finished=True)
        metrics = {"test/accuracy": accuracy, "test/firing_rate": 0.1}
        student.job.result.write_text(json.dumps({"metrics": metrics}))
        logs = student.job.folder / "logs" / "version_0"
        logs.mkdir(parents=True)
        lines = [f"{epoch},,0.{epoch}\n{epoch},0.{epoch + 1},\n" for epoch in range(4)]
        (logs / "metrics.csv").write_text("epoch,train/accuracy,val/accuracy\n" + "".join(lines))
    return plan, summarise(plan.grid, plan.students)


def test_statement_says_what_is_shown_and_what_is_not(tmp_path):
    _, rows = finished(tmp_path)
    text = statement(rows, None, quick=False)
    # By hand: 5, 4, 6 have the mean 5 and the deviation 1, so 4.303 / sqrt(3) = 2.48 to each side; 3, 0, 0 over KD.
    assert "SAMD + NLD is +5.0 [+2.5, +7.5] over CE: the 95 % confidence interval is without 0." in text
    assert "SAMD + NLD is +1.0 [-3.3, +5.3] over KD: not shown, the 95 % confidence interval has 0 in it." in text
    assert "accuracies mean nothing" not in text
    _, rows = finished(tmp_path / "one", seeds=1)
    text = statement(rows, None, quick=True)
    assert "SAMD + NLD is +5.0 over CE: one seed shows no difference." in text
    assert "accuracies mean nothing" in text


def reference(path, seeds=30):
    """30 seeds: +6 over CE, +1 over KD, both with the deviation 2 (up and down in turns)."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "cell", "seed", "test/accuracy"])
        for seed in range(seeds):
            ours = 0.7 + 0.02 * (seed % 2)
            for label, accuracy in (("CE", 0.65), ("KD", 0.70), ("SAMD", 0.66), ("NLD", 0.69), ("SAMD + NLD", ours)):
                writer.writerow([label, label, seed, accuracy])
    return read_reference(path)


def test_first_line_says_what_three_seeds_can_show(tmp_path):
    assert read_reference(tmp_path / "none.csv") is None
    assert first_line(3, None) == ""
    known = reference(tmp_path / "runs.csv")
    over_ce, over_kd = gain(known, "CE"), gain(known, "KD")
    assert (over_ce.mean, over_kd.mean, over_ce.n) == (pytest.approx(6), pytest.approx(1), 30)
    # The deviation is 1.017: 4.303 * 1.017 / sqrt(3) = 2.53 < 6, and for 1 it takes 7 (2.447 / sqrt(7) * 1.017 = 0.94).
    assert (seeds_to_show(over_ce), seeds_to_show(over_kd)) == (3, 7)
    line = first_line(3, known)
    assert line.startswith(
        "3 seeds can show that SAMD + NLD is ahead of CE (30 seeds: +6.0 [+5.6, +6.4]), and cannot show"
    )
    assert line.endswith("ahead of KD (30 seeds: +1.0 [+0.6, +1.4], it takes 7).")
    assert first_line(1, known).startswith(
        "1 seed cannot show that SAMD + NLD is ahead of CE (30 seeds: +6.0 [+5.6, +6.4], "
    )
    assert "nor can a thousand" in first_line(3, {**known, "KD": known["SAMD + NLD"]})
    assert seeds_to_show(Difference(-1.0, 0.1, 0, 30)) is None


@pytest.mark.parametrize("seeds", [1, 3])
def test_figures_are_drawn(tmp_path, seeds):
    plan, rows = finished(tmp_path, seeds)
    bars = accuracy_figure(rows, None)
    assert [len(axis.patches) for axis in bars.axes] == [5, 4]
    assert not bars.legends
    both = accuracy_figure(rows, reference(tmp_path / "runs.csv"))
    shown = both.axes[1].containers[-1].lines[0]  # the diamonds
    assert shown.get_xdata() == pytest.approx([5, 1, 4, 6])
    assert [text.get_text() for text in both.legends[0].get_texts()] == ["30 seeds, mean and 95 % interval"]
    curves = curves_figure(plan)
    assert [len(axis.lines) for axis in curves.axes] == [5, 5]
    assert list(curves.axes[1].lines[0].get_ydata()) == pytest.approx([0, 10, 20, 30])
    assert len(curves.axes[0].collections) == (5 if seeds > 1 else 0)
    assert curves.axes[0].get_title(loc="left") == "300 training digits"


def test_a_curve_goes_on_in_the_next_log(tmp_path):
    plan, _ = finished(tmp_path, 1)
    job = plan.students[0].job
    later = job.folder / "logs" / "version_1"
    later.mkdir()
    (later / "metrics.csv").write_text("epoch,train/accuracy\n3,0.9\n4,0.95\n")
    assert curve(job, "train/accuracy") == ([1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.9, 0.95])


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
    deadline = time.monotonic() + 240
    while not list(out.glob("teachers/*/teacher/test.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGINT)
    _, messages = running.communicate(timeout=120)
    assert running.returncode == 130, messages
    assert "the same command goes on from there" in messages
    assert "Traceback" not in messages
    assert not (out / "figures").exists()
    (teacher,) = out.glob("teachers/*/teacher/last.ckpt")
    made_at = teacher.stat().st_mtime_ns

    # What a killed process could leave: half a run, a result that is cut short.
    for name, file in (("KD", ".last.ckpt.tmp"), ("NLD", "test.json")):
        (out / name / "seed0").mkdir(parents=True, exist_ok=True)
        (out / name / "seed0" / file).write_text('{"metrics": {"te')
    assert main(["--quick", "--out", str(out)]) == 0
    assert teacher.stat().st_mtime_ns == made_at
    shown = capsys.readouterr()
    assert "SAMD + NLD" in shown.out
    assert "accuracies mean nothing" in shown.out
    with (out / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert [row["label"] for row in runs] == list(GAINS)
    assert all(0 < float(row["test/firing_rate"]) < 1 for row in runs)
    assert {p.name for p in (out / "figures").iterdir()} == {"maps.png", "accuracy.png", "curves.png"}

    # All there: nothing is trained again.
    assert main(["--quick", "--out", str(out)]) == 0
    assert teacher.stat().st_mtime_ns == made_at
    assert "[" not in capsys.readouterr().err
    # Longer trainings are other ones, and do not take the place of these.
    assert main(["--out", str(out)]) == 1
    assert "holds a run of another configuration" in capsys.readouterr().err


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
    assert f"{word}: what was trained is kept" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == terminate


def test_fresh_deletes_what_the_demo_made_alone(tmp_path):
    jobs = make_plan(demo_grid(1), tmp_path).jobs
    jobs[0].folder.mkdir(parents=True)
    jobs[0].write_record(1.0, finished=False)
    of_somebody = [tmp_path / "teachers" / "mine.ckpt", tmp_path / "CE" / "notes.txt", jobs[-1].folder / "notes.txt"]
    for path in of_somebody:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    delete_trainings(jobs)
    assert not jobs[0].folder.exists()
    assert all(path.exists() for path in of_somebody)


def test_out_that_is_a_file_or_taken(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--quick", "--out", str(tmp_path / "file")]) == 1
    assert "is not a folder: name another one" in capsys.readouterr().err
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(["--quick", "--out", str(tmp_path)]) == 1
    assert "another demo is running in" in capsys.readouterr().err
