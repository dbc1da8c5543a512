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
save_every_seconds: 1000
data:
  class_path: ckdsnn.data.DigitsCanvas
  init_args: {{batch_size: 12, train_samples: 60, views: 2, augmentation: {{shift: 1, erase: 0.5}}}}
model:
  network: {{name: snn_resnet_small, options: {{widths: [4, 6, 8], time_steps: 2}}}}
  method: {{name: ckd, options: {{nld: {{learnable_strength: true}}}}}}
  teacher: {{name: ann_resnet_small, options: {{widths: [4, 6, 8]}}, epochs: 2}}
  optimizer: {{name: sgd, lr: 0.05, warmup_epochs: 1}}
trainer:
  max_epochs: 3
  accelerator: {accelerator}
  devices: 1
  deterministic: true
  logger: false
  callbacks:
    - class_path: ckdsnn.callbacks.WeightEMA
      init_args: {{decay: 0.9}}
"""

# Runs one command and, if told to, kills itself right after so many optimiser steps, like a machine that goes down.
CHILD = """
import os, signal, sys
from ckdsnn import cli
from ckdsnn.training import writer
kill_at = int(sys.argv[1])
if kill_at:
    save = writer.ResumeCheckpoint.on_train_batch_end
    def save_and_die(self, trainer, *args):
        save(self, trainer, *args)
        if trainer.global_step == kill_at:
            writer.flush(trainer)
            os.kill(os.getpid(), signal.SIGKILL)
    writer.ResumeCheckpoint.on_train_batch_end = save_and_die
sys.exit(cli.main(sys.argv[2:]))
"""


ACCELERATORS = ["cpu", *(["gpu"] if torch.cuda.is_available() else [])]


def arguments(folder: Path, verb: str, every: int | str, accelerator: str = "cpu") -> list[str]:
    folder.mkdir(exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(out=folder / "run", every=every, accelerator=accelerator))
    return [verb, "--config", str(recipe)]


def run_apart(
    folder: Path, *, kill_at: int = 0, every: int | str = 2, accelerator: str = "cpu"
) -> subprocess.CompletedProcess:
    """`ckdsnn fit` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(kill_at), *arguments(folder, "fit", every, accelerator)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
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


@pytest.fixture(scope="module", params=ACCELERATORS)
def uninterrupted(tmp_path_factory, request):
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what deterministic algorithms of a GPU ask for
    folder = tmp_path_factory.mktemp("whole")
    for verb in ("teacher", "fit"):
        assert cli.main(arguments(folder, verb, 2, request.param)) == 0
    return folder, request.param


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


# With 5 steps an epoch, 8 and 9 are in the second. Saved every 2 steps, last at 8, one step is repeated; saved at the
# end of an epoch, three are.
@pytest.mark.parametrize(("kill_at", "every"), [(9, 2), (8, 5)])
def test_killed_in_mid_epoch(tmp_path, uninterrupted, kill_at, every, capsys):
    whole, accelerator = uninterrupted
    teacher = tmp_path / "run" / "teacher"
    teacher.mkdir(parents=True)
    (teacher / "last.ckpt").write_bytes((whole / "run" / "teacher" / "last.ckpt").read_bytes())
    died = run_apart(tmp_path, kill_at=kill_at, every=every, accelerator=accelerator)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert load_checkpoint(tmp_path / "run" / "last.ckpt")["global_step"] == (8 if every == 2 else 5)
    if every == 2:
        done = run_apart(tmp_path, every=every, accelerator=accelerator)
        assert done.returncode == 0, done.stderr
        assert "going on with" in done.stdout
        assert "warn" not in done.stderr.lower()
    else:  # a process less
        assert cli.main(arguments(tmp_path, "fit", every, accelerator)) == 0
        assert "going on with" in capsys.readouterr().out
    assert_same(tmp_path / "run" / "last.ckpt", whole / "run" / "last.ckpt")


def test_a_changed_configuration_is_not_mixed_in(uninterrupted, capsys):
    folder, accelerator = uninterrupted
    assert cli.main([*arguments(folder, "fit", 2, accelerator), "--model.optimizer.lr", "0.01"]) == 1
    shown = capsys.readouterr()
    assert "another configuration" in shown.err
    assert "optimizer.lr: 0.05 -> 0.01" in shown.err
    assert "Traceback" not in shown.err
    assert "is finished" not in shown.out
