"""A sweep on a real Slurm, a cluster of its own of one node: an array, preempted, gone on with, cancelled."""

import json
import subprocess
import sys
import time

import pytest

import slurm_cluster
from ckdsnn.checkpoint import RunError
from ckdsnn.sweep.slurm import parameters


def test_parameters():
    assert parameters([], on_cpu=False) == {"timeout_min": 720, "cpus_per_task": 4, "gpus_per_node": 1}
    assert parameters(["cpus_per_task=8", "slurm_qos=low"], on_cpu=True)["slurm_qos"] == "low"
    for setting in ("nodes=2", "partition", "=1"):
        with pytest.raises(RunError, match="--slurm_set"):
            parameters([setting], on_cpu=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    pytest.importorskip("submitit")
    if lacking := slurm_cluster.missing():
        pytest.skip(f"no Slurm here: {', '.join(lacking)} missing (apt-get install slurm-wlm munge)")
    made = slurm_cluster.Cluster(tmp_path_factory.mktemp("slurm"))
    yield made
    made.close()


def wait_for(what, seconds=300):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.3)


class Sweep:
    """A sweep of two tiny runs, the second of them long."""

    def __init__(self, cluster, folder, epochs):
        tiny = {
            "model.network.options": {"widths": [4, 6, 8], "time_steps": 1},
            "data.train_samples": 60,
            "model.method.name": "ce",
            "trainer.check_val_every_n_epoch": 50,
            "save_every_seconds": 0,
        }
        grid = {"recipe": "digits", "options": tiny, "product": {"trainer.max_epochs": [1, epochs]}}
        (folder / "grid.yaml").write_text(json.dumps(grid))
        self.cluster, self.folder, self.run = cluster, folder, folder / "out" / f"max_epochs={epochs}" / "seed0"

    def __call__(self):
        command = [sys.executable, "-m", "ckdsnn", "sweep", "grid.yaml", "--out", "out", "--slurm"]
        command += ["--slurm_set", "timeout_min=20", "--slurm_set", "partition=low"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=240, cwd=self.folder, env=self.cluster.environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def job(self):
        queue = json.loads((self.folder / "out" / "slurm" / "jobs.json").read_text())
        return queue[str(self.run.relative_to(self.folder))]

    def state(self):
        return self.cluster.run("squeue", "-h", "-r", "-j", self.job, "-o", "%T", check=False).strip()

    def at_once(self):
        """A job that was requeued waits two minutes, unless it is told not to."""
        self.cluster.run("scontrol", "update", f"JobId={self.job}", "StartTime=now")

    def trainings(self):
        """How often it has begun to train."""
        return sum(len(path.read_text().splitlines()) > 2 for path in self.run.glob("logs/version_*/metrics.csv"))


def test_preempted_and_finished(cluster, tmp_path):
    """A job of a partition of higher priority takes the node; the run saves, waits, goes on and comes to its end."""
    sweep = Sweep(cluster, tmp_path, 600)
    assert "0 of 2 runs are finished, 0 are in the queue, 2 submitted" in sweep()
    assert "_" in sweep.job  # of an array
    wait_for(lambda: sweep.trainings() == 1)
    wait_for(lambda: len(cluster.run("squeue", "-h", "-r").split("\n")) == 2)  # the short one has ended
    assert (tmp_path / "out" / "max_epochs=1" / "seed0" / "test.json").exists()
    assert sweep.state() == "RUNNING"
    # Needs both cores of the node, so the run has to go.
    cluster.run("sbatch", "--partition=high", "--cpus-per-task=2", "--output=/dev/null", "--wrap", "sleep 1")
    wait_for(lambda: sweep.state() == "PENDING")
    assert (sweep.run / "last.ckpt").exists()
    assert not (sweep.run / "test.json").exists()
    assert "1 of 2 runs are finished, 1 are in the queue, 0 submitted" in sweep()
    sweep.at_once()
    wait_for((sweep.run / "test.json").exists)
    assert sweep.trainings() == 2
    assert "going on with" in (sweep.run / "sweep.log").read_text()
    wait_for(lambda: json.loads((sweep.run / "sweep.json").read_text())["finished"])
    wait_for(lambda: sweep.state() == "")
    said = sweep()
    assert "2 of 2 runs are finished, 0 are in the queue, 0 submitted" in said
    table = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert [line.split(" | ")[2].strip(" |") for line in table[2:]] == ["1", "1"]  # seeds of each cell


def test_warned_and_cancelled(cluster, tmp_path):
    """Before its time is up, the run is told and goes into the queue again; once it is cancelled, it does not."""
    sweep = Sweep(cluster, tmp_path, 30000)
    sweep()
    wait_for(lambda: sweep.trainings() == 1)
    cluster.run("scancel", "--signal=USR2", sweep.job)  # Slurm's warning
    wait_for(lambda: sweep.state() == "PENDING")
    assert (sweep.run / "last.ckpt").exists()
    sweep.at_once()
    wait_for(lambda: sweep.trainings() == 2)
    cluster.run("scancel", sweep.job)
    wait_for(lambda: sweep.state() == "")  # it is not in the queue again
    record = json.loads((sweep.run / "sweep.json").read_text())
    assert not record["finished"]
    assert record["seconds"] > 0
