"""The commands that look at a run: what they write, and how they refuse what is no run."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from ckdsnn import cli
from ckdsnn.checkpoint import load_checkpoint, save_atomically
from ckdsnn.models import build_model

SMALL = ["--config", "digits", "--trainer.enable_progress_bar", "false", "--data.train_samples", "60"]
SMALL += ["--model.network.options", '{"widths": [4, 6, 8], "time_steps": 2}', "--trainer.max_epochs", "2"]
SMALL += ["--model.teacher.options", '{"widths": [4, 6, 8]}', "--model.teacher.epochs", "1"]


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "digits"
    for verb in ("teacher", "fit", "test"):
        assert run(verb, *SMALL, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run without a teacher."""
    out = tmp_path_factory.mktemp("runs") / "ce"
    assert run("fit", *SMALL, "--model.method.name", "ce", "--model.teacher", "null", "--out", out) == 0
    return out


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
        return shown

    return fail


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_energy_of_a_run(distilled, capsys):
    assert run("energy", distilled) == 0
    shown = capsys.readouterr().out
    assert "600 test samples" in shown
    assert "ANN teacher" in shown
    table = shown[shown.index("layer ") : shown.index("\nwrote")]
    assert max(map(len, table.splitlines())) <= 100
    rows = rows_of(distilled / "energy" / "energy.csv")
    assert [row["layer"] for row in rows][:2] == ["stem.convs.0", "stages.0.0.conv1"]
    assert [rows[0][name] for name in ("mac_per_step", "steps", "input", "firing_rate")] == ["14400", "1", "real", ""]
    assert float(rows[0]["energy_mj"]) == pytest.approx(4.6e-9 * 14400)
    first = rows[1]
    spikes = float(first["firing_rate"]) * 2 * 4 * 4 * 9 * 400
    assert float(first["ac"]) == pytest.approx(spikes, rel=1e-9)
    assert float(first["energy_mj"]) == pytest.approx(0.9e-9 * spikes, rel=1e-9)
    rates = rows_of(distilled / "energy" / "firing_rates.csv")
    tested = json.loads((distilled / "test.json").read_text())["metrics"]["test/firing_rate"]
    assert f"firing rate of all neurons: {tested:.4f}" in shown
    assert len(rates) == 7
    with Image.open(distilled / "energy" / "energy.png") as figure:
        assert figure.width > 1000


def test_energy_of_fewer_samples_elsewhere(distilled, tmp_path, capsys):
    options = ["--samples", 7, "--out", tmp_path / "e", "--ac_pj", "0", "--mac_pj", "1000"]
    totals = []
    for batch_size in (3, 100):
        assert run("energy", distilled, *options, "--batch_size", batch_size) == 0
        assert "7 test samples" in capsys.readouterr().out
        totals.append((tmp_path / "e" / "energy.csv").read_text())
    assert totals[0] == totals[1]
    rows = rows_of(tmp_path / "e" / "energy.csv")
    assert all(float(row["energy_mj"]) == pytest.approx(1e-6 * float(row["mac"])) for row in rows)


def test_energy_without_a_teacher(alone, distilled, capsys):
    assert run("energy", alone, "--samples", 5) == 0
    assert "ANN" not in capsys.readouterr().out
    assert run("energy", alone, "--samples", 5, "--teacher", distilled / "teacher" / "last.ckpt") == 0
    assert "ANN teacher" in capsys.readouterr().out


def test_maps_of_a_run(distilled, capsys):
    assert run("maps", distilled, "--samples", 30, "--indices", 40, 2) == 0
    shown = capsys.readouterr().out
    assert "41 test samples" in shown  # as many as the last one that is drawn needs
    rows = rows_of(distilled / "maps" / "agreement.csv")
    assert [int(row["index"]) for row in rows] == list(range(41))
    assert {row["student"] for row in rows} == {"epoch 2"}
    assert {"sam_kl", "grad_cam_iou", "sam_pointing", "teacher_box_iou"} <= rows[0].keys()
    assert all(0 <= float(row["sam_iou"]) <= 1 for row in rows)
    logits = rows_of(distilled / "maps" / "logits.csv")
    assert all(0 < float(row["teacher_entropy"]) <= 2.302586 for row in logits)
    means = {"sam_cosine": None, "teacher_pointing": None}
    for name in means:
        means[name] = sum(float(row[name]) for row in rows) / len(rows)
        assert f"{means[name]:.3f} ±" in shown
    for name in ("maps.png", "logits.png"):
        with Image.open(distilled / "maps" / name) as figure:
            assert figure.width > 400
    assert not (distilled / "maps" / "maps_over_training.png").exists()


def test_maps_over_training(distilled, tmp_path, capsys):
    early = load_checkpoint(distilled / "last.ckpt")
    early["epoch"] = 0
    for name in early["state_dict"]:
        if name.endswith("head.bias"):
            early["state_dict"][name] = torch.eye(10)[7] * 1e3  # all that it says
    save_atomically(early, tmp_path / "early.ckpt")
    options = ["--samples", 4, "--out", tmp_path / "maps", "--checkpoints", tmp_path / "early.ckpt"]
    assert run("maps", distilled, *options, distilled / "last.ckpt") == 0
    assert "epoch 1 " in capsys.readouterr().out
    rows = rows_of(tmp_path / "maps" / "agreement.csv")
    assert [row["student"] for row in rows] == ["epoch 1"] * 4 + ["epoch 2"] * 4
    assert {row["student_prediction"] for row in rows[:4]} == {"7"}
    assert [row["sam_kl"] for row in rows[:4]] == [row["sam_kl"] for row in rows[4:]]
    assert (tmp_path / "maps" / "maps_over_training.png").exists()


