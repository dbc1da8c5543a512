"""Checkpoints that a thread writes: what they hold, in which order, what goes wrong; and when a run is saved."""

from __future__ import annotations

import contextlib
import math
import threading
from concurrent.futures import wait
from types import SimpleNamespace

import pytest
import torch

from ckdsnn.checkpoint import AtomicCheckpointIO, RunError, load_checkpoint
from ckdsnn.training import writer
from ckdsnn.training.writer import BackgroundCheckpointIO, ResumeCheckpoint, ends


@pytest.fixture
def written(monkeypatch):
    """Names and steps of what was written, in order; with `gate` cleared, writing waits."""
    log = SimpleNamespace(files=[], gate=threading.Event(), begun=threading.Event(), fault=None)
    log.gate.set()
    save = AtomicCheckpointIO.save_checkpoint

    def slow(self, checkpoint, path, storage_options=None):
        log.begun.set()
        assert log.gate.wait(20)
        if log.fault is not None:
            raise log.fault
        log.files.append((path.name, checkpoint.get("step")))
        save(self, checkpoint, path)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", slow)
    return log


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("checkpoints")]


def test_a_file_holds_what_was_when_it_was_saved(tmp_path, written):
    io, path = BackgroundCheckpointIO(), tmp_path / "last.ckpt"
    weight, moment = torch.ones(3), torch.ones(3)
    state = {"step": 1, "state_dict": {"w": weight, "same": weight}, "optimizer_states": [{"state": [moment]}]}
    written.gate.clear()
    io.save_checkpoint(state, path)
    weight += 1
    moment += 1
    state["step"] = 2
    state["optimizer_states"][0]["state"].append(4)
    state["state_dict"]["new"] = 3
    written.gate.set()
    read = io.load_checkpoint(path)  # waits for it
    assert read["step"] == 1
    assert torch.equal(read["state_dict"]["w"], torch.ones(3))
    assert read["state_dict"].keys() == {"w", "same"}
    assert read["state_dict"]["w"].data_ptr() == read["state_dict"]["same"].data_ptr()  # one copy, as one it was
    (moments,) = read["optimizer_states"][0]["state"]
    assert torch.equal(moments, torch.ones(3))
    io.teardown()


def test_of_those_that_wait_the_latest_is_written(tmp_path, written):
    io = BackgroundCheckpointIO()
    written.gate.clear()
    io.save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    assert written.begun.wait(20)  # the thread has it
    for step in (2, 3, 4):
        io.save_checkpoint({"step": step}, tmp_path / "last.ckpt")
    written.gate.set()
    io.flush()
    assert written.files == [("last.ckpt", 1), ("last.ckpt", 4)]
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    io.teardown()


def test_the_best_waits_for_the_next_and_comes_first(tmp_path, written):
    io = BackgroundCheckpointIO()
    io.save_checkpoint({"step": 1}, tmp_path / "best.ckpt")
    assert io._writing == []
    assert not threads()
    io.save_checkpoint({"step": 2}, tmp_path / "best.ckpt")
    io.save_checkpoint({"step": 3}, tmp_path / "last.ckpt")
    io.flush()
    assert written.files == [("best.ckpt", 2), ("last.ckpt", 3)]
    written.gate.clear()
    io.save_checkpoint({"step": 4}, tmp_path / "last.ckpt")
    io.save_checkpoint({"step": 5}, tmp_path / "last.ckpt")
    io.save_checkpoint({"step": 6}, tmp_path / "best.ckpt")
    written.gate.set()
    io.flush()
    assert written.files[-2:] in ([("best.ckpt", 6), ("last.ckpt", 5)], [("last.ckpt", 5), ("best.ckpt", 6)])
    io.save_checkpoint({"step": 7}, tmp_path / "best.ckpt")
    io.teardown()  # and nothing is left behind
    assert written.files[-1] == ("best.ckpt", 7)
    assert not threads()


def test_a_state_after_a_failure_is_not_written(tmp_path):
    io, path = BackgroundCheckpointIO(), tmp_path / "last.ckpt"
    for step, failed in ((1, 0.0), (2, 1.0)):
        io.save_checkpoint({"step": step, "telemetry": {"failed": torch.tensor(failed)}}, path)
        io.flush()
    assert load_checkpoint(path)["step"] == 1
    io.teardown()


@pytest.mark.parametrize("tell", ["save_checkpoint", "flush", "teardown"])
def test_what_the_thread_could_not_write_is_told(tmp_path, written, tell):
    io, path = BackgroundCheckpointIO(), tmp_path / "last.ckpt"
    written.fault = RunError("the disk is full")
    written.gate.clear()
    io.save_checkpoint({"step": 1}, path)
    written.gate.set()
    wait(io._writing)
    with pytest.raises(RunError, match="the disk is full"):
        io.save_checkpoint({"step": 2}, path) if tell == "save_checkpoint" else getattr(io, tell)()
    if tell != "teardown":
        with contextlib.suppress(RunError):
            io.teardown()
    assert not threads()


def test_a_removed_file_does_not_come_back(tmp_path, written):
    io = BackgroundCheckpointIO()
    best = tmp_path / "best.ckpt"
    io.save_checkpoint({"step": 1}, best)
    io.flush()
    io.save_checkpoint({"step": 2}, best)
    io.remove_checkpoint(best)
    io.flush()
    assert not best.exists()
    assert written.files == [("best.ckpt", 1)]
    with pytest.raises(TypeError, match="storage_options is not supported"):
        io.save_checkpoint({}, best, storage_options={})


