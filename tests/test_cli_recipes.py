"""Recipes of all kinds: what a run's `config.yaml` says to another run, and files that are none."""

import shutil

import pytest
import torch

from ckdsnn import cli
from ckdsnn.checkpoint import load_checkpoint

TINY = ["--trainer.max_epochs", "1", "--data.train_samples", "60", "--data.batch_size", "12", "--data.views", "1",
        "--model.network.options", '{"widths": [4, 6, 8], "time_steps": 2}', "--trainer.enable_progress_bar", "false",
        "--model.teacher.options", '{"widths": [4, 6, 8]}', "--model.teacher.epochs", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of teacher and student that has been gone on with, so that its folder holds all that one can hold."""
    out = tmp_path_factory.mktemp("runs") / "first"
    for verb in ("teacher", "fit", "fit"):
        assert cli.main([verb, "--config", "digits", *TINY, "--out", str(out)]) == 0
    return out


def test_the_configuration_of_a_run_is_a_recipe_for_another(finished, tmp_path, capsys):
    """Which trains a teacher of its own and goes on with nothing of the first one's folder."""
    command = ["--config", str(finished / "config.yaml"), "--seed_everything", "1", "--out", str(tmp_path)]
    assert cli.main(["fit", *command]) == 1
    assert f"no checkpoint at {tmp_path}/teacher/last.ckpt" in capsys.readouterr().err
    assert cli.main(["teacher", *command]) == 0
    assert cli.main(["fit", *command]) == 0, capsys.readouterr().err
    teachers = [load_checkpoint(out / "teacher" / "last.ckpt")["state_dict"] for out in (finished, tmp_path)]
    assert not torch.equal(*(next(iter(state.values())) for state in teachers))
    made = load_checkpoint(tmp_path / "last.ckpt")["ckdsnn"]["config"]
    assert made["seed"] == 1
    assert made["teacher"]["checkpoint"] == str(tmp_path / "teacher" / "last.ckpt")


def test_the_configuration_of_a_run_tests_and_continues_it(finished, capsys):
    for folder in (finished, finished / "teacher"):
        assert cli.main(["fit", "--config", str(folder / "config.yaml")]) == 0
        assert f"{folder} is finished" in capsys.readouterr().out
        assert cli.main(["test", "--config", str(folder / "config.yaml")]) == 0
        assert f"test metrics: {folder}/test.json" in capsys.readouterr().out
        (folder / "test.json").unlink()


def test_no_teacher_is_trained_beside_a_given_one(finished, tmp_path, capsys):
    given = ["--model.teacher.checkpoint", str(finished / "teacher" / "last.ckpt")]
    command = ["teacher", "--config", "digits", *TINY, "--out", str(tmp_path / "run"), *given]
    assert cli.main(command) == 0
    assert f"the teacher is {given[1]} (model.teacher.checkpoint): none is trained" in capsys.readouterr().out
    assert not (tmp_path / "run" / "teacher" / "last.ckpt").exists()
    command[-1] = str(tmp_path / "missing.ckpt")
    assert cli.main(command) == 1
    assert "no checkpoint at" in capsys.readouterr().err
    # Its own, named: it is the one to train.
    shutil.copytree(finished / "teacher", tmp_path / "run" / "teacher", dirs_exist_ok=True)
    command[-1] = str(tmp_path / "run" / "teacher" / "last.ckpt")
    assert cli.main(command) == 0
    assert "is finished" in capsys.readouterr().out
