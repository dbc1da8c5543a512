"""Stopped runs: exit statuses as a shell's, words on how to go on, and nothing that starts afterwards."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ckdsnn import cli
from ckdsnn.checkpoint import load_checkpoint
from ckdsnn.cli.output import Termination
from ckdsnn.cli.stages import TEACHER
from ckdsnn.cli.stopping import until_stopped

# A training of 2 epochs of 5 steps, that sends itself a signal in step 7.
TINY = ["fit", "--config", "digits", "--model.method.name", "ce", "--trainer.max_epochs", "2",
        "--data.train_samples", "60", "--data.batch_size", "12", "--trainer.enable_progress_bar", "false",
        "--model.network.options", '{"widths": [4, 6, 8], "time_steps": 2}',
        "--save_every_n_steps", "5"]  # fmt: skip
STOPPED = """
import os, sys
from ckdsnn import cli
from ckdsnn.train import Distillation
step = Distillation.training_step
def stopped(self, *args):
    if self.global_step == int(sys.argv[2]):
        os.kill(os.getpid(), int(sys.argv[1]))
    return step(self, *args)
Distillation.training_step = stopped
sys.exit(cli.main(sys.argv[3:]))
"""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes: sums of other lengths round otherwise
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert cli.main([*TINY, "--out", str(out)]) == 0
    torch.set_num_threads(before)
    return load_checkpoint(out / "last.ckpt"), logged(out)


def logged(out):
    """What the logs say of each epoch, over all parts of a run: step, means of its training, validation accuracy."""
    rows = [row for path in sorted(out.glob("logs/*/metrics.csv")) for row in csv.DictReader(path.open())]
    return [{name: value for name, value in sorted(row.items()) if value} for row in rows]


def as_in_a_terminal():
    """Also where the tests run in the background of a shell, which ignores interrupts there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(
    ("number", "step", "status", "saved"),
    [(signal.SIGTERM, 6, 143, 7), (signal.SIGTERM, 4, 143, 5), (signal.SIGINT, 6, 130, 5)],  # 5 steps an epoch
)
def test_a_stopped_training_says_so_and_goes_on(tmp_path, uninterrupted, number, step, status, saved):
    """After SIGTERM from the step it was in, after an interrupt from what was saved last; to the same weights."""
    out = tmp_path / "run"
    command = [*TINY, "--out", str(out)]
    stopped = subprocess.run(
        [sys.executable, "-c", STOPPED, str(int(number)), str(step), *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,  # not in the source tree, whose packages are not compiled and would come first
        preexec_fn=as_in_a_terminal,
    )
    assert stopped.returncode == status, stopped.stderr
    word = {143: "terminated", 130: "interrupted"}[status]
    assert f"{word}: the same command goes on from {out / 'last.ckpt'}\n" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert "weights:" not in stopped.stdout  # what a finished run says
    left = load_checkpoint(out / "last.ckpt")
    assert (left["global_step"], left["ckdsnn"]["finished"]) == (saved, False)
    assert cli.main(command) == 0
    whole = load_checkpoint(out / "last.ckpt")
    assert whole["ckdsnn"]["finished"]
    weights, rows = uninterrupted
    for name, value in weights["state_dict"].items():
        assert torch.equal(whole["state_dict"][name], value), name
    assert sum("val/accuracy" in row for row in rows) == sum("train/ce" in row for row in rows) == 2
    assert logged(out) == rows


def test_sigterm_ends_predictions():
    """Which Lightning's loop would finish; its other loops end themselves."""
    trainer = types.SimpleNamespace(received_sigterm=False)
    Termination(None).on_predict_batch_end(trainer)
    trainer.received_sigterm = True
    with pytest.raises(SIGTERMException):
        Termination(None).on_predict_batch_end(trainer)


@pytest.mark.parametrize(
    ("sigterm", "batch_idx", "accumulate", "last", "world", "saves"),
    [
        (True, 1, 1, False, 1, True),
        (False, 1, 1, False, 1, False),
        (True, 1, 2, False, 1, True),
        (True, 2, 2, False, 1, False),  # half of what makes a step
        (True, 1, 1, True, 1, True),  # what ends an epoch comes after the loop has ended
        (True, 1, 1, False, 2, False),  # the others may not know yet
    ],
)
def test_what_sigterm_saves(tmp_path, sigterm, batch_idx, accumulate, last, world, saves):
    made = []
    trainer = types.SimpleNamespace(
        received_sigterm=sigterm,
        accumulate_grad_batches=accumulate,
        is_last_batch=last,
        world_size=world,
        save_checkpoint=made.append,
        _signal_connector=types.SimpleNamespace(),
    )
    Termination(tmp_path / "last.ckpt").on_train_batch_end(trainer, None, None, None, batch_idx)
    assert made == [tmp_path / "last.ckpt"] * saves


# `distill` with stages that note their names, and end with a status of their own or wait for a signal.
PARENT = """
import json, sys
from ckdsnn.cli.stages import distill
sys.exit(distill([], json.loads(sys.argv[1])))
"""
STAGE = """
import pathlib, signal, sys, time
folder, what, name = sys.argv[1:]
def stop(number, frame):
    (pathlib.Path(folder) / "stopped").write_text(str(number))
    sys.exit(0)  # even a stage that ends well is the last one
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
(pathlib.Path(folder) / name).touch()
if what == "wait":
    time.sleep(60)
sys.exit(int(what))
"""


def distill(folder, what):
    command = [sys.executable, "-c", STAGE, str(folder), what]
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, json.dumps(command)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        preexec_fn=as_in_a_terminal,
        start_new_session=True,
    )


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize(("what", "status", "stages"), [("0", 0, ["fit", TEACHER, "test"]), ("3", 3, [TEACHER])])
def test_a_failed_stage_is_the_last(tmp_path, what, status, stages):
    assert distill(tmp_path, what).wait(60) == status
    assert sorted(path.name for path in tmp_path.iterdir()) == stages


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("whole_group", [False, True])
def test_a_stopped_distill_starts_no_further_stage(tmp_path, number, whole_group):
    running = distill(tmp_path, "wait")
    wait_for(tmp_path / TEACHER)
    (os.killpg if whole_group else os.kill)(running.pid, number)
    assert running.wait(60) == 128 + number
    assert (tmp_path / "stopped").read_text() == str(int(number))
    assert not (tmp_path / "fit").exists()
    word = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}[number]
    assert running.stderr.read() == f"\n{word}: give the same command again\n"  # of the stages that were not begun


