"""The runs of a sweep: order, places, failures, interruption, going on. The runs are a program that trains nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from ckdsnn import cli
from ckdsnn.checkpoint import RunError
from ckdsnn.run_folder import alone_in
from ckdsnn.sweep.grid import build_grid
from ckdsnn.sweep.plan import Job, make_plan
from ckdsnn.sweep.run import LOG, Outcome, Place, last_words, places, run_jobs, visible_gpus

# A worker whose command writes what it was asked to do and where it was; what the folder's file `do` says happens in
# between.
PROGRAM = (
    f"""
import json, os, pathlib, signal, sys, time
sys.path[:0] = {[path or str(Path.cwd()) for path in sys.path]!r}
from ckdsnn.sweep.worker import work
"""
    + """
def run(arguments):
    verb, out = arguments[0], pathlib.Path(arguments[1])
    out.mkdir(parents=True, exist_ok=True)
    with open(out.parent / "order", "a") as order:
        order.write(f"{verb} {out.name}\\n")
    print("place", os.environ["PLACE"], os.environ.get("HIDDEN"), os.getpid(), flush=True)
    (out / "gpu").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
    do = (out / "do").read_text() if (out / "do").exists() else ""
    if do == "fail":
        sys.exit("line 1\\nline 2\\nno luck")
    if do == "status":
        return 7
    if do == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
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
    return 0

sys.exit(work(run))
"""
)
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


def where(job):
    """Place, hidden variable and process of its first command."""
    return (job.folder / LOG).read_text().split()[1:4]


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
    assert sorted(where(j)[0] for j in jobs) == ["0", "1", "2", "3"]


def test_a_place_is_taken_again_when_it_is_free(tmp_path):
    jobs = [job(tmp_path, "long", do="meet 2"), job(tmp_path, "short"), job(tmp_path, "next", do="meet 2")]
    assert not run(jobs, count=2)[0].failed
    assert [where(j)[0] for j in jobs] == ["0", "1", "1"]


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


def test_a_process_goes_on_until_a_run_fails(tmp_path):
    """PyTorch is imported once a place; what a failed run leaves of its process, the next one does not get."""
    names = {"a": None, "b": None, "bad": "status", "c": None, "dead": "crash", "d": None, "e": None}
    jobs = {name: job(tmp_path, name, do=do) for name, do in names.items()}
    outcome, ended = run(list(jobs.values()))
    assert dict(ended) == {name: name not in ("bad", "dead") for name in names}
    process = {name: where(one)[2] for name, one in jobs.items()}
    assert process["a"] == process["b"] == process["bad"] != process["c"]
    assert process["c"] == process["dead"] != process["d"] == process["e"]
    assert outcome.status == {str(tmp_path / "bad"): 7, str(tmp_path / "dead"): -signal.SIGSEGV}
    assert outcome.failed[str(tmp_path / "bad")].startswith("exit status 7: place")
    assert outcome.failed[str(tmp_path / "dead")].startswith("ended by SIGSEGV: place")


def test_gpus_are_told_apart_in_the_runs(tmp_path, monkeypatch):
    """Two GPUs, two runs each: all four at once, two see one GPU and two the other; each process stays with its own."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-b")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    at = [replace(place, environment={**place.environment, "PLACE": "x"}) for place in places(None, visible_gpus(), 2)]
    jobs = [job(tmp_path, name, do="meet 4") for name in "abcd"]
    jobs += [job(tmp_path, name) for name in "efgh"]
    assert not run_jobs(jobs, at, lambda *_: None, COMMAND).failed
    seen = [(where(one)[2], (one.folder / "gpu").read_text()) for one in jobs]
    assert sorted(gpu for _, gpu in seen[:4]) == ["3", "3", "GPU-b", "GPU-b"]
    assert len(set(seen)) == 4


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
def test_interrupted(tmp_path, do):
    """Runs are told to stop, so that they can save; one that does not is killed. What is finished stays."""
    jobs = [job(tmp_path, "done"), job(tmp_path, "long", do=do), job(tmp_path, "later")]
    waits = tmp_path / "long" / "waits"

    def interrupt(running):
        if waits.exists():
            raise Interrupted

    running = []
    with pytest.raises(Interrupted):
        run(jobs, patience=0.3 if do == "stubborn" else 30, running=running, watch=interrupt)
    assert [j.finished for j in jobs] == [True, False, False]
    assert (tmp_path / "long" / "saved").exists() == (do == "wait")
    assert running[0].worker.process.returncode == (143 if do == "wait" else -signal.SIGKILL)
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
    assert [p.environment["CUDA_VISIBLE_DEVICES"] for p in places(None, ["3", "5"], 1)] == ["3", "5"]
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


