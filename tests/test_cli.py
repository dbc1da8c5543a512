"""The command line: unknown options, recipes, verbs."""

import contextlib
import csv
import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelSummary
from PIL import Image
from torch import nn

from ckdsnn import cli
from ckdsnn.checkpoint import load_checkpoint, save_atomically
from ckdsnn.cli import training
from ckdsnn.cli.recipes import RECIPES as RECIPE_FOLDER
from ckdsnn.models import external

RECIPES = sorted(RECIPE_FOLDER.glob("*.yaml"))


SMALL = ["--model.network.options", '{"widths": [4, 6, 8], "time_steps": 2}', "--data.train_samples", 60]
SMALL += ["--model.teacher.options", '{"widths": [4, 6, 8]}', "--model.teacher.epochs", 1, "--trainer.max_epochs", 2]


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture
def failing(capsys):
    def fail(*arguments):
        try:
            status = run(*arguments)
        except SystemExit as stopped:
            status = stopped.code
        shown = capsys.readouterr().err
        assert status in (1, 2), shown
        assert "Traceback" not in shown
        assert "usage:" not in shown
        return shown

    return fail


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["--model.optimizer.lrr", 0.1], "did you mean 'model.optimizer.lr'?"),
        (["--data.init_args.batchsize", 3], "did you mean 'batch_size'?"),
        (["--trainer.max_epoch", 3], "did you mean 'trainer.max_epochs'?"),
        (["--model.teacher.epoch", 3], "did you mean 'epochs'?"),
        (["--model.method.name", "kdd"], "did you mean 'kd'?"),
        (["--model.method.name", "new_method"], "or MODULE:NAME of your own"),
        (["--model.network.name", "snn_resnet_smal"], "did you mean 'snn_resnet_small'?"),
        (["--model.network.options", '{"time_step": 2}'], "did you mean 'time_steps'?"),
    ],
)
def test_unknown_options_suggest_the_nearest(failing, arguments, suggestion):
    assert suggestion in failing("fit", "--config", "digits", *arguments)


def test_an_option_of_another_data_set(failing):
    shown = failing("fit", "--config", "digits", "--data.root", "DATA")
    assert "unknown option 'root'; --data.help NAME lists" in shown
    assert "did you mean" not in shown


@pytest.mark.parametrize(
    ("name", "why"), [("nowhere.Data", "No module named 'nowhere'"), ("json.Data", "no attribute")]
)
def test_a_data_set_that_is_not_there(failing, name, why):
    shown = failing("fit", "--config", "digits", "--data", name)
    assert f"{name}: " in shown
    assert why in shown
    assert "set PYTHONPATH" in shown
    assert shown.count("\n") == 1


def test_without_a_recipe(failing):
    wanted = "required: --model.network.name, --data; give these, or a recipe: --config RECIPE"
    assert wanted in failing("fit")


def test_unknown_keys_in_a_file(failing, tmp_path):
    recipe = yaml.safe_load((RECIPES[0].parent / "digits.yaml").read_text())
    recipe["data"]["init_args"]["viewz"] = recipe["data"]["init_args"].pop("views")
    (tmp_path / "recipe.yaml").write_text(yaml.dump(recipe))
    assert "did you mean 'views'?" in failing("fit", "--config", tmp_path / "recipe.yaml")


def test_unknown_commands_and_recipes(failing):
    assert "did you mean 'test'?" in failing("tset")
    assert "did you mean 'cifar10_resnet19_t4'?" in failing("fit", "--config", "cifar10_resnet19_t5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.views", 0], "views must be at least 1, got 0"),
        (["--model.network.options", '{"time_steps": 0}'], "time_steps"),
        (["--model.network.options", "{}"], "teacher/last.ckpt: check the path, or train it first"),
        (["--model.optimizer.momentum", 0.9], "belong to sgd"),
        (["--seed_everything", -1], "seed_everything must lie in [0, 4294967295], got -1"),
        (["--seed_everything", 2**32], "got 4294967296"),
        (["--trainer.default_root_dir", "there"], "the folder of a run is --out"),
        (["--model.method", "{name: ce, options: {}}", "--trainer.plugins+=TorchCheckpointIO"], "multiple values for"),
        (["--model.method", "{name: ce, options: {}}", "--trainer.devices", 0], "trainer: `Trainer(devices='0')`"),
        # Not before the data is there:
        (["--model.method", "{name: ce, options: {}}", "--data.batch_size", 301], "lower batch_size to 300 or less"),
    ],
)
def test_impossible_values_are_named(failing, tmp_path, arguments, message):
    assert message in failing("fit", "--config", "digits", "--out", tmp_path, *arguments)


