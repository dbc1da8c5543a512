"""Whether a run may go on: what must be the same, what may differ, and runs of earlier versions."""

import copy
import shutil
from pathlib import Path

import pytest
import torch

from ckdsnn import cli
from ckdsnn.checkpoint import SCHEMA, RunError, load_checkpoint, load_run, random_state, save_atomically
from ckdsnn.configuration import MethodConfig, ModelConfig, TeacherConfig, differing_keys
from ckdsnn.optimisation import OptimizerConfig
from ckdsnn.resume import changed_network, changed_run
from ckdsnn.teacher import load_teacher
from ckdsnn.train import Distillation

OLD = Path(__file__).parent / "fixtures" / "0.1.0"
SMALL = {"widths": [2, 2, 2]}


def write_teacher(path, seed, options=SMALL):
    torch.manual_seed(seed)
    task = Distillation(ModelConfig("ann_resnet_small", options), in_channels=1)
    made = {"schema": SCHEMA, "network": task.run_config["network"], "config": task.run_config, "finished": True}
    save_atomically({"ckdsnn": made, "state_dict": task.state_dict()}, path)
    return TeacherConfig(checkpoint=str(path))


def student(teacher):
    network = ModelConfig("snn_resnet_small", {**SMALL, "time_steps": 1})
    return Distillation(network, MethodConfig("kd"), teacher, OptimizerConfig(), in_channels=1)


def run_of(task):
    """What a run's checkpoint says of it."""
    made = {"schema": SCHEMA, "network": task.run_config["network"], "config": task.run_config, "finished": False}
    state = {"epoch": 0, "global_step": 3, "loops": {}, "optimizer_states": [], "lr_schedulers": [], "train_loader": {}}
    return copy.deepcopy({"ckdsnn": made, "random_state": [{"global": random_state(), "noise": []}], **state})


def test_another_teacher_is_refused_and_the_same_one_may_have_moved(tmp_path):
    task = student(write_teacher(tmp_path / "a.ckpt", seed=1))
    written = run_of(task)
    task.check_resumable(written, processes=1)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "a.ckpt", tmp_path / "elsewhere" / "b.ckpt")
    moved = str(tmp_path / "elsewhere" / "b.ckpt")
    student(TeacherConfig(checkpoint=moved)).check_resumable(written, processes=1)
    student(TeacherConfig("ann_resnet_small", SMALL, moved, epochs=7)).check_resumable(written, processes=1)
    another = write_teacher(tmp_path / "a.ckpt", seed=2)  # of the same name as the first
    with pytest.raises(RunError, match=r"started with another configuration.*Different: teacher\.weights: '\w{32}' ->"):
        student(another).check_resumable(written, processes=1)


@pytest.mark.parametrize("key", ["random_state", "train_loader", "optimizer_states", "loops", "global_step"])
def test_a_checkpoint_of_weights_alone_cannot_go_on(tmp_path, key):
    task = student(write_teacher(tmp_path / "a.ckpt", seed=1))
    written = run_of(task)
    del written[key]
    with pytest.raises(RunError, match=rf"has no usable {key}, so training cannot go on from it"):
        task.check_resumable(written, processes=1)


def test_another_use_of_the_same_teacher_is_refused(tmp_path):
    first = write_teacher(tmp_path / "a.ckpt", seed=1)
    written = run_of(student(first))
    cached = student(TeacherConfig(checkpoint=first.checkpoint, cache=True))
    with pytest.raises(RunError, match=r"Different: teacher\.cache: False -> True"):
        cached.check_resumable(written, processes=1)


TEACHER = {"name": "external", "options": {"layers": ["1"]}, "checkpoint": None, "epochs": 1, "cache": False}


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ({}, {}, []),
        ({}, {"weights": "b"}, ["teacher.weights: 'a' -> 'b'"]),
        ({}, {"checkpoint": "other", "epochs": 9, "unfinished": True}, []),
        ({}, {"options": {"layers": ["2"]}}, ["teacher.options.layers: ['1'] -> ['2']"]),
        ({}, {"options": {"layers": ["1"], "layout": "channels_first"}}, []),
        (
            {},
            {"options": {"layers": ["1"], "layout": "tokens"}},
            ["teacher.options.layout: 'channels_first' -> 'tokens'"],
        ),
        ({"name": None, "options": {}}, {"name": "ann_resnet20", "options": {"width": 0.5}}, []),
        ({"name": None, "options": {}}, {"name": "ann_resnet20", "weights": "b"}, ["teacher.weights: 'a' -> 'b'"]),
    ],
)
def test_what_tells_a_teacher(old, new, changed):
    pair = ({"teacher": {**TEACHER, "weights": "a", **changes}} for changes in (old, new))
    assert changed_run(*pair, Distillation) == changed


def test_a_run_of_0_1_0_tells_its_teacher_by_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = {"teacher": {"name": None, "options": {}, "checkpoint": "run/a.ckpt", "epochs": 1, "cache": False}}
    new = {"teacher": {**old["teacher"], "unfinished": False, "weights": "a"}}
    assert changed_run(old, new, Distillation) == []
    new["teacher"]["checkpoint"] = str(tmp_path / "run" / "a.ckpt")
    assert changed_run(old, new, Distillation) == []
    new["teacher"]["checkpoint"] = str(tmp_path / "run" / "b.ckpt")
    assert changed_run(old, new, Distillation) == [
        f"teacher.checkpoint: '{tmp_path}/run/a.ckpt' -> '{tmp_path}/run/b.ckpt'"
    ]


