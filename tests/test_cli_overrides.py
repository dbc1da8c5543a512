"""A new name drops the options of the old one, whatever names it."""

import pytest
import yaml

from ckdsnn import cli
from ckdsnn.cli.overrides import with_fresh_options


@pytest.fixture
def recipe(tmp_path):
    def write(name="recipe", **model):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.dump({"model": model}))
        return str(path)

    return write


OLD = {
    "network": {"name": "snn_resnet_small", "options": {"time_steps": 4}},
    "method": {"name": "ckd", "options": {"preset": "paper"}},
    "teacher": {"name": "ann_resnet_small", "options": {"widths": [4]}},
    "optimizer": {"name": "sgd", "momentum": 0.9},
}
DROPPED = {
    "network": ["--model.network.options={}"],
    "method": ["--model.method.options={}"],
    "teacher": ["--model.teacher.options={}"],
    "optimizer": ["--model.optimizer.momentum=null", "--model.optimizer.nesterov=false"],
}


@pytest.mark.parametrize("part", OLD)
def test_a_new_name_on_the_command_line(recipe, part):
    file = recipe(**OLD)
    for named in (
        [f"--model.{part}.name", "new"],
        [f"--model.{part}.name=new"],
        [f"--model.{part}", "{name: new}"],
        ["--model={" + part + ": {name: new}}"],
    ):
        # Options that are given with the name stay, also before it.
        given = [f"--model.{part}.options", "{x: 1}", *named, "--trainer.max_epochs", "3"]
        for config in (["--config", file], [f"--config={file}"], ["-c", file]):
            assert with_fresh_options([*config, *given]) == [*config, *DROPPED[part], *given]


@pytest.mark.parametrize("part", OLD)
def test_the_same_name_and_no_name(recipe, part):
    for more in (
        [f"--model.{part}.name", OLD[part]["name"]],
        [f"--model.{part}.options", "{x: 1}"],
        ["--model.x", "y"],
    ):
        arguments = ["--config", recipe(**OLD), *more]
        assert with_fresh_options(arguments) == arguments


def test_a_later_file(recipe):
    first, second = recipe(**OLD), recipe("second", method={"name": "kd", "options": {"tau": 2.0}})
    arguments = ["--config", first, "--trainer.max_epochs", "3", "--config", second]
    assert with_fresh_options(arguments) == [*arguments[:4], "--model.method.options={}", *arguments[4:]]
    again = [*arguments, "--model.method.name", "ckd"]
    assert with_fresh_options(again)[-3:] == ["--model.method.options={}", "--model.method.name", "ckd"]


@pytest.mark.parametrize("content", ["model: 3", "model: {method: kd}", "{}"])
def test_files_that_say_nothing(tmp_path, content):
    file = tmp_path / "odd.yaml"
    file.write_text(content)
    arguments = ["--config", str(file), "--model.method.name", "kd", "--model", "x" * 5000]
    assert with_fresh_options(arguments) == arguments


def test_what_would_run(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", "digits", "--model.method.options", "{tau: 2.0}", "--model.method.name", "kd",
                  "--model.optimizer.name", "sgd", "--model.network.name", "snn_resnet20",
                  "--print_config"])  # fmt: skip
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    assert model["method"] == {"name": "kd", "options": {"tau": 2.0}}
    assert (model["network"]["name"], model["network"]["options"]) == ("snn_resnet20", {})
    assert model["teacher"]["name"] == "ann_resnet_small"
    assert model["optimizer"]["schedule"] == "one_cycle"
