"""Averaged weights, and what the progress bar and the writer of predictions show."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn

from ckdsnn import callbacks
from ckdsnn.callbacks import PredictionWriter, ProgressBar, WeightEMA


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def to_step(self, number):
        with torch.no_grad():
            self.weight.fill_(number)
            self.mean.fill_(10.0 * number)
            self.batches.fill_(number)


def averaged(callback, module, numbers, start=0):
    """The values after steps in which the weights were `numbers`."""
    seen = []
    for step, number in enumerate(numbers, start + 1):
        module.to_step(number)
        callback.on_train_batch_end(SimpleNamespace(global_step=step), module, None, None, 0)
        average = callback._average_model.module
        seen.append((average.weight[0].item(), average.mean[1].item(), average.batches.item()))
    return seen


def begun(decay=0.75, **options):
    module, callback = Module(), WeightEMA(decay=decay, **options)
    callback.setup(SimpleNamespace(), module, "fit")
    return module, callback


def test_the_average_starts_with_the_first_weights_and_decays():
    module, callback = begun()
    assert averaged(callback, module, (8, 12, 4)) == [(8.0, 80.0, 8), (9.0, 90.0, 12), (7.75, 77.5, 4)]
    assert callback._average_model.n_averaged == 3
    assert module.weight[0] == 4  # what trains is left alone


def test_buffers_are_the_latest_where_they_are_not_averaged():
    module, callback = begun(use_buffers=False)
    assert averaged(callback, module, (8, 12)) == [(8.0, 80.0, 8), (9.0, 120.0, 12)]


@pytest.mark.parametrize("lightnings", [False, True])
def test_a_run_goes_on_with_the_average_that_it_had(lightnings):
    module, callback = begun()
    expected = averaged(callback, module, (8, 12, 4, 20))[2:]
    module, callback = begun()
    averaged(callback, module, (8, 12))
    checkpoint, state = {"state_dict": module.state_dict()}, callback.state_dict()
    callback.on_save_checkpoint(SimpleNamespace(), module, checkpoint)
    if lightnings:  # its own callback writes no such key
        assert state.pop("begun") is True
    module, again = begun()
    again.load_state_dict(state)
    again.on_load_checkpoint(SimpleNamespace(), module, checkpoint)
    assert averaged(again, module, (4, 20), start=2) == expected
    fresh = WeightEMA()
    fresh.load_state_dict({"latest_update_step": 0})
    assert fresh.state_dict()["begun"] is False


@pytest.mark.parametrize("decay", [-0.1, 1, 1.5])
def test_impossible_decays_are_named(decay):
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got"):
        WeightEMA(decay)


def trainer(**options):
    fields = {
        "world_size": 2,
        "current_epoch": 1,
        "max_epochs": 4,
        "check_val_every_n_epoch": 2,
        "is_global_zero": True,
        "callback_metrics": {"train/loss": torch.tensor(0.25), "val/accuracy": torch.tensor(0.5), "lr": 1},
    }
    return SimpleNamespace(**fields | options)


@pytest.fixture
def bar(monkeypatch):
    """The bar without Lightning's part, and a clock that goes a second at every look."""
    ticks = iter(range(1000))
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    base = callbacks.TQDMProgressBar
    monkeypatch.setattr(base, "get_metrics", lambda *_: {"v_num": 3})
    for name in ("on_train_start", "on_train_epoch_start", "on_train_batch_end", "on_train_epoch_end"):
        monkeypatch.setattr(base, name, lambda *_: None)
    return ProgressBar()


def batch(size):
    return SimpleNamespace(indices=torch.zeros(size))


def test_images_a_second_are_those_of_all_processes(bar):
    run, module = trainer(), SimpleNamespace(telemetry=SimpleNamespace(latest={"loss": 0.12345}))
    bar.on_train_start(run)
    bar.on_train_epoch_start(run)
    assert bar.get_metrics(run, module) == {"loss": "0.123"}
    for size in (5, 5, 20):
        bar.on_train_batch_end(run, module, None, batch(size), 0)
    assert bar.get_metrics(run, module) == {"loss": "0.123", "images/s": "20"}  # 2 * 30 in 3 seconds
    for _ in range(ProgressBar.WINDOW + 1):
        bar.on_train_batch_end(run, module, None, batch(7), 0)
    assert bar.get_metrics(run, None)["images/s"] == "14"  # of the latest batches alone


def test_a_line_an_epoch_tells_what_was_measured_in_it(bar, capsys):
    for epoch, shown in ((1, "loss 0.25  val/accuracy 0.5"), (2, "loss 0.25")):
        bar.on_train_epoch_start(trainer())
        bar.on_train_batch_end(trainer(), None, None, batch(3), 0)
        bar.on_train_epoch_end(trainer(current_epoch=epoch), None)
        assert capsys.readouterr().out == f"epoch {epoch + 1}/4  {shown}  images/s 6\n"
    bar.on_train_epoch_end(trainer(is_global_zero=False), None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("processes", "name"), [(1, "predictions.csv"), (2, "predictions-1.csv")])
def test_every_process_writes_its_own_predictions(tmp_path, processes, name):
    rows = [
        {"index": torch.tensor([4, 2]), "confidence": torch.tensor([0.5, 0.25])},
        {"index": torch.tensor([7]), "confidence": torch.tensor([1.0])},
    ]
    run = SimpleNamespace(world_size=processes, global_rank=1)
    PredictionWriter(tmp_path / "new" / "predictions.csv").write_on_epoch_end(run, None, rows, None)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]
    with (tmp_path / "new" / name).open() as file:
        assert list(csv.reader(file)) == [["index", "confidence"], ["4", "0.5"], ["2", "0.25"], ["7", "1.0"]]