def test_several_grids_share_their_teachers(capsys, tmp_path, monkeypatch):
    """One grid after another, each in its folder; a teacher of the same recipe and seed is trained once."""
    teacher = {"data.train_samples": None, "model.teacher.epochs": 3}
    for name, cells in (("one", {"a": {"model.method.name": "kd"}}), ("two", {"b": {"model.method.name": "nld"}})):
        (tmp_path / f"{name}.yaml").write_text(json.dumps({**GRID, "cells": cells, "teacher": teacher, "seeds": 2}))
    monkeypatch.chdir(tmp_path)
    ran = []

    def pretend(jobs, at, report, **options):
        ran.extend(jobs)
        return Outcome()

    monkeypatch.setattr("ckdsnn.sweep.run.run_jobs", pretend)
    assert cli.main(["sweep", "one.yaml", "two.yaml", "--out", "out"]) == 0
    names = [str(job.folder.relative_to("out")) for job in ran]
    teachers = [name for name in names if name.startswith("teachers/")]
    assert len(teachers) == 2
    assert names == [*teachers, "one/a/seed0", "one/a/seed1", "two/b/seed0", "two/b/seed1"]
    recipe = yaml.safe_load(Path("out", teachers[0], "recipe.yaml").read_text())
    assert recipe["data"]["init_args"]["train_samples"] is None
    assert recipe["model"]["teacher"]["epochs"] == 3
    student = yaml.safe_load(Path("out/one/a/recipe.yaml").read_text())
    assert student["data"]["init_args"]["train_samples"] == 300
    assert Path("out/two/table.csv").exists()
    # Another sweep that names the folder has them as well.
    ran.clear()
    assert cli.main(["sweep", "one.yaml", "--out", "other", "--teachers", "out/teachers"]) == 0
    assert [str(job.folder) for job in ran[:2]] == [f"out/{name}" for name in teachers]
    with pytest.raises(SystemExit):
        cli.main(["sweep", "one.yaml", "one.yaml", "--out", "out"])
    assert "two grids have the same name" in capsys.readouterr().err


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


def test_a_run_is_the_same_after_another_one_in_its_process(sweep, tmp_path, monkeypatch):
    """Bit for bit what it is alone: nothing of a run is left for the next one."""
    tiny = ["model.network.options={widths: [4, 6, 8], time_steps: 1}", "data.train_samples=60", "trainer.max_epochs=1"]
    tiny = [part for setting in tiny for part in ("--set", setting)]
    first = {"model.method.name": "ce", "trainer.deterministic": True, "model.optimizer.lr": 0.1}
    second = {"model.method.name": "ce"}
    monkeypatch.chdir(tmp_path)
    weights = {}
    for name, cells in (("both", {"a": first, "b": second}), ("alone", {"b": second})):
        Path("grid.yaml").write_text(json.dumps({**GRID, "cells": cells, "metric": "val/accuracy"}))
        status, said = sweep(*tiny, "--out", name, "--processes", "1")
        assert status == 0, said.err
        weights[name] = torch.load(f"{name}/b/seed0/last.ckpt", weights_only=False)["state_dict"]
        assert not Path(f"{name}/b/seed0/test.json").exists()  # for validation accuracies, nothing is tested
    assert "validation accuracy %" in said.out
    assert weights["both"].keys() == weights["alone"].keys()
    assert all(torch.equal(weights["both"][key], value) for key, value in weights["alone"].items())
