"""Weights to start from: read safely, checked, and the same wherever the file lies."""

import pytest
import torch
from torch import nn

from ckdsnn.checkpoint import RunError, save_atomically
from ckdsnn.configuration import MethodConfig, ModelConfig, TeacherConfig
from ckdsnn.resume import changed_run
from ckdsnn.train import Distillation
from ckdsnn.weights import fingerprint, start_from


def network():
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


@pytest.fixture
def saved(tmp_path):
    def save(content):
        torch.save(content, tmp_path / "weights.pt")
        return tmp_path / "weights.pt"

    return save


@pytest.mark.parametrize("layout", ["state_dict", "nested", "run"])
def test_every_value_is_taken(saved, layout):
    source = network()
    source[1].running_mean += 5
    state = source.state_dict()
    path = saved(
        {
            "state_dict": state,
            "nested": {"state_dict": state},
            "run": {
                "ckdsnn": {},
                "state_dict": {f"network.{k}": v for k, v in state.items()} | {"method.x": torch.ones(1)},
            },
        }[layout]
    )
    made = network()
    assert start_from(made, path) == fingerprint(state)
    for name, value in made.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("0.bias"), "1 missing: 0.bias"),
        (lambda state: state.update(x=torch.ones(1)), "1 unknown: x"),
        (lambda state: state.update({"0.bias": torch.ones(5)}), r"0.bias is \[5\], the network's \[2\]"),
        (lambda state: state.update({"0.bias": 3.0}), "0.bias is no tensor but float"),
        (lambda state: state["0.bias"].fill_(float("nan")), "NaN or infinite in 0.bias"),
    ],
)
def test_weights_that_do_not_fit(saved, change, words):
    state = network().state_dict()
    change(state)
    made = network()
    before = fingerprint(made.state_dict())
    with pytest.raises(RunError, match=words):
        start_from(made, saved(state))
    assert fingerprint(made.state_dict()) == before


def test_files_that_are_no_weights(tmp_path, saved):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.pt"):
        start_from(network(), tmp_path / "none.pt")
    with pytest.raises(RunError, match="cannot be read"):
        start_from(network(), saved({"0.weight": print}))  # would import builtins


def test_fingerprints_tell_weights_apart():
    state = network().state_dict()
    same = {name: state[name].clone() for name in reversed(state)}
    assert fingerprint(state) == fingerprint(same)
    for name, value in same.items():
        changed = same | {name: value.clone()}
        changed[name].view(-1)[0] += 1
        assert fingerprint(changed) != fingerprint(state), name
    assert fingerprint(same | {"0.bias": same["0.bias"].double()}) != fingerprint(state)
    assert fingerprint({"a": torch.ones(2)}) != fingerprint({"b": torch.ones(2)})
    assert fingerprint({"a": torch.ones(2)}) != fingerprint({"a": torch.ones(1, 2)})


SMALL = {"widths": [4, 6, 8], "time_steps": 1}


def test_a_student_starts_from_them(saved, tmp_path):
    """Its configuration knows what they are, not where."""
    source = Distillation(ModelConfig("snn_resnet_small", SMALL), in_channels=1)
    path = saved(source.network.state_dict())
    elsewhere = tmp_path / "elsewhere.pt"
    elsewhere.write_bytes(path.read_bytes())
    one, two = (Distillation(ModelConfig("snn_resnet_small", SMALL, str(p)), in_channels=1) for p in (path, elsewhere))
    assert one.run_config == two.run_config
    assert one.run_config["weights"] == fingerprint(source.network.state_dict())
    for name, value in one.network.state_dict().items():
        assert torch.equal(value, source.network.state_dict()[name]), name


def test_another_teacher_is_another_run(tmp_path):
    def student(name, folder, seed):
        torch.manual_seed(seed)
        teacher = Distillation(ModelConfig("ann_resnet_small", {"widths": [4, 6, 8]}), in_channels=1)
        path = tmp_path / folder / name
        run = {"network": teacher._network_config, "config": {}, "finished": True}
        save_atomically({"ckdsnn": run, "state_dict": teacher.state_dict()}, path)
        return Distillation(
            ModelConfig("snn_resnet_small", SMALL),
            MethodConfig("kd"),
            TeacherConfig(checkpoint=str(path)),
            in_channels=1,
        ).run_config["teacher"]

    here, moved, another = student("last.ckpt", "a", 0), student("last.ckpt", "b", 0), student("last.ckpt", "a", 1)
    assert here["weights"] == moved["weights"] != another["weights"]
    assert changed_run({"teacher": here}, {"teacher": moved}, Distillation) == []
    assert "teacher.weights" in changed_run({"teacher": here}, {"teacher": another}, Distillation)[0]