def test_an_error_from_elsewhere_keeps_its_traceback(monkeypatch):
    def broken(*arguments, **options):
        raise ValueError("not of a check of this package")

    monkeypatch.setattr(training, "CLI", broken)
    with pytest.raises(ValueError, match="not of a check"):
        run("fit")


def test_help_names_every_command(capsys):
    for arguments in ((), ("--help",)):
        assert run(*arguments) == 0
        shown = capsys.readouterr().out
        assert all(verb in shown for verb in cli.VERBS)
    assert run("--version") == 0
    assert f"torch {torch.__version__}" in capsys.readouterr().out


def test_no_option_leads_to_an_empty_page(capsys):
    with pytest.raises(SystemExit):
        run("fit", "--help")
    helps = set(re.findall(r"--(model\S*\.help)", capsys.readouterr().out))
    assert helps == {"model.network.help", "model.method.help", "model.teacher.help"}


@pytest.mark.parametrize("verb", ["test", "validate", "predict"])
def test_nothing_trained_yet(failing, verb, tmp_path):
    shown = failing(
        verb, "--config", "digits", "--out", tmp_path, "--model.method.name", "ce", "--model.method.options", "{}"
    )
    assert f"no checkpoint at {tmp_path / 'last.ckpt'}" in shown


def test_print_config_can_be_read_back(capsys, tmp_path):
    def printed(*arguments):
        with pytest.raises(SystemExit):
            run("fit", *arguments, "--print_config")
        return capsys.readouterr().out

    first = printed("--config", "digits", "--trainer.max_epochs", 7)
    assert yaml.safe_load(first)["trainer"]["max_epochs"] == 7
    (tmp_path / "config.yaml").write_text(first)
    assert printed("--config", tmp_path / "config.yaml") == first


def cifar(root, folder, names, label_key, classes):
    rng = np.random.default_rng(0)
    (root / folder).mkdir()
    for name in names:
        labels = list(range(classes)) * 2
        data = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        (root / folder / name).write_bytes(pickle.dumps({"data": data, label_key: labels}, protocol=2))


class FromTorchvision(nn.Module):
    """What the ImageNet recipe uses of torchvision's ResNet-34."""

    def __init__(self, num_classes):
        super().__init__()
        torch.manual_seed(0)  # what was trained is the same every time
        self.layer1, self.layer2, self.layer3 = (nn.Conv2d(3, 3, 1, stride=8 // 2**i) for i in range(3))
        self.layer4 = nn.Conv2d(3, 512, 1, stride=2)
        self.fc = nn.Linear(512, num_classes)

    def forward(self, images):
        return self.fc(self.layer4(self.layer3(self.layer2(self.layer1(images)))).mean((2, 3)))


@pytest.fixture
def data_root(tmp_path):
    """Two samples a class of every data set that the recipes name."""
    cifar(tmp_path, "cifar-10-batches-py", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], "labels", 10)
    cifar(tmp_path, "cifar-100-python", ["train", "test"], "fine_labels", 100)
    for number in range(10):
        for folder in (
            tmp_path / "frames" / f"class{number}",
            *(tmp_path / p / f"n{number}" for p in ("train", "val")),
        ):
            folder.mkdir(parents=True)
            for sample in range(2):
                if "frames" in folder.parts:
                    np.save(folder / f"{sample}.npy", np.ones((10, 2, 48, 48), np.uint8))
                else:
                    Image.new("RGB", (40, 30)).save(folder / f"{sample}.png")
    return tmp_path


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name.removesuffix(".yaml"))
def test_recipes_build_what_their_names_say(recipe, data_root, tmp_path, monkeypatch, capsys):
    """Everything but the training, with fewer channels where a model has that option."""
    built = []
    monkeypatch.setattr(training.CLI, "_run_subcommand", lambda self, _: built.append(self))
    get_model = types.SimpleNamespace(get_model=lambda name, num_classes, weights: FromTorchvision(num_classes))
    monkeypatch.setattr(external, "_library", lambda name: types.SimpleNamespace(models=get_model))
    name, content = recipe.name.removesuffix(".yaml"), yaml.safe_load(recipe.read_text())
    model, data = content["model"], content["data"]
    dense = name == "digits_dense"
    assert model["method"] == (
        {"name": "samd_dense", "options": {"background": 0}}
        if dense
        else {"name": "ckd", "options": {"preset": "default"}}
    )
    for part in (model["network"], model["teacher"]):
        if "resnet19" in part["name"] or "resnet20" in part["name"]:
            part.setdefault("options", {})["width"] = 0.125
    if not data["class_path"].startswith("ckdsnn.data.Digit"):
        data["init_args"] |= {"root": str(data_root / "frames" if "dvs" in name else data_root), "validation": 0}
    data["init_args"]["batch_size"] = 2
    content["trainer"] |= {"precision": "32-true", "accelerator": "cpu"}
    (tmp_path / "recipe.yaml").write_text(yaml.dump(content))
    options = ["--config", tmp_path / "recipe.yaml", "--out", tmp_path / "out"]
    if "train_samples" in data["init_args"]:
        options += ["--data.train_samples", 20]
    if model["teacher"]["name"] != "external":
        assert run("teacher", *options) == 0, capsys.readouterr().err
        teacher = built[-1].model
        assert teacher.network.num_stages == (4 if "dvs" in name else 3)
        assert built[-1].trainer.max_epochs == model["teacher"]["epochs"]
        made_by = {"network": teacher._network_config, "config": teacher.run_config, "finished": True}
        save_atomically(
            {"ckdsnn": made_by, "state_dict": teacher.state_dict()},
            tmp_path / "out" / "teacher" / "last.ckpt",
        )
    assert run("fit", *options) == 0, capsys.readouterr().err
    made = built[-1]
    assert made.model.network.num_classes == (100 if "cifar100" in name else 10 + dense)
    assert made.trainer.max_epochs == content["trainer"]["max_epochs"]
    if steps := re.search(r"_t(\d+)$", name):
        assert made.model.network.time_steps == int(steps[1])
    images = torch.zeros(10, 2, 2, 48, 48) if "dvs" in name else torch.zeros(2, made.datamodule.in_channels, 32, 32)
    target = torch.zeros(2, *([32, 32] if dense else []), dtype=torch.long)
    output = made.model(images)
    parts = made.model.method(output, made.model.teacher(images, target), target)
    assert list(parts) == (["ce", "samd"] if dense else ["ce", "samd", "nld"])


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "digits"
    command = ["--config", "digits", "--out", out, *SMALL]
    assert run("distill", *command) == 0
    return out, command


