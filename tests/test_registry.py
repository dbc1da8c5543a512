"""Options of methods and networks: typed, documented, told by --help; names of one's own, from one's own module."""

from __future__ import annotations

import dataclasses
import re
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pytest
import yaml

from ckdsnn import cli
from ckdsnn.checkpoint import load_checkpoint
from ckdsnn.configuration import MethodConfig, ModelConfig, TeacherConfig
from ckdsnn.data import DATA, DataModule, DigitsCanvas
from ckdsnn.losses import METHODS, NLDOptions, SAMDOptions, build_method, register_method
from ckdsnn.losses.methods.base import Method
from ckdsnn.losses.methods.ckd import CKD, SAMD
from ckdsnn.models import MODELS, ModelOptions, build_model
from ckdsnn.models.snn_resnet import SNNResNet19, SNNResNetSmall
from ckdsnn.option_types import NotEmpty, Share, Within
from ckdsnn.registry import Options, Registry
from ckdsnn.resume import changed_network, changed_run
from ckdsnn.train import Distillation

NAMED = [(registry, name) for registry in (METHODS, MODELS) for name in sorted(registry)]


@pytest.mark.parametrize(("registry", "name"), NAMED, ids=lambda x: x if isinstance(x, str) else x.kind)
def test_every_option_is_typed_and_described(registry, name):
    kind = registry.options_class(registry[name])
    assert kind.__dataclass_params__.frozen
    listed = kind.listed()
    for option in listed:
        assert option.description, option.name
        assert option.type
        assert option.default
    required = {o.name: {"whole number >= 1": 8}.get(o.type, "a") for o in listed if o.default == "required"}
    required |= {o.name: ["a"] for o in listed if o.default == "required" and o.type.startswith("list")}
    defaults = {o.name: yaml.safe_load(o.default) for o in listed if "." not in o.name and "(...)" not in o.default}
    assert kind.of(defaults | required) == kind.of(required)  # what is told as the default is it


@dataclass(frozen=True)
class Everything(Options):
    """Attributes of all types.

    Attributes:
        share: of something.
    """

    flag: bool = False
    count: Annotated[int, Within(low=1)] = 1
    share: Share | None = 0.5
    kind: Literal["plain", "fancy"] = "plain"
    sizes: Annotated[tuple[int, ...], NotEmpty()] = (1,)
    text: str | None = None
    either: DataModule | Literal["none"] = "none"


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"flag": 1}, TypeError, "flag must be True or False, got 1"),
        ({"count": 1.5}, TypeError, "count must be a whole number, got 1.5"),
        ({"count": True}, TypeError, "count must be a whole number, got True"),
        ({"count": 0}, ValueError, "count must be >= 1, got 0"),
        ({"share": "1"}, TypeError, "share must be a number, got '1'"),
        ({"share": 1.5}, ValueError, "share must be in [0, 1], got 1.5"),
        ({"share": float("nan")}, ValueError, "share must be in [0, 1], got nan"),
        ({"kind": "fanzy"}, ValueError, "kind must be one of plain, fancy, got 'fanzy'; did you mean 'fancy'?"),
        ({"kind": None}, TypeError, "kind must be one of plain, fancy, got None"),
        ({"sizes": []}, ValueError, "sizes must have at least one value, got none"),
        ({"sizes": "12"}, TypeError, "sizes must be a list, got '12'"),
        ({"sizes": [1, "2"]}, TypeError, "each of sizes must be a whole number, got '2'"),
        ({"text": 3}, TypeError, "text must be a name, got 3"),
        ({"either": 3}, TypeError, "either must be a DataModule or one of none, got 3"),
        ({"shares": 1}, TypeError, "thing has no option 'shares'; did you mean 'share'?"),
        ({3: 1}, TypeError, "thing has no option 3; known: "),
    ],
    ids=str,
)
def test_values_that_do_not_fit(values, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        Everything.of(values, "thing")


def test_values_that_fit():
    made = Everything.of({"count": np.int64(3), "share": None, "sizes": [1, 2], "text": "x", "either": "none"})
    assert made == Everything(count=3, share=None, sizes=(1, 2), text="x")
    assert Everything.of({"sizes": 4}).sizes == (4,)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.count = 4
    with pytest.raises(TypeError, match="model 'external' needs source, layers, image_size"):
        MODELS.options("external", {})


# --- presets


def test_what_is_said_replaces_what_the_preset_says():
    paper = SAMDOptions(normalisation="none")
    assert CKD.Options.of({"preset": "paper"}) == CKD.Options(preset="paper", samd=paper, nld=NLDOptions())
    said = CKD.Options.of({"preset": "paper", "samd": {"stages": [1, 2]}, "nld": None, "beta": 2})
    assert said.samd == dataclasses.replace(paper, stages=(1, 2))
    assert (said.beta, said.nld) == (2, NLDOptions())
    beside = SAMD.Options.of({"preset": "paper", "stages": 2, "weight": 3.0})
    assert beside == SAMD.Options(preset="paper", weight=3.0, samd=dataclasses.replace(paper, stages=(2,)))
    term = SAMDOptions(stages=(1,))
    assert SAMD.Options.of({"samd": term, "scaling": "l2"}).samd == dataclasses.replace(term, scaling="l2")
    assert build_method("samd", preset="released-code", reduction=None).options.samd.reduction is None
    with pytest.raises(TypeError, match=r"method 'ckd': samd has no option 'stage'; did you mean 'stages'\?"):
        build_method("ckd", samd={"stage": 1})


def test_options_as_dataclasses():
    """As a type checker sees them, in the place of plain values."""
    typed = MethodConfig("ckd", CKD.Options(beta=2.0, samd=SAMDOptions(stages=(1,))))
    plain = MethodConfig("ckd", {"beta": 2.0, "samd": {"stages": [1]}})
    assert typed.build().options == plain.build().options
    assert plain.build(seed=5).options.seed == 5
    assert MethodConfig("ckd", {"seed": 3}).build(seed=5).options.seed == 3
    network = ModelConfig("snn_resnet_small", SNNResNetSmall(widths=(2, 3), blocks=(1, 1)))
    assert network.build(10, 1, plain.build()).stage_channels == (2, 3)
    with pytest.raises(TypeError, match=r"options must be KD\.Options, got CKD\.Options"):
        METHODS["kd"](CKD.Options())
    with pytest.raises(TypeError, match=r"network\.options: the options of model 'snn_resnet19' must be SNNResNet19"):
        ModelConfig("snn_resnet19", SNNResNetSmall())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: MethodConfig("kd", {"taa": 1}),
            "method.options: method 'kd' has no option 'taa'; did you mean 'tau'?",
        ),
        (lambda: MethodConfig("kd", {"tau": "hot"}), "method.options: tau must be a number, got 'hot'"),
        (lambda: MethodConfig("kdd"), "unknown method 'kdd'; did you mean 'kd'?"),
        (lambda: ModelConfig("snn_resnet19", {"width": -1}), "network.options: width must be > 0, got -1"),
        (lambda: TeacherConfig("ann_resnet19", {"widht": 1}), "teacher.options: model 'ann_resnet19' has no option"),
    ],
)
def test_a_configuration_is_checked_when_it_is_made(make, message):
    with pytest.raises((TypeError, ValueError), match="^" + re.escape(message)):
        make()