def test_a_signal_that_is_ignored_stops_nothing(tmp_path):
    """As interrupts are in the background of a script: the stages ignore it, and their parent does, too."""
    ignored = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    stage = f"{ignored}; import os; os.kill(os.getppid(), signal.SIGINT)"
    command = json.dumps([sys.executable, "-c", stage])
    assert subprocess.run([sys.executable, "-c", ignored + PARENT, command], cwd=tmp_path, timeout=60).returncode == 0


def test_a_killed_stage(tmp_path):
    running = distill(tmp_path, "wait")
    wait_for(tmp_path / TEACHER)
    (stage,) = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(stage), signal.SIGKILL)
    _, messages = running.communicate(timeout=60)
    assert running.returncode == 137
    assert "ended by SIGKILL: give the same command again" in messages
    assert not (tmp_path / "fit").exists()


def test_a_stage_that_an_interrupt_kills_is_interrupted(tmp_path):
    """As one that gets it twice, by the terminal and by its parent, and is past its handlers by then."""
    itself = "import os, signal; signal.signal(signal.SIGINT, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGINT)"
    running = subprocess.run(
        [sys.executable, "-c", PARENT, json.dumps([sys.executable, "-c", itself])],
        cwd=tmp_path,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert (running.returncode, running.stderr) == (130, "\ninterrupted: give the same command again\n")


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_commands_that_train_in_other_processes_are_stopped(number, status, word):
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    said = []

    def work():
        os.kill(os.getpid(), number)
        time.sleep(10)
        return 0

    try:
        assert until_stopped(work, said.append) == status
        assert said == [word]
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
        assert until_stopped(lambda: 7, said.append) == 7
        assert said == [word]
    finally:
        signal.signal(signal.SIGINT, before[signal.SIGINT])
