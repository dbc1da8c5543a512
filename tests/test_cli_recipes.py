"""Recipes of all kinds: what a run's `config.yaml` says to another run, and files that are none."""

import shutil

import pytest
import torch

from ckdsnn import cli
from ckdsnn.checkpoint import load_checkpoint
from ckdsnn.cli.stages import STAGES

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


def test_distill_trains_no_teacher_that_the_method_does_not_need(tmp_path, capsys):
    (tmp_path / "none.yaml").write_text("model: {teacher: null}\n")  # nor does one have to be named
    command = ["--config", "digits", *TINY, "--model.method.name", "ce", "--out", str(tmp_path / "run")]
    for options in (command, [*command, "--config", str(tmp_path / "none.yaml")]):
        assert cli.main([STAGES[0], *options]) == 0
        assert capsys.readouterr().out == "the method ce needs no teacher: none is trained\n"
    assert not (tmp_path / "run").exists()
    assert cli.main(["teacher", *command]) == 0  # who asks for it gets it, as sweeps do for other cells
    assert (tmp_path / "run" / "teacher" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "CIFER"], "unknown data set 'CIFER'; did you mean 'CIFAR'?"),
        (["--data", "CIFAR"], "the following arguments are required: --data.root; give these, or a recipe"),
        (["--data", "{class_path: Foo}"], "unknown data set 'Foo'; known:"),
        (["--trainer.logger", "CSV"], "trainer.logger: there is no class CSV: `ckdsnn fit --help` lists"),
        (["--trainer.callbacks+=Foo"], "trainer.callbacks: there is no class Foo"),
        (["--foo", "1"], "unknown option 'foo'\n"),  # which is like no other
        (["--data.foo", "1"], "ckdsnn: error: unknown option 'foo'\n"),
    ],
)
def test_a_class_that_is_not_there_is_told_of_its_own_option(capsys, arguments, words):
    with pytest.raises(SystemExit):
        cli.main(["test", "--config", "digits", *arguments])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "a recipe is a mapping of trainer, model, data ...; got nothing"),
        (b"digits", "got str 'digits'"),
        (b"\xf7\x00", "is no YAML: 'utf-8' codec can't decode"),
        (b"{a: [1", "is no YAML: while parsing"),
        (b"model: !!python/object/apply:os.abort []", "is no YAML: could not determine a constructor"),
        (b"out: a\nmodel: {compile: true}\nout: b\n", "line 3: 'out' is given twice"),
        (b"model:\n  optimizer: {lr: 0.1, lr: 0.2}\n", "line 2: 'lr' is given twice"),
        (b"[" * 5000 + b"]" * 5000, "is no YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path, capsys, content, words):
    (tmp_path / "mine.yaml").write_bytes(content)
    assert cli.main(["fit", "--config", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "run")]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"ckdsnn: error: --config {tmp_path}/mine.yaml")
    assert words in shown
    assert shown.count("\n") == 1


def test_a_training_on_nothing(tmp_path, capsys):
    method = ["--model.method.name", "ce", "--trainer.limit_train_batches", "0"]
    assert cli.main(["fit", "--config", "digits", *method, "--out", str(tmp_path / "run")]) == 1
    assert "trainer.limit_train_batches must leave batches to train on, got 0" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["fit", "teacher", "test", "predict"])
def test_help_says_what_the_command_does_here(capsys, verb):
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    names = "fit|teacher|distill" if verb in ("fit", "teacher") else verb
    assert shown.startswith(f"usage: ckdsnn {names} --config RECIPE [--KEY VALUE ...] ")
    assert "or the name of a packaged recipe: cifar100_resnet19_t1, " in shown
    assert "(default: OUT/last.ckpt" in shown
    assert "Lightning Model Registry" not in shown


def test_code_in_a_checkpoint_cannot_be_asked_for(tmp_path, capsys):
    assert cli.main(["test", "--config", "digits", "--weights_only", "false", "--out", str(tmp_path / "run")]) == 1
    assert "weights_only must be true or null: no checkpoint runs code" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["energy", "maps", "gradient"])
def test_the_help_of_what_looks_at_a_run_fits_a_terminal(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert f"\n  ckdsnn {verb} runs/c100\n" in said  # commands are not wrapped


def test_the_first_help_fits_a_terminal(capsys):
    assert cli.main(["--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize(("word", "file"), [("best", "best.ckpt"), ("last", "last.ckpt"), ("hpc", "last.ckpt")])
def test_a_word_of_lightnings_for_a_checkpoint(tmp_path, capsys, word, file):
    assert cli.main(["test", "--config", "digits", "--ckpt_path", word, "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr().err
    assert shown == f"ckdsnn: error: ckpt_path must be a file, got Lightning's word '{word}': write {tmp_path}/{file}\n"