def test_a_default_of_a_preset_written_out_is_the_same_run():
    def run(**options):
        return {"method": {"name": "ckd", "options": options}}

    short, long = (
        run(preset="paper", samd={"stages": [1]}),
        run(preset="paper", samd={"stages": 1, "normalisation": "none"}),
    )
    assert changed_run(short, long, Distillation) == []
    assert changed_run(short, run(preset="paper"), Distillation) == ["method.options.samd.stages: [1] -> [-1]"]


# --- names


def test_what_cannot_be_registered():
    with pytest.raises(ValueError, match="a method named 'kd' is registered already"):
        register_method("kd")(type("Again", (Method,), {"Options": METHODS["kd"].Options}))
    with pytest.raises(ValueError, match="a model named 'a:b' has a colon"):
        MODELS.register("a:b")(SNNResNet19)
    with pytest.raises(TypeError, match="model 'f' must be a subclass of ModelOptions, got <function"):
        MODELS.register("f")(lambda num_classes: None)
    with pytest.raises(TypeError, match=r"Undecorated must be decorated with @dataclass\(frozen=True\)"):

        @MODELS.register("undecorated")
        class Undecorated(ModelOptions):
            width: int = 1

    assert "undecorated" not in MODELS
    assert DATA["DigitsCanvas"] is DigitsCanvas


