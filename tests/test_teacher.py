"""Where a teacher comes from: what its checkpoint may decide, and what the configuration must."""

import sys

import pytest
import torch

from ckdsnn.checkpoint import RunError, load_checkpoint, save_atomically
from ckdsnn.configuration import TeacherConfig
from ckdsnn.models import MODELS, build_model, register_model
from ckdsnn.teacher import load_teacher

SMALL = {"widths": [2, 3, 4]}


def checkpoint(name="ann_resnet_small", options=SMALL, model=None, **made):
    """A finished run's, as far as a teacher needs it; `made` replaces what it says of itself."""
    torch.manual_seed(7)
    model = model if model is not None else build_model(name, 10, **options)
    network = {"name": name, "options": options, "num_classes": 10, "in_channels": 1}
    return {
        "ckdsnn": {"network": network, "config": {}, "finished": True, **made},
        "state_dict": {f"network.{key}": value for key, value in model.state_dict().items()},
    }


def load(path, classes=10, channels=1, **config):
    return load_teacher(TeacherConfig(checkpoint=str(path), **config), classes, channels)


@pytest.fixture
def path(tmp_path):
    save_atomically(checkpoint(), tmp_path / "teacher.ckpt")
    return tmp_path / "teacher.ckpt"


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that an attacker wants imported, and the list of what it was called with."""
    (tmp_path / "trap.py").write_text(
        "from torch import nn\n"
        "calls = ['imported']\n"
        "def build(**options):\n"
        "    calls.append(options)\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                         nn.Linear(4, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trap", raising=False)
    return {"source": "trap:build", "layers": ["1"], "image_size": 8, "model_options": {}}


@pytest.mark.parametrize("configured", [{}, {"name": "ann_resnet_small", "options": SMALL}])
def test_a_checkpoint_does_not_decide_what_is_imported(path, trap, configured):
    made = {"name": "external", "options": trap, "num_classes": 10, "in_channels": 1}
    save_atomically(checkpoint(network=made), path)
    with pytest.raises(ValueError, match=r"not this package's own.*set teacher\.name|the configuration asks for"):
        load(path, **configured)
    assert "trap" not in sys.modules


def test_a_checkpoint_does_not_add_to_the_options_of_the_configuration(path, trap):
    made = {"name": "external", "options": trap | {"model_options": {"x": 1}}, "num_classes": 10, "in_channels": 1}
    save_atomically(checkpoint(network=made), path)
    with pytest.raises(ValueError, match="the configuration asks for external"):
        load(path, name="external", options=trap)
    assert "trap" not in sys.modules


def test_an_external_teacher_that_the_configuration_names_is_loaded(path, trap):
    model = build_model("external", 10, in_channels=1, **trap)
    save_atomically(checkpoint("external", trap, model), path)
    teacher = load(path, name="external", options=trap)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in teacher.state_dict().items())


def test_a_network_that_somebody_registered_must_be_configured(path):
    register_model("mine")(lambda num_classes, in_channels, run: pytest.fail("called by a checkpoint"))
    try:
        made = {"name": "mine", "options": {"run": "rm"}, "num_classes": 10, "in_channels": 1}
        save_atomically(checkpoint(network=made), path)
        with pytest.raises(ValueError, match=r"'mine' with options \{'run': 'rm'\}, which is not this package's own"):
            load(path)
    finally:
        del MODELS["mine"]


@pytest.mark.parametrize("options", [{"widths": torch.tensor([2, 3, 4])}, {"widths": [2, torch.float32, 4]}])
def test_options_in_a_checkpoint_are_plain_data(path, options):
    made = {"name": "ann_resnet_small", "options": options, "num_classes": 10, "in_channels": 1}
    save_atomically(checkpoint(network=made), path)
    with pytest.raises(ValueError, match="options of ann_resnet_small that are no plain data"):
        load(path)


def test_a_checkpoint_cannot_ask_for_more_memory_than_its_weights(path):
    huge = {"widths": [2, 3, 200_000_000]}  # 10^17 weights
    save_atomically(
        checkpoint(network={"name": "ann_resnet_small", "options": huge, "num_classes": 10, "in_channels": 1}), path
    )
    with pytest.raises(RunError, match="do not fit ann_resnet_small with options"):
        load(path)


@pytest.mark.parametrize("configured", [{}, {"name": "ann_resnet_small", "options": SMALL}])
def test_the_weights_are_those_of_the_checkpoint(path, configured):
    wanted = load_checkpoint(path)["state_dict"]
    torch.manual_seed(8)
    loaded = load(path, **configured).state_dict()
    assert {f"network.{key}" for key in loaded} == set(wanted)
    assert all(torch.equal(value, wanted[f"network.{key}"]) for key, value in loaded.items())


@pytest.mark.parametrize("configured", [{}, {"name": "ann_resnet_small", "options": SMALL}])
@pytest.mark.parametrize("change", ["missing", "additional", "shape"])
def test_weights_that_do_not_fit_are_refused(path, configured, change):
    made = checkpoint()
    state, key = made["state_dict"], "network.stages.0.0.conv1.weight"
    if change == "additional":
        state["network.more"] = torch.zeros(1)
    elif change == "shape":
        state[key] = state[key][:, :1]
    else:
        del state[key]
    save_atomically(made, path)
    with pytest.raises(RunError, match=r"the weights in teacher\.checkpoint .* do not fit ann_resnet_small"):
        load(path, **configured)


def test_weights_that_are_not_finite_are_refused(path):
    made = checkpoint()
    made["state_dict"]["network.classifier.bias"][3] = float("nan")
    save_atomically(made, path)
    with pytest.raises(RunError, match=r"holds classifier\.bias with NaN or infinite values"):
        load(path)
