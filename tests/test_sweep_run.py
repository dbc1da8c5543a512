"""The runs of a sweep: order, places, failures, interruption, going on. The runs are a program that trains nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckdsnn import cli
from ckdsnn.checkpoint import RunError
from ckdsnn.run_folder import alone_in
from ckdsnn.sweep.grid import build_grid
from ckdsnn.sweep.plan import Job, make_plan
from ckdsnn.sweep.run import LOG, Place, last_words, places, run_jobs

# Writes what it was asked to do and where it was; what the folder's file `do` says happens in between.
PROGRAM = """
import json, os, pathlib, signal, sys, time
verb, out = sys.argv[1], pathlib.Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
with open(out.parent / "order", "a") as order:
    order.write(f"{verb} {out.name}\\n")
print("place", os.environ["PLACE"], os.environ.get("HIDDEN"), flush=True)
do = (out / "do").read_text() if (out / "do").exists() else ""
if do == "fail":
    sys.exit("line 1\\nline 2\\nno luck")
if do == "wait":
    signal.signal(signal.SIGTERM, lambda *_: ((out / "saved").touch(), sys.exit(143)))
    (out / "waits").touch()
    time.sleep(60)
if do == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (out / "waits").touch()
    time.sleep(60)
if do.startswith("meet") and verb == "fit":
    (out / "waits").touch()
    deadline = time.monotonic() + 60
    while len(list(out.parent.glob("*/waits"))) < int(do[5:]):
        assert time.monotonic() < deadline, "not all are running at once"
        time.sleep(0.01)
if verb == "test":
    (out / "test.json").write_text(json.dumps({"metrics": {"test/accuracy": 0.5}}))