def test_distill_trains_teacher_and_student_and_tests(distilled):
    out, _ = distilled
    teacher, student = load_checkpoint(out / "teacher" / "last.ckpt"), load_checkpoint(out / "last.ckpt")
    assert (teacher["ckdsnn"]["network"]["name"], teacher["epoch"]) == ("ann_resnet_small", 0)
    assert (student["ckdsnn"]["network"]["name"], student["epoch"]) == ("snn_resnet_small", 1)
    assert student["ckdsnn"]["config"]["data"]["init_args"]["train_samples"] == 60
    metrics = json.loads((out / "test.json").read_text())["metrics"]
    assert 0 < metrics["test/firing_rate"] < 1
    assert (out / "best.ckpt").exists()
    assert list((out / "tensorboard").rglob("events*"))
    rows = list(csv.DictReader((out / "logs" / "version_0" / "metrics.csv").open()))
    assert {"train/samd", "train/nld", "train/ce", "val/accuracy"} <= rows[0].keys()
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert saved["trainer"]["max_epochs"] == 2
    assert (saved["out"], saved["model"]["teacher"]["checkpoint"]) == (str(out), None)
    teacher = yaml.safe_load((out / "teacher" / "config.yaml").read_text())
    assert (teacher["out"], teacher["model"]["network"]["name"]) == (str(out / "teacher"), "ann_resnet_small")


def test_again_it_is_finished(distilled, capfd):
    out, command = distilled
    before = load_checkpoint(out / "last.ckpt")["global_step"]
    for verb, folder in (("teacher", out / "teacher"), ("fit", out)):
        assert run(verb, *command) == 0
        assert f"{folder} is finished" in capfd.readouterr().out
    assert load_checkpoint(out / "last.ckpt")["global_step"] == before


def test_predictions_agree_with_the_test(distilled):
    out, command = distilled
    assert run("predict", *command) == 0
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert [int(row["index"]) for row in rows] == list(range(600))
    right = sum(row["target"] == row["prediction"] for row in rows)
    accuracy = json.loads((out / "test.json").read_text())["metrics"]["test/accuracy"]
    assert right / 600 == pytest.approx(accuracy, abs=1e-6)
    assert all(0.1 <= float(row["confidence"]) <= 1 for row in rows)