MINE = '''
"""A method and a network of somebody's own."""
from dataclasses import dataclass
from ckdsnn.losses import Method, register_method
from ckdsnn.models import ModelOptions, build_model, register_model

@register_method("louder_ce")
class LouderCE(Method):
    """Cross-entropy, times a factor."""
    needs_teacher = False

    @dataclass(frozen=True)
    class Options(Method.Options):
        """
        Attributes:
            factor: how much louder.
        """
        factor: float = 2.0

    options: Options

    def cross_entropy(self, student, target):
        return self.options.factor * super().cross_entropy(student, target)

@register_model("narrow")
@dataclass(frozen=True)
class Narrow(ModelOptions):
    """The small network, narrow.

    Attributes:
        width: of all stages.
    """
    width: int = 3

    def build(self, num_classes, in_channels):
        return build_model("snn_resnet_small", num_classes, in_channels, widths=[self.width] * 2, blocks=[1, 1])
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "of_mine"
    sys.modules.pop("of_mine", None)
    METHODS.pop("louder_ce", None)
    MODELS.pop("narrow", None)


def test_a_module_that_is_named_is_imported(mine, tmp_path):
    assert "louder_ce" not in METHODS
    with pytest.raises(ValueError, match=r"unknown method 'of_mine:loud_ce'; did you mean 'louder_ce'\?"):
        METHODS.find(f"{mine}:loud_ce")
    assert MethodConfig(f"{mine}:louder_ce", {"factor": 3}).build().options.factor == 3
    assert build_model(f"{mine}:narrow", 10, 1, width=5).stage_channels == (5, 5)
    for name, why in (("no_such_module:x", "No module named 'no_such_module'"), (":x", "Empty module name")):
        with pytest.raises(ValueError, match=f"method '{name}': .* cannot be imported: {why}; .*PYTHONPATH"):
            METHODS.find(name)
    (tmp_path / "needs_more.py").write_text("import no_such_module\n")
    with pytest.raises(ValueError, match="'needs_more' cannot be imported: No module named 'no_such_module'"):
        METHODS.find("needs_more:x")


def test_a_checkpoint_imports_nothing(mine):
    written = {"name": f"{mine}:narrow", "options": {}, "num_classes": 10, "in_channels": 1}
    assert changed_network(written, {**written, "name": "snn_resnet19"}) == ["name: 'of_mine:narrow' -> 'snn_resnet19'"]
    assert MODELS.get(f"{mine}:narrow") is None
    assert mine not in sys.modules


def test_the_command_line_trains_with_ones_own(mine, tmp_path, capsys):
    """Trains, goes on, tests, and looks at the run from its folder alone."""
    out = tmp_path / "run"
    names = ["--model.method.name", f"{mine}:louder_ce", "--model.network.name", f"{mine}:narrow"]
    options = ["--model.method.options.factor", "4", "--model.network.options.width", "2"]
    small = ["--data.train_samples", "60", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
    command = ["--config", "digits", "--out", str(out), *names, *options, *small]
    assert cli.main(["fit", *command]) == 0, capsys.readouterr().err
    saved = yaml.safe_load((out / "config.yaml").read_text())["model"]
    assert saved["method"] == {"name": "of_mine:louder_ce", "options": {"factor": 4}}
    made = load_checkpoint(out / "last.ckpt")["ckdsnn"]
    assert made["network"]["name"] == "of_mine:narrow"
    assert made["config"]["method"] == saved["method"]

    del sys.modules[mine], METHODS["louder_ce"], MODELS["narrow"]  # as in another process
    assert cli.main(["fit", *command]) == 0
    assert "is finished" in capsys.readouterr().out
    assert cli.main(["test", "--config", str(out / "config.yaml"), "--out", str(out)]) == 0
    assert (out / "test.json").exists()


# --- help


def shown(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_lists_all_options(capsys):
    text = " ".join(shown(capsys, "fit", "--help").split())
    for said in (
        "kd tau: number > 0 = 4.0, weight: number >= 0 = 1.0, label_smoothing: number in [0, 1] = 0.0",
        "samd.normalisation: none | minmax | zscore | minmax_batch = minmax",
        "ann_resnet19 width: number > 0 = 1.0",
        "external source: name = required",
    ):
        assert said in text
    for registry in (METHODS, MODELS):
        assert all(f" {name} " in text for name in registry)


def test_help_of_one(capsys, mine):
    text = shown(capsys, "distill", "--model.method.help", "bkdsnn")
    assert "  drop: number in [0, 1) (default: 0.15)\n        probability that a channel is masked." in text
    assert "(ECCV 2024)" in text
    text = shown(capsys, "fit", f"--model.network.help={mine}:narrow")
    assert "  width: whole number (default: 3)\n        of all stages." in text
    with pytest.raises(SystemExit) as stopped:
        cli.main(["fit", "--model.network.help", "narow"])
    assert stopped.value.code == 2
    assert "unknown model 'narow'; did you mean 'narrow'?" in capsys.readouterr().err


def test_an_unknown_data_set_is_told_the_nearest(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", "digits", "--data", "CIFR"])
    assert "unknown data set 'CIFR'; did you mean 'CIFAR'? known: CIFAR, DVSFrames" in capsys.readouterr().err


def test_a_registry_of_ones_own():
    registry = Registry("thing", object)
    thing = registry.register("one")(type("One", (), {}))
    assert registry.find("one") is thing
    with pytest.raises(TypeError, match="the thing must be a name, got 1"):
        registry.find(1)
