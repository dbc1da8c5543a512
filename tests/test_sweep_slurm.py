"""A sweep on a real Slurm, where there is one: submitted, preempted, gone on with, cancelled."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckdsnn.checkpoint import RunError
from ckdsnn.sweep.slurm import parameters


def slurm(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


def available():
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        return False
    try:
        return "idle" in slurm("sinfo", "-h", "-o", "%T")
    except subprocess.SubprocessError:
        return False


def test_parameters():
    assert parameters([], on_cpu=False) == {"timeout_min": 720, "cpus_per_task": 4, "gpus_per_node": 1}
    assert parameters(["cpus_per_task=8", "slurm_qos=low"], on_cpu=True)["slurm_qos"] == "low"
    for setting in ("nodes=2", "partition", "=1"):
        with pytest.raises(RunError, match="--slurm_set"):
            parameters([setting], on_cpu=True)


def wait_for(what, seconds=300):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.skipif(not available(), reason="no Slurm with an idle node here")
def test_preempted_and_cancelled(tmp_path):
    pytest.importorskip("submitit")
    tiny = {
        "model.network.options": {"widths": [4, 6, 8], "time_steps": 1},
        "data.train_samples": 60,
        "model.method.name": "ce",
        "save_every_seconds": 0,
    }
    grid = {"recipe": "digits", "options": tiny, "product": {"trainer.max_epochs": [1, 3000]}}
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    command = [sys.executable, "-m", "ckdsnn", "sweep", "grid.yaml", "--out", "out", "--slurm"]
    command += ["--slurm_set", "timeout_min=20"]

    def sweep():
        return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path, check=True).stdout

    assert "0 of 2 runs are finished, 0 are in the queue, 2 submitted" in sweep()
    out = tmp_path / "out"
    log = "max_epochs=3000/seed0"
    long = json.loads((out / "slurm" / "jobs.json").read_text())[f"out/{log}"]

    def state():
        return slurm("squeue", "-h", "-r", "-j", long, "-o", "%T").strip()

    def epochs():
        return sum(len(path.read_text().splitlines()) > 2 for path in (out / log).glob("logs/version_*/metrics.csv"))

    try:
        wait_for(lambda: epochs() == 1)
        slurm("scancel", "--signal=TERM", long)  # what a preemption begins with
        wait_for(lambda: state() == "PENDING")
        assert (out / log / "last.ckpt").exists()
        slurm("scontrol", "update", f"JobId={long}", "StartTime=now")
        wait_for(lambda: epochs() == 2)
        assert "going on with" in (out / log / "sweep.log").read_text()
        slurm("scancel", "--signal=USR2", long)  # Slurm's warning before the time is up
        wait_for(lambda: state() == "PENDING")
        wait_for((out / "max_epochs=1" / "seed0" / "test.json").exists)
        said = sweep()
        assert "1 of 2 runs are finished, 1 are in the queue, 0 submitted" in said
        slurm("scontrol", "update", f"JobId={long}", "StartTime=now")
        wait_for(lambda: epochs() == 3)
    finally:
        slurm("scancel", long)
    wait_for(lambda: state() == "")  # it is not in the queue again
    record = json.loads((out / log / "sweep.json").read_text())
    assert not record["finished"]
    assert record["seconds"] > 0
    assert Path(tmp_path / "out" / "table.md").read_text().count("\n") == 4