@pytest.mark.parametrize("method", ["ce", "kd", "bkdsnn"])
def test_evaluation_by_another_method(distilled, tmp_path, method):
    """A network is what is tested: it may be compared with a teacher by a method that has not trained it."""
    out, command = distilled
    found = []
    for name, options in (("ckd", []), (method, ["--model.method.name", method])):
        more = ["--ckpt_path", out / "last.ckpt", "--model.teacher.checkpoint", out / "teacher" / "last.ckpt"]
        assert run("test", *command, *options, *more, "--out", tmp_path / name) == 0
        found.append(json.loads((tmp_path / name / "test.json").read_text())["metrics"])
    assert found[1].keys() >= ({"test/accuracy"} if method == "ce" else {"test/accuracy", "test/kl"})
    assert {name: found[0][name] for name in found[1]} == found[1]


def test_weights_alone_can_be_tested(distilled, tmp_path):
    """A file that somebody cut down to what an evaluation needs."""
    out, command = distilled
    whole = load_checkpoint(out / "last.ckpt")
    save_atomically({name: whole[name] for name in ("ckdsnn", "state_dict")}, tmp_path / "weights.ckpt")
    teacher = ["--model.teacher.checkpoint", out / "teacher" / "last.ckpt"]
    found = []
    for path in (out / "last.ckpt", tmp_path / "weights.ckpt"):
        assert run("test", *command, "--ckpt_path", path, *teacher, "--out", tmp_path / path.stem) == 0
        found.append(json.loads((tmp_path / path.stem / "test.json").read_text())["metrics"])
    assert found[0] == found[1]


def test_a_dry_run_is_no_run(tmp_path, failing, capsys):
    """What `fast_dev_run` leaves must not pass for the training that it tries."""
    command = ["fit", "--config", "digits", "--out", tmp_path, *SMALL, "--model.method.name", "ce"]
    assert run(*command, "--trainer.fast_dev_run", "true") == 0
    assert "trainer.fast_dev_run: True -> False" in failing(*command)


def test_words_on_epochs_and_weights(tmp_path, capsys, monkeypatch):
    shown = []
    # Lightning's is another class where rich is installed.
    monkeypatch.setattr(ModelSummary, "on_fit_start", lambda self, trainer, module: shown.append(module))
    command = ["--config", "digits", "--out", tmp_path, *SMALL]
    assert run("teacher", *command, "--trainer.max_epochs", 7) == 0
    assert "/teacher for 1 epochs (model.teacher.epochs)\n" in capsys.readouterr().out
    assert shown == []
    assert run("fit", *command, "--trainer.max_epochs", 0, "--trainer.enable_model_summary", "true") == 0
    assert f"nothing saved in {tmp_path}\n" in capsys.readouterr().out
    assert len(shown) == 1
    assert logging.getLogger("lightning.pytorch.callbacks.model_summary").level == logging.INFO


def test_a_half_written_checkpoint_is_refused(distilled, failing, tmp_path):
    out, command = distilled
    whole = (out / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(whole[:-1000])
    shown = failing("fit", *command, "--ckpt_path", tmp_path / "last.ckpt")
    assert "cannot be read" in shown
    assert (out / "last.ckpt").read_bytes() == whole
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    assert "was not written by ckdsnn" in failing("test", *command, "--ckpt_path", tmp_path / "foreign.ckpt")


def test_two_processes_train_one_model(tmp_path, distilled, failing):
    """Distributed training over gloo, with averaged weights, clipping and bfloat16 on the way."""
    out = tmp_path / "ddp"
    options = ["--config", "digits", "--out", out, *SMALL, "--model.method.name", "nld",
               "--model.teacher.checkpoint", distilled[0] / "teacher" / "last.ckpt", "--data.batch_size", "15",
               "--trainer.precision", "bf16-mixed", "--trainer.gradient_clip_val", "1",
               "--trainer.callbacks+=WeightEMA"]  # fmt: skip
    two = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]
    command = [sys.executable, "-m", "ckdsnn.cli", "fit", *options, *two]
    # In a session of their own, so that none of them outlives a test that waits in vain.
    process = subprocess.Popen(
        [str(argument) for argument in command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=tmp_path,  # not in the source tree, whose packages are not compiled and would come first
    )
    try:
        _, messages = process.communicate(timeout=240)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, messages
    made = load_checkpoint(out / "last.ckpt")
    assert made["global_step"] == 4  # 60 digits, 2 x 15 a step, 2 epochs
    assert "averaging_state" in made
    assert all(value.isfinite().all() for value in made["state_dict"].values() if value.is_floating_point())
    first, second = made["random_state"]
    assert not first["noise"][0].equal(second["noise"][0])
    assert "started with 2 process(es), now there are 1" in failing("fit", *options)