def test_a_run_that_has_moved(distilled, tmp_path, monkeypatch, capsys, failing):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(distilled, tmp_path / "moved")
    config = tmp_path / "moved" / "config.yaml"
    written = yaml.safe_load(config.read_text())
    written["model"]["teacher"]["checkpoint"] = "gone/teacher/last.ckpt"
    written["trainer"] |= {"devices": 8, "strategy": "ddp", "callbacks": [{"class_path": "ModelCheckpoint"}]}
    config.write_text(yaml.dump(written))
    assert run("energy", "moved", "--samples", 2, "--out", "e") == 0
    assert "ANN teacher" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "moved" / "teacher")
    assert "teacher/last.ckpt" in failing("energy", "moved", "--samples", 2, "--out", "e")
    other = build_model("ann_resnet20", 10, in_channels=1, width=0.25)
    network = {"name": "ann_resnet20", "options": {"width": 0.25}, "num_classes": 10, "in_channels": 1}
    weights = {f"network.{name}": value for name, value in other.state_dict().items()}
    made = {"network": network, "config": {}, "finished": True, "schema": 1}
    save_atomically({"ckdsnn": made, "state_dict": weights}, tmp_path / "other.ckpt")
    assert run("energy", "moved", "--samples", 2, "--out", "e", "--teacher", "other.ckpt") == 0
    assert "ANN teacher" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["energy", "maps", "gradient"])
def test_what_is_no_run(verb, failing, distilled, tmp_path):
    assert f"there is no folder {tmp_path / 'none'}" in failing(verb, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert "config.yaml is missing" in failing(verb, tmp_path)
    shutil.copy(distilled / "config.yaml", tmp_path)
    assert "last.ckpt is missing" in failing(verb, tmp_path)
    (tmp_path / "last.ckpt").write_bytes((distilled / "last.ckpt").read_bytes()[:-500])
    assert "cannot be read" in failing(verb, tmp_path)
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    assert "was not written by ckdsnn" in failing(verb, tmp_path)
    assert "a conventional network: name the run of its student" in failing(verb, distilled / "teacher")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "last.ckpt"]


@pytest.mark.parametrize("verb", ["energy", "maps", "gradient"])
def test_what_does_not_fit(verb, failing, distilled, tmp_path):
    shutil.copytree(distilled, tmp_path / "run")
    run_folder = tmp_path / "run"
    assert "must be a whole number of at least 1, got '0'" in failing(verb, run_folder, "--samples", 0)
    assert "--device nonsense is not there" in failing(verb, run_folder, "--device", "nonsense")
    assert "no checkpoint at" in failing(verb, run_folder, "--teacher", tmp_path / "none.ckpt")
    spiking = failing(verb, run_folder, "--teacher", distilled / "last.ckpt")
    assert "a spiking network; the teacher is a conventional one" in spiking
    assert "root" in failing(verb, run_folder, "--data.root", tmp_path)  # the digits have none
    checkpoint = load_checkpoint(distilled / "last.ckpt")
    checkpoint["ckdsnn"]["network"]["num_classes"] = 100
    save_atomically(checkpoint, run_folder / "last.ckpt")
    assert "use the configuration that it was trained with" in failing(verb, run_folder)
    checkpoint["ckdsnn"]["network"]["num_classes"] = 10
    checkpoint["state_dict"].pop("network.head.bias")
    save_atomically(checkpoint, run_folder / "last.ckpt")
    assert "do not fit the run's network" in failing(verb, run_folder)


def test_maps_that_cannot_be_drawn(failing, distilled, alone, tmp_path):
    known = "the test part has 600 samples, counted from 0 to 599"
    assert f"--indices 600 7000: {known}" in failing("maps", distilled, "--indices", 3, 600, 7000)
    assert "must be a whole number of at least 0, got '-1'" in failing("maps", distilled, "--indices=-1")
    assert "has no teacher to compare with (method ce)" in failing("maps", alone)
    assert "stage 9 does not exist" in failing("maps", distilled, "--stage", 9)
    assert "stage 9 does not exist" in failing("maps", distilled, "--teacher_stage", 9)
    out = tmp_path / "maps"
    assert "no checkpoint at" in failing(
        "maps", distilled, "--checkpoints", distilled / "last.ckpt", tmp_path / "x.ckpt", "--out", out
    )
    assert not out.exists()


def test_energy_that_cannot_be(failing, distilled):
    for value in ("-1", "nan", "inf", "much"):
        assert f"at least 0, got '{value}'" in failing("energy", distilled, f"--mac_pj={value}")


def test_help_without_pytorch(tmp_path):
    code = "import sys; from ckdsnn.cli import main\ntry: main([sys.argv[1], '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'numpy', 'matplotlib', 'lightning'} & set(sys.modules)"
    for verb in ("energy", "maps", "gradient"):
        done = subprocess.run([sys.executable, "-c", code, verb], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "--data.root DIR" in done.stdout


def test_a_run_in_python(distilled, tmp_path, monkeypatch, capsys):
    """The example of docs/training.md, and what it has exported."""
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "open_run" in code]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(distilled)
    monkeypatch.chdir(tmp_path)
    made = {}
    exec(compile(code, "docs/training.md", "exec"), made)
    assert capsys.readouterr().out.startswith("tensor([")
    weights = load_checkpoint(distilled / "last.ckpt")["state_dict"]
    assert torch.equal(made["network"].head.weight, weights["network.head.weight"])
    exported = torch.export.load("student.pt2").module()
    assert torch.equal(exported(made["images"]).logits, made["network"](made["images"]).logits)