RUN = {
    "network": {"name": "ann_resnet_small", "options": {}, "num_classes": 10, "in_channels": 1},
    "method": {"name": "kd", "options": {}},
    "teacher": None,
    "optimizer": {"name": "sgd", "lr": 0.1},
    "data": {"class_path": "ckdsnn.data.DigitsCanvas", "init_args": {"batch_size": 30, "augmentation": {"shift": 1}}},
    "trainer": {"max_epochs": 2},
}


@pytest.mark.parametrize(
    ("place", "default", "another"),
    [
        (("optimizer", "nesterov"), False, True),
        (("network", "options", "blocks"), [1, 1, 1], [2, 1, 1]),
        (("method", "options", "label_smoothing"), 0.0, 0.1),
        (("data", "init_args", "views"), 1, 9),
        (("trainer", "overfit_batches"), 0.0, 3),
        (("trainer", "accumulate_grad_batches"), 1, 2),
        (("channels_last",), False, True),
        (("one_bit_spikes",), False, True),
        (("seed",), 0, 1),
    ],
)
@pytest.mark.parametrize("lacking", ["old", "new"])
def test_a_missing_key_means_its_default(place, default, another, lacking):
    def with_key(value):
        run = copy.deepcopy(RUN)
        inner = run
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        return run

    def changed(value):
        pair = (RUN, with_key(value)) if lacking == "old" else (with_key(value), RUN)
        return changed_run(*pair, Distillation)

    assert changed(default) == []
    arrow = f"{default!r} -> {another!r}" if lacking == "old" else f"{another!r} -> {default!r}"
    assert changed(another) == [f"{'.'.join(place)}: {arrow}"]


def test_differing_keys():
    old, new = {"a": 1, "b": {"c": [1, 2], "d": 0}}, {"a": 1, "b": {"c": [1, 3], "e": 5}}
    assert differing_keys(old, new) == ["b.c: [1, 2] -> [1, 3]", "b.d: 0 -> None", "b.e: None -> 5"]
    assert differing_keys(old, new, {"b": {"d": 0, "e": 4}}) == ["b.c: [1, 2] -> [1, 3]", "b.e: 4 -> 5"]


def test_a_network_with_a_default_written_out_is_the_same():
    old = {"name": "snn_resnet_small", "options": {"time_steps": 2}, "num_classes": 10, "in_channels": 1}
    assert changed_network(old, {**old, "options": {"time_steps": 2, "last_activation": "lif"}}) == []
    assert changed_network(old, {**old, "options": {"time_steps": 4}}) == ["options.time_steps: 2 -> 4"]
    assert changed_network(old, {**old, "options": {}}) == ["options.time_steps: 2 -> 4"]
    assert changed_network(old, {**old, "name": "snn_resnet19"}) == ["name: 'snn_resnet_small' -> 'snn_resnet19'"]


def test_a_run_of_0_1_0_goes_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "run" / "teacher").mkdir(parents=True)
    shutil.copy(OLD / "teacher.ckpt", tmp_path / "run" / "teacher" / "last.ckpt")
    shutil.copy(OLD / "student.ckpt", tmp_path / "run" / "last.ckpt")
    shutil.copy(OLD / "recipe.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    written = load_run(OLD / "student.ckpt")
    assert "schema" not in written["ckdsnn"]
    seen = []
    step = Distillation.training_step

    def spy(task, batch, batch_idx):
        if not seen:
            weights = {key: value.clone() for key, value in task.state_dict().items()}
            seen.append((task.global_step, weights, copy.deepcopy(task.optimizers().state_dict())))
        return step(task, batch, batch_idx)

    teachers = []

    def load(*arguments):
        model = load_teacher(*arguments)
        teachers.append({key: value.clone() for key, value in model.state_dict().items()})  # before it is folded
        return model

    monkeypatch.setattr(Distillation, "training_step", spy)
    monkeypatch.setattr("ckdsnn.train.load_teacher", load)
    assert cli.main(["fit", "--config", "recipe.yaml"]) == 0, capsys.readouterr().err
    assert "going on with run/last.ckpt" in capsys.readouterr().out
    (begun, weights, optimizer) = seen[0]
    assert begun == 2
    assert weights.keys() == written["state_dict"].keys()
    assert all(torch.equal(value, written["state_dict"][key]) for key, value in weights.items())
    momentum = written["optimizer_states"][0]["state"]
    assert momentum
    assert all(torch.equal(optimizer["state"][i]["momentum_buffer"], momentum[i]["momentum_buffer"]) for i in momentum)
    trained = load_run(OLD / "teacher.ckpt")["state_dict"]
    assert all(torch.equal(value, trained[f"network.{key}"]) for key, value in teachers[-1].items())
    done = load_checkpoint("run/last.ckpt")
    assert (done["global_step"], done["ckdsnn"]["finished"], done["ckdsnn"]["schema"]) == (4, True, SCHEMA)
