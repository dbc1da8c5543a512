"""Exact resumption: kill -9 in the middle of an epoch, run the same command, get the same bits."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ckdsnn.checkpoint import load_checkpoint

RECIPE = """
seed_everything: 3
out: {out}
save_every_n_steps: {every}
data:
  class_path: ckdsnn.data.DigitsCanvas
  init_args: {{batch_size: 12, train_samples: 60, views: 2, augmentation: {{shift: 1, erase: 0.5}}}}
model:
  network: {{name: snn_resnet_small, options: {{widths: [4, 6, 8], time_steps: 2}}}}
  method: {{name: ckd}}
  teacher: {{name: ann_resnet_small, options: {{widths: [4, 6, 8]}}, epochs: 2}}
  optimizer: {{name: sgd, lr: 0.05, warmup_epochs: 1}}
trainer:
  max_epochs: 3
  accelerator: cpu
  devices: 1
  logger: false
  callbacks:
    - class_path: lightning.pytorch.callbacks.EMAWeightAveraging
      init_args: {{decay: 0.9}}
"""

# Runs one command and, if told to, kills itself right after so many optimiser steps, like a machine that goes down.
CHILD = """
import os, signal, sys
from ckdsnn import checkpoint, cli
kill_at = int(sys.argv[1])
if kill_at:
    save = checkpoint.ResumeCheckpoint.on_train_batch_end
    def save_and_die(self, trainer, *args):
        save(self, trainer, *args)
        if trainer.global_step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
    checkpoint.ResumeCheckpoint.on_train_batch_end = save_and_die
sys.exit(cli.main(sys.argv[2:]))
"""


def run(folder: Path, *command: str, kill_at: int = 0, every: int | str = 2) -> subprocess.CompletedProcess:
    folder.mkdir(exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(out=folder / "run", every=every))
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(kill_at), *command, "--config", str(recipe)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,  # not in the source tree, whose packages are not compiled and would come first
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    done = run(folder, "distill")
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.lower()
    return folder


def assert_same(path: Path, expected: Path) -> None:
    a, b = load_checkpoint(path), load_checkpoint(expected)
    assert a["global_step"] == b["global_step"] == 15
    for part in ("state_dict", "current_model_state"):  # with averaging: the average, and what it averages
        assert a[part].keys() == b[part].keys()
        for name, value in a[part].items():
            assert torch.equal(value, b[part][name]), (part, name)
    moment = [state["momentum_buffer"] for state in a["optimizer_states"][0]["state"].values()]
    wanted = [state["momentum_buffer"] for state in b["optimizer_states"][0]["state"].values()]
    assert all(torch.equal(x, y) for x, y in zip(moment, wanted, strict=True))
    assert a["random_state"]["torch"].equal(b["random_state"]["torch"])


# With 5 steps an epoch, 8 and 9 are in the second. Saved every 2 steps, last at 7, one step is repeated; saved at the
# ends of epochs only, four are.
@pytest.mark.parametrize(
    ("kill_at", "every"),
    [
        pytest.param(8, 2, marks=pytest.mark.xfail(reason="known fault: weights differ after resuming at step 7")),
        (9, "null"),
    ],
)
def test_killed_in_mid_epoch(tmp_path, uninterrupted, kill_at, every):
    teacher = tmp_path / "run" / "teacher"
    teacher.mkdir(parents=True)
    (teacher / "last.ckpt").write_bytes((uninterrupted / "run" / "teacher" / "last.ckpt").read_bytes())
    died = run(tmp_path, "fit", kill_at=kill_at, every=every)
    assert died.returncode == -signal.SIGKILL
    assert load_checkpoint(tmp_path / "run" / "last.ckpt")["global_step"] == (7 if every == 2 else 5)
    done = run(tmp_path, "fit", every=every)
    assert done.returncode == 0, done.stderr
    assert "going on with" in done.stdout
    assert_same(tmp_path / "run" / "last.ckpt", uninterrupted / "run" / "last.ckpt")


@pytest.mark.xfail(reason="known fault: a run that is finished says so before it compares configurations")
def test_a_changed_configuration_is_not_mixed_in(uninterrupted):
    done = run(uninterrupted, "fit", "--model.optimizer.lr", "0.01")
    assert done.returncode == 1
    assert "another configuration" in done.stderr
    assert "optimizer.lr: 0.05 -> 0.01" in done.stderr
    assert "Traceback" not in done.stderr
