"""Exact resumption: kill -9 in the middle of an epoch, run the same command, get the same bits."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ckdsnn import cli
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


def arguments(folder: Path, verb: str, every: int | str) -> list[str]:
    folder.mkdir(exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(out=folder / "run", every=every))
    return [verb, "--config", str(recipe)]


def run_apart(folder: Path, *, kill_at: int = 0, every: int | str = 2) -> subprocess.CompletedProcess:
    """`ckdsnn fit` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(kill_at), *arguments(folder, "fit", every)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,  # not in the source tree, whose packages are not compiled and would come first
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    for verb in ("teacher", "fit"):
        assert cli.main(arguments(folder, verb, every=2)) == 0
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
    (mine,), (wanted,) = a["random_state"], b["random_state"]  # of the only process
    assert mine["global"]["torch"].equal(wanted["global"]["torch"])
    assert mine["noise"][0].equal(wanted["noise"][0])


# With 5 steps an epoch, 8 and 9 are in the second. Saved every 2 steps, last at 7, one step is repeated; saved at the
# ends of epochs only, four are.
@pytest.mark.parametrize(("kill_at", "every"), [(8, 2), (9, "null")])
def test_killed_in_mid_epoch(tmp_path, uninterrupted, kill_at, every, capsys):
    teacher = tmp_path / "run" / "teacher"
    teacher.mkdir(parents=True)
    (teacher / "last.ckpt").write_bytes((uninterrupted / "run" / "teacher" / "last.ckpt").read_bytes())
    died = run_apart(tmp_path, kill_at=kill_at, every=every)
    assert died.returncode == -signal.SIGKILL
    assert load_checkpoint(tmp_path / "run" / "last.ckpt")["global_step"] == (7 if every == 2 else 5)
    if every == 2:
        done = run_apart(tmp_path, every=every)
        assert done.returncode == 0, done.stderr
        assert "going on with" in done.stdout
        assert "warn" not in done.stderr.lower()
    else:  # a process less
        assert cli.main(arguments(tmp_path, "fit", every)) == 0
        assert "going on with" in capsys.readouterr().out
    assert_same(tmp_path / "run" / "last.ckpt", uninterrupted / "run" / "last.ckpt")


def test_a_changed_configuration_is_not_mixed_in(uninterrupted, capsys):
    assert cli.main([*arguments(uninterrupted, "fit", every=2), "--model.optimizer.lr", "0.01"]) == 1
    shown = capsys.readouterr()
    assert "another configuration" in shown.err
    assert "optimizer.lr: 0.05 -> 0.01" in shown.err
    assert "Traceback" not in shown.err
    assert "is finished" not in shown.out