"""
COMMAND = [sys.executable, "-c", PROGRAM]


def job(folder, name, needs=None, do=None, **fingerprint):
    out = folder / name
    if do is not None:
        out.mkdir()
        (out / "do").write_text(do)
    return Job(
        name, out, (("fit", str(out)), ("test", str(out))), {"is": name, **fingerprint}, out / "test.json", needs
    )


def run(jobs, count=1, **options):
    ended = []
    at = [Place({"PLACE": str(number)}) for number in range(count)]
    outcome = run_jobs(jobs, at, lambda job, why: ended.append((job.name, why is None)), COMMAND, **options)
    return outcome, ended


def test_stages_and_jobs_in_their_order_and_only_once(tmp_path):
    teacher, student, other = (
        job(tmp_path, "teacher"),
        job(tmp_path, "student", tmp_path / "teacher"),
        job(tmp_path, "x"),
    )
    outcome, ended = run([student, teacher, other])
    assert ended == [("teacher", True), ("student", True), ("x", True)]
    wanted = [f"{verb} {name}" for name in ("teacher", "student", "x") for verb in ("fit", "test")]
    assert (tmp_path / "order").read_text().splitlines() == wanted
    assert not outcome.failed
    assert all(j.finished and j.seconds > 0 for j in (teacher, student, other))
    assert run([student, teacher, other])[1] == []  # nothing is left
    assert job(tmp_path, "x", lr=1).finished is False  # of another configuration
    (tmp_path / "x" / "test.json").unlink()
    assert run([student, teacher, other])[1] == [("x", True)]


def test_runs_are_parallel_each_in_a_place_of_its_own(tmp_path):
    jobs = [job(tmp_path, name, do="meet 4") for name in "abcd"]
    assert not run(jobs, count=4)[0].failed
    assert sorted((j.folder / LOG).read_text().split()[1] for j in jobs) == ["0", "1", "2", "3"]


def test_a_place_is_taken_again_when_it_is_free(tmp_path):
    jobs = [job(tmp_path, "long", do="meet 2"), job(tmp_path, "short"), job(tmp_path, "next", do="meet 2")]
    assert not run(jobs, count=2)[0].failed
    assert [(j.folder / LOG).read_text().split()[1] for j in jobs] == ["0", "1", "1"]


def test_a_failed_run_stops_those_alone_that_need_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HIDDEN", "seen")
    bad, child, good = job(tmp_path, "bad", do="fail"), job(tmp_path, "child", tmp_path / "bad"), job(tmp_path, "good")
    outcome, ended = run([bad, child, good])
    assert dict(ended) == {"bad": False, "child": False, "good": True}
    why = outcome.failed[str(bad.folder)]
    assert why.startswith("exit status 1: ")
    assert why.endswith("line 1\nline 2\nno luck")
    assert outcome.status[str(bad.folder)] == 1
    assert outcome.failed[str(child.folder)] == f"it needs {bad.folder}, which failed"
    assert "seen" in (good.folder / LOG).read_text()
    assert not bad.finished
    (bad.folder / "do").write_text("")
    assert dict(run([bad, child, good])[1]) == {"bad": True, "child": True}


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    inside = tmp_path / "file" / "run"
    bad = Job("bad", inside, (("fit", str(inside)),), {}, inside / "test.json")
    outcome, ended = run([bad, job(tmp_path, "good")])
    assert ended == [("bad", False), ("good", True)]
    assert str(tmp_path / "file") in outcome.failed[str(inside)]
    assert (tmp_path / "file").read_text() == "mine"


def test_no_space_for_a_record(tmp_path, monkeypatch):
    """The run counts as failed and is tried again; the others go on."""
    write = Job.write_record

    def full(self, seconds, *, finished):
        if self.name == "bad" and finished:
            raise RunError("no space left")
        write(self, seconds, finished=finished)

    bad, good = job(tmp_path, "bad"), job(tmp_path, "good")
    with monkeypatch.context() as patch:
        patch.setattr(Job, "write_record", full)
        outcome, ended = run([bad, good])
    assert ended == [("bad", False), ("good", True)]
    assert outcome.failed == {str(bad.folder): "no space left"}
    assert run([bad, good])[1] == [("bad", True)]


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("do", ["wait", "stubborn"])
def test_interrupted(tmp_path, monkeypatch, do):
    """Runs are told to stop, so that they can save; one that does not is killed. What is finished stays."""
    jobs = [job(tmp_path, "done"), job(tmp_path, "long", do=do), job(tmp_path, "later")]
    sleep, waits = time.sleep, tmp_path / "long" / "waits"

    def interrupt(seconds):
        if waits.exists():
            waits.unlink()
            raise Interrupted
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", interrupt)
    running = []
    with pytest.raises(Interrupted):
        run(jobs, patience=0.3 if do == "stubborn" else 30, running=running)
    assert [j.finished for j in jobs] == [True, False, False]
    assert (tmp_path / "long" / "saved").exists() == (do == "wait")
    assert running[0].process.returncode == (143 if do == "wait" else -signal.SIGKILL)
    before = jobs[1].seconds
    assert before > 0
    (tmp_path / "long" / "do").write_text("")
    assert dict(run(jobs)[1]) == {"long": True, "later": True}
    assert jobs[1].seconds > before  # both parts


def test_runs_end_with_a_sweep_that_is_killed(tmp_path):
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from test_sweep_run import job, run
run([job(Path({str(tmp_path)!r}), "long", do="wait")])
"""
    sweep = subprocess.Popen([sys.executable, "-c", code])
    waits, saved = tmp_path / "long" / "waits", tmp_path / "long" / "saved"
    deadline = time.monotonic() + 60
    while not waits.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    sweep.kill()
    sweep.wait()
    while not saved.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert saved.exists()