class Trainer(SimpleNamespace):
    """What the callback looks at of a trainer, over epochs of 5 batches."""

    def __init__(self, **options):
        strategy = SimpleNamespace(checkpoint_io=None, broadcast=lambda told: told)
        fields = {"max_epochs": 3, "max_steps": -1, "world_size": 1, "accumulate_grad_batches": 1, "should_stop": False}
        super().__init__(global_step=0, current_epoch=0, strategy=strategy, saved=[], **fields | options)

    def save_checkpoint(self, path):
        self.saved.append(self.global_step)

    def fit(self, callback, each_batch=lambda: None):
        callback.on_train_start(self, None)
        for epoch in range(self.max_epochs):
            self.current_epoch = epoch
            for batch in range(5):
                self.is_last_batch = batch == 4
                self.global_step += self.is_last_batch or (batch + 1) % self.accumulate_grad_batches == 0
                each_batch()
                callback.on_train_batch_end(self, None, None, None, batch)
            callback.on_train_epoch_end(self, None)
        return self.saved


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(writer, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


@pytest.mark.parametrize(
    ("every", "saved"),
    [
        (None, [15]),  # at the end alone
        (4, [4, 8, 12, 15]),
        (5, [5, 10, 15]),  # at the end of an epoch
        (1, list(range(1, 16))),
        (7, [7, 14, 15]),
    ],
)
def test_saved_every_n_steps(every, saved):
    assert Trainer().fit(ResumeCheckpoint("last.ckpt", math.inf, every)) == saved


def test_saved_by_time(clock):
    callback = ResumeCheckpoint("last.ckpt", 30.0)
    clock.seconds = 100.0  # for what comes before the training

    def later():
        clock.seconds += 10.0

    assert Trainer().fit(callback, later) == [3, 6, 9, 12, 15]
    assert Trainer(max_epochs=1).fit(ResumeCheckpoint("last.ckpt", 0.0), later) == [1, 2, 3, 4, 5]


def test_not_saved_with_half_a_step_accumulated():
    assert Trainer(accumulate_grad_batches=2, max_epochs=2).fit(ResumeCheckpoint("", math.inf, 1)) == [1, 2, 3, 4, 5, 6]
    seen = []
    callback = ResumeCheckpoint("", 0.0)
    trainer = Trainer(accumulate_grad_batches=2)
    trainer.save_checkpoint = lambda path: seen.append(batch)
    trainer.is_last_batch = False
    for batch in range(6):
        callback.on_train_batch_end(trainer, None, None, None, batch)
    assert seen == [1, 3, 5]


def test_when_it_was_saved_goes_on_with_the_run():
    callback = ResumeCheckpoint("last.ckpt", math.inf, 4)
    trainer = Trainer()
    trainer.global_step = 6
    callback._save(trainer)
    again = ResumeCheckpoint("last.ckpt", math.inf, 4)
    again.load_state_dict(callback.state_dict())
    trainer.global_step = 9
    assert not again._is_due(trainer)
    trainer.global_step = 10
    assert again._is_due(trainer)


def test_several_processes_save_together_or_not_at_all(clock):
    asked = []
    trainer = Trainer(world_size=2, is_last_batch=False)
    callback = ResumeCheckpoint("last.ckpt", 30.0)
    for answer in (True, False):
        trainer.strategy.broadcast = lambda late, answer=answer: asked.append(late) or answer
        for clock.seconds, trainer.global_step, trainer.is_last_batch in ((99, 49, 0), (99, 50, 0), (9, 51, 1)):
            before = len(asked)
            assert callback._is_due(trainer) == (answer and trainer.global_step != 49)
            assert asked[before:] == {49: [], 50: [True], 51: [False]}[trainer.global_step]


@pytest.mark.parametrize("end", ["on_train_end", "on_exception"])
def test_what_waits_is_on_disk_when_training_ends(tmp_path, end):
    io, trainer = BackgroundCheckpointIO(), Trainer()
    trainer.strategy.checkpoint_io = io
    io.save_checkpoint({"step": 1}, tmp_path / "best.ckpt")
    arguments = [trainer, None] + [KeyboardInterrupt()] * (end == "on_exception")
    getattr(ResumeCheckpoint(tmp_path / "last.ckpt"), end)(*arguments)
    assert load_checkpoint(tmp_path / "best.ckpt")["step"] == 1


def test_impossible_times_are_named():
    with pytest.raises(ValueError, match="save_every_n_steps must be at least 1 or null, got 0"):
        ResumeCheckpoint("last.ckpt", every_n_steps=0)
    for seconds in (-1.0, math.nan):
        with pytest.raises(ValueError, match="save_every_seconds must not be negative"):
            ResumeCheckpoint("last.ckpt", seconds)


@pytest.mark.parametrize(
    ("state", "last"),
    [
        ({"current_epoch": 1}, False),
        ({"current_epoch": 2}, True),
        ({"current_epoch": 0, "should_stop": True}, True),
        ({"current_epoch": 7, "max_epochs": -1}, False),
        ({"current_epoch": 7, "max_epochs": None, "max_steps": 9, "global_step": 8}, False),
        ({"current_epoch": 7, "max_epochs": -1, "max_steps": 9, "global_step": 9}, True),
        ({"current_epoch": 0, "max_steps": 9, "global_step": 9}, True),
    ],
    ids=str,
)
def test_the_last_epoch(state, last):
    trainer = Trainer(**{key: value for key, value in state.items() if key not in ("current_epoch", "global_step")})
    trainer.current_epoch, trainer.global_step = state["current_epoch"], state.get("global_step", 0)
    assert ends(trainer) == last
