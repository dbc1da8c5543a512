"""Where a teacher comes from: what its checkpoint may decide, and what the configuration must."""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from ckdsnn.checkpoint import RunError, load_checkpoint, save_atomically
from ckdsnn.configuration import MethodConfig, ModelConfig, TeacherConfig
from ckdsnn.data import DigitsCanvas
from ckdsnn.losses import FrozenTeacher, build_method
from ckdsnn.models import MODELS, ModelOptions, build_model, external, register_model
from ckdsnn.teacher import load_teacher
from ckdsnn.train import Distillation

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
    @register_model("mine")
    @dataclass(frozen=True)
    class Mine(ModelOptions):
        run: str = ""

        def build(self, num_classes, in_channels):
            pytest.fail("called by a checkpoint")

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


@pytest.fixture
def little_memory():
    """No more than a GiB on top of what the process has."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": [2, 3, 2**27]}, "do not fit ann_resnet_small with options"),
        ({"widths": [2, 3, 2**36]}, "which cannot be built: "),  # more than numbers of 64 bits can count
        ({"widths": "x"}, "which cannot be built: "),
        ({"widths": []}, "which cannot be built: "),
        ({"depth": 3}, "which cannot be built: .* has no option 'depth'"),
    ],
)
def test_a_checkpoint_cannot_ask_for_more_memory_than_its_weights(path, little_memory, options, message):
    made = {"name": "ann_resnet_small", "options": options, "num_classes": 10, "in_channels": 1}
    save_atomically(checkpoint(network=made), path)
    with pytest.raises(RunError, match=message):
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
    with pytest.raises(RunError, match=r"teacher's classifier\.bias has NaN or infinite values"):
        load(path)


def test_a_teacher_from_the_middle_of_a_training_has_to_be_asked_for(path):
    save_atomically(checkpoint(finished=False) | {"global_step": 4}, path)
    with pytest.raises(RunError, match=r"of an unfinished training \(step 4\).*teacher\.unfinished true"):
        load(path)
    wanted = load_checkpoint(path)["state_dict"]
    taken = load(path, unfinished=True).state_dict()
    assert all(torch.equal(value, wanted[f"network.{key}"]) for key, value in taken.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": 3}, "the model must be a name, got 3"),
        ({"checkpoint": Path("x")}, r"teacher\.checkpoint must be str, got PosixPath"),
        ({"epochs": True}, r"teacher\.epochs must be int, got bool True"),
        ({"epochs": 2.5}, r"teacher\.epochs must be int, got float 2\.5"),
        ({"cache": "no"}, r"teacher\.cache must be bool, got str 'no'"),
        ({"unfinished": 1}, r"teacher\.unfinished must be bool, got int 1"),
        (
            {"name": "ann_resnet_small", "options": ["widths"]},
            r"teacher\.options: .*ANNResNetSmall, or a mapping of names to values, got \['widths'\]",
        ),
        (
            {"name": "ann_resnet_small", "options": {"widths": "wide"}},
            r"teacher\.options: widths must be a list, got 'wide'",
        ),
    ],
)
def test_wrong_types_in_the_configuration_are_named(options, message):
    with pytest.raises(TypeError, match=message):
        TeacherConfig(**options)


class Hub:
    """A library of networks like timm: it drops the head of its pretraining where another number of classes is asked
    for, and `zero` leaves the new one at 0, as some of its networks do."""

    def create_model(self, name, num_classes, in_chans, pretrained=False, zero=False):
        model = nn.Sequential(
            nn.Conv2d(in_chans, 4, 3),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, num_classes),
        )
        if pretrained:
            trained = {
                key: torch.linspace(-1, 1, value.numel()).view_as(value) for key, value in model.state_dict().items()
            }
            if num_classes != 7:
                trained = {key: value for key, value in trained.items() if not key.startswith("4.")}
            model.load_state_dict(trained, strict=False)
        if zero:
            nn.init.zeros_(model[4].weight)
            nn.init.zeros_(model[4].bias)
        return model


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(external, "_library", lambda name: Hub())

    def teacher(classes, weights=None, **options):
        given = {
            "source": "timm:tiny",
            "layers": ["1"],
            "image_size": 8,
            "model_options": {"pretrained": True, **options},
        }
        if weights is not None:
            given["weights"] = str(weights)
        return load_teacher(TeacherConfig("external", given), classes, 1)

    return teacher


def test_a_pretrained_teacher_with_a_random_head_is_refused(hub, tmp_path):
    assert torch.equal(hub(7).model[4].bias, torch.linspace(-1, 1, 7))
    with pytest.raises(
        ValueError, match=r"timm:tiny brings no trained 4\.weight, 4\.bias: .*10 classes.*`ckdsnn teacher`"
    ):
        hub(10)
    with pytest.raises(ValueError, match=r"brings no trained 4\.weight"):
        hub(10, zero=True)
    torch.save(Hub().create_model("tiny", 10, 1).state_dict(), tmp_path / "tuned.pt")
    hub(10, weights=tmp_path / "tuned.pt")


def test_making_an_external_teacher_twice_draws_from_the_generator_as_making_it_once(hub):
    """Whether there is something to compare must not change what is drawn next."""
    torch.manual_seed(0)
    hub(7)
    once = torch.rand(1)
    torch.manual_seed(0)
    build_model("external", 7, source="timm:tiny", layers=["1"], image_size=8, in_channels=1)
    assert torch.equal(torch.rand(1), once)


def test_a_training_step_shows_the_teacher_what_the_student_sees(path):
    """In the same order, with its labels: an answer that belongs to another image teaches noise."""
    network = ModelConfig("snn_resnet_small", {**SMALL, "time_steps": 1})
    task = Distillation(network, MethodConfig("ckd"), TeacherConfig(checkpoint=str(path)), in_channels=1)
    saved = load_checkpoint(path)["state_dict"]
    unfolded = build_model("ann_resnet_small", 10, **SMALL)
    unfolded.load_state_dict({key.removeprefix("network."): value for key, value in saved.items()})
    images = torch.rand(5, 1, 20, 20)
    torch.testing.assert_close(task.teacher.model(images).logits, unfolded.eval()(images).logits)
    seen, answers = [], []
    task.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    task.teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    task.method.register_forward_pre_hook(lambda _, inputs: answers.append(inputs))
    L.Trainer(
        accelerator="cpu", devices=1, max_steps=2, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(task, DigitsCanvas(batch_size=20, train_samples=60))  # fmt: skip
    assert len(answers) == 2
    for (images, target), student_images, (_, teacher, labels) in zip(seen[::2], seen[1::2], answers, strict=True):
        assert torch.equal(images, student_images)
        assert torch.equal(target, labels)
        for row in (0, 1, 19):
            alone = task.teacher(images[row : row + 1], target[row : row + 1])
            torch.testing.assert_close(teacher.logits[row], alone.logits[0])
            torch.testing.assert_close(teacher.cams[-1][row], alone.cams[-1][0])


@pytest.mark.parametrize(
    ("model", "method", "message"),
    [
        (
            lambda: build_model("snn_resnet_small", 10),
            "kd",
            "a conventional network, got SNNResNet, a spiking one",
        ),
        (lambda: nn.Linear(3, 3), "kd", r"takes an ANN, got Linear: wrap it in ckdsnn\.models\.external\.HookedANN"),
        (lambda: None, "kd", "takes an ANN, got NoneType"),
        (lambda: build_model("ann_resnet_small", 10), None, "takes a Method, see build_method, got NoneType"),
    ],
)
def test_what_cannot_be_a_teacher_is_named(model, method, message):
    with pytest.raises(TypeError, match=message):
        FrozenTeacher(model(), method and build_method(method))


@pytest.mark.parametrize(
    ("images", "target", "error", "message"),
    [
        (None, torch.tensor([1]), TypeError, "images must be a tensor of floats, got NoneType"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.tensor([1]), TypeError, r"floats, got torch\.uint8"),
        (torch.zeros(1, 1, 8, 8), "1", TypeError, "target must be a torch.Tensor, got '1'"),
        (torch.zeros(1, 1, 8, 8), torch.tensor([1.0]), TypeError, r"int64, one class a sample, got torch\.float32"),
        (torch.zeros(1, 1, 8, 8), torch.tensor([-1]), ValueError, r"must hold classes from 0 to 9, got -1"),
        (torch.zeros(1, 1, 8, 8), torch.tensor([10]), ValueError, r"must hold classes from 0 to 9, got 10"),
        (
            torch.zeros(2, 1, 8, 8),
            torch.tensor([1]),
            ValueError,
            r"must be \[2\], one class a sample, got \[1\]",
        ),
    ],
)
def test_a_batch_that_a_teacher_cannot_answer_is_named(images, target, error, message):
    frozen = FrozenTeacher(build_model("ann_resnet_small", 10, **SMALL), build_method("ckd"))
    with pytest.raises(error, match=message):
        frozen(images, target)