def test_places(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert [p.environment["OMP_NUM_THREADS"] for p in places(None, [], 1)] == ["1"] * 8
    few = places(3, [], 1)
    assert [p.environment["OMP_NUM_THREADS"] for p in few] == ["2"] * 3
    assert {p.environment["CUDA_VISIBLE_DEVICES"] for p in few} == {""}
    shared = places(None, ["3", "5"], 2)
    assert [p.environment["CUDA_VISIBLE_DEVICES"] for p in shared] == ["3", "5", "3", "5"]
    assert shared[0].environment["OMP_NUM_THREADS"] == "2"
    assert len(places(1, ["3", "5"], 2)) == 1


def test_last_words_are_without_progress_bars(tmp_path):
    one = job(tmp_path, "x", do="")
    assert last_words(one) == "it left no log"
    (one.folder / LOG).write_bytes(b"1\n2\n3\n4\n\x1b[31m10 %\r90 %\r100 %\x1b[0m\nerror: \xff\n\n")
    assert last_words(one, 2) == "100 %\nerror: \ufffd"


GRID = {"recipe": "digits", "cells": {"a": {"model.method.name": "ce"}}}


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    plan = make_plan(build_grid("x", GRID), tmp_path)
    plan.students[0].job.write_record(1.0, finished=False)
    plan.check_folders()
    other = make_plan(build_grid("x", {**GRID, "options": {"model.optimizer.lr": 0.5}}), tmp_path)
    with pytest.raises(
        RunError, match=r"seed0 holds a run of another configuration \(model.optimizer.lr: 0.01 -> 0.5\)"
    ):
        other.check_folders()


@pytest.fixture
def sweep(capsys, tmp_path):
    (tmp_path / "grid.yaml").write_text(json.dumps(GRID))

    def call(*arguments):
        try:
            status = cli.main(["sweep", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out"), *arguments])
        except SystemExit as stopped:
            status = stopped.code
        return status, capsys.readouterr()

    return call


def test_dry_run_lists_and_writes_nothing(sweep, tmp_path):
    status, said = sweep("--dry_run", "--set", "seeds=2")
    assert status == 0
    assert said.out.count("to run") == 2
    assert "a: model.method.name=ce" in said.out
    assert "2 of 2 runs are left" in said.out
    assert not (tmp_path / "out").exists()


def test_wrong_use_is_one_line(sweep, tmp_path, monkeypatch):
    with alone_in(tmp_path / "out", "sweep"):
        status, said = sweep()
        assert (status, said.err.count("\n")) == (1, 1)
        assert "another sweep is running in" in said.err
    status, said = sweep("--set", "recipe=digit")
    assert (status, said.err.count("\n")) == (1, 1)
    assert "did you mean 'digits'" in said.err
    assert sweep("--slurm", "--processes", "2")[0] == 2
    assert sweep("--slurm_set", "a=1")[0] == 2
    assert sweep("--processes", "0")[0] == 2
    monkeypatch.setenv("PATH", str(tmp_path))
    status, said = sweep("--slurm")
    assert (status, said.err.count("\n")) == (1, 1)
    assert "there is no sbatch here" in said.err or "needs submitit" in said.err


def test_a_real_run_failed_and_finished(sweep, tmp_path, monkeypatch):
    """The commands are those of the command line: one tiny training, after one that fails."""
    tiny = ["model.network.options={widths: [4, 6, 8], time_steps: 1}", "data.train_samples=60", "trainer.max_epochs=1"]
    tiny = [part for setting in tiny for part in ("--set", setting)]
    monkeypatch.chdir(tmp_path)  # not in the source tree, whose packages are not compiled and would come first
    status, said = sweep(*tiny, "--set", "data.batch_size=301")
    assert status == 1
    assert "[1/1] a, seed 0: failed" in said.err
    assert "lower batch_size to 60 or less" in said.err
    assert "1 of 1 runs failed" in said.err
    status, said = sweep(*tiny)
    assert status == 1
    assert "holds a run of another configuration (data.init_args.batch_size: 301 -> 30)" in said.err
    status, said = sweep(*tiny, "--out", str(tmp_path / "good"))
    assert status == 0, said.err
    assert "[1/1] a, seed 0: test/accuracy" in said.err
    accuracy = json.loads(Path("good/a/seed0/test.json").read_text())["metrics"]["test/accuracy"]
    assert f"{100 * accuracy:.2f}" in said.out
    assert {p.name for p in Path("good").iterdir() if p.is_file()} >= {"table.md", "table.csv", "runs.csv", "bars.png"}
