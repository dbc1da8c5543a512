"""Grids: what they come to, what they refuse, and that the packaged ones can be run."""

import itertools
import re
from pathlib import Path

import pytest
import yaml

from ckdsnn.cli.recipes import UnknownRecipe
from ckdsnn.sweep.grid import GRIDS, GridError, build_grid, load_grid
from ckdsnn.sweep.merge import with_options
from ckdsnn.sweep.plan import make_plan

BASE = {"recipe": "digits", "cells": {"a": {}, "b": {"model.optimizer.lr": 0.1}}}


def grid(**changes):
    return build_grid("mine", {**BASE, **changes})


def test_cells_product_and_zip_are_crossed():
    made = grid(
        seeds=[3, 1],
        cells={"CE": {"model.method.name": "ce"}, "KD": {"model.method": {"name": "kd", "options": {"tau": 2.0}}}},
        product={"model.network.options.time_steps": [1, 2]},
        zip={"data.batch_size": [10, 20, 30], "model.optimizer.lr": {"low": 0.1, "mid": 0.2, "high": 0.3}},
        options={"trainer.max_epochs": 7},
    )
    assert made.seeds == (3, 1)
    assert [cell.label for cell in made.cells] == [
        f"{method}, T={steps}, batch_size={batch}, lr={rate}"
        for method, steps, (batch, rate) in itertools.product(
            ["CE", "KD"], [1, 2], [(10, "low"), (20, "mid"), (30, "high")]
        )
    ]
    last = made.cells[-1]
    assert last.folder == "KD_T=2_batch_size=30_lr=high"
    assert last.recipe["model"]["method"] == {"name": "kd", "options": {"tau": 2.0}}  # without ckd's preset
    assert last.recipe["model"]["network"] == {"name": "snn_resnet_small", "options": {"time_steps": 2}}
    assert last.recipe["data"]["init_args"] == {"batch_size": 30, "train_samples": 300, "views": 6}
    assert last.recipe["model"]["optimizer"]["lr"] == 0.3
    assert last.recipe["trainer"]["max_epochs"] == 7
    assert made.cells[0].recipe["model"]["method"] == {"name": "ce"}


def test_a_baseline_is_a_cell_or_a_coordinate():
    crossed = {"product": {"model.network.options.time_steps": [1, 2]}}
    made = grid(baseline="a", **crossed)
    pairs = {cell.label: (other := made.baseline_of(cell)) and other.label for cell in made.cells}
    assert pairs == {"a, T=1": None, "a, T=2": None, "b, T=1": "a, T=1", "b, T=2": "a, T=2"}
    one = grid(baseline="b, T=2", **crossed)
    assert [c.label for c in one.cells if one.baseline_of(c) is None] == ["b, T=2"]
    assert {one.baseline_of(c).label for c in one.cells if one.baseline_of(c)} == {"b, T=2"}


def test_settings_replace_and_add():
    made = build_grid(
        "mine", BASE, ["seeds=4", "baseline=a", "teacher_seed=7", "data.views=2", "model.optimizer.lr=5e-4"]
    )
    assert (made.seeds, made.baseline, made.teacher_seed) == ((0, 1, 2, 3), "a", 7)
    assert made.cells[0].recipe["data"]["init_args"]["views"] == 2
    assert made.cells[0].recipe["model"]["optimizer"]["lr"] == 5e-4
    assert made.cells[1].recipe["model"]["optimizer"]["lr"] == 0.1  # a cell's own counts


def test_the_recipe_is_not_changed():
    recipe = {
        "model": {"optimizer": {"name": "sgd", "momentum": 0.9, "lr": 0.1}},
        "data": {"class_path": "A", "init_args": {"x": 1}},
    }
    made = with_options(recipe, {"model.optimizer.name": "adamw", "data": {"class_path": "B"}})
    assert made == {"model": {"optimizer": {"name": "adamw", "lr": 0.1}}, "data": {"class_path": "B"}}
    assert recipe["model"]["optimizer"]["momentum"] == 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cells": {}}, "cells must be a mapping of names to options, and have one at least"),
        ({"product": {"data.views": []}}, r"product\.data\.init_args\.views must be a list of values"),
        ({"product": {"data.views": 3}}, "must be a list of values.*got int 3"),
        ({"product": {}}, "product must be a mapping.*remove it"),
        ({"zip": {"data.views": [1, 2], "data.batch_size": [1]}}, "all keys need the same number of values"),
        ({"product": {"data.views": [1, 1]}}, "has a value twice"),
        ({"product": {"model.optimizer.lr": [0.1]}}, "model.optimizer.lr is varied twice"),
        ({"cell": {}}, "unknown key 'cell'; did you mean 'cells'"),
        ({"seeds": 0}, "seeds must be a number of seeds"),
        ({"seeds": []}, "seeds must be a number of seeds"),
        ({"seeds": [1, 1]}, "name one twice"),
        ({"seeds": [1, -1]}, "a seed must be"),
        ({"seeds": [True]}, "a seed must be"),
        ({"seeds": [2**32]}, "below 2"),
        ({"baseline": "c"}, "baseline 'c' is no cell; cells: a, b"),
        ({"baseline": 3}, "baseline must be a name, got int 3"),
        ({"metric": "test/f1"}, "metric 'test/f1' is not one of a run: test/accuracy, test/mean_iou, test/kl, "),
        ({"cells": {"Teachers": {}}}, "would have the folder of the sweep's own teachers"),
        ({"teacher_seed": "x"}, "teacher_seed must be a whole number"),
        ({"recipe": None}, "recipe must be the name"),
        ({"recipe": 3}, "recipe must be the name"),
        ({"options": [1]}, "options must be a mapping"),
        ({"options": {"seed_everything": 1}}, "seed_everything is set by the sweep itself"),
        ({"options": {"model.seed": 1}}, "options: model.seed is set by the sweep itself: set the grid's seeds"),
        (
            {"product": {"data.seed": [1, 2]}},
            r"product: data\.init_args\.seed is set by the sweep itself: set the grid's seeds",
        ),
        ({"teacher": {"seed": 1}}, "teacher: seed is set by the sweep itself: set the grid's seeds"),
        ({"options": {"out": "x"}}, "out is set by the sweep itself: remove it"),
        ({"options": {"a..b": 1}}, "a key must be one of a recipe"),
        ({"options": {"data.views": 1, "data.init_args.views": 1}}, "given twice"),
        ({"cells": {"a b": {}, "a?b": {}}}, "two cells have the folder 'a_b'"),
        ({"cells": {"a": 3}}, "cells.a must be a mapping"),
    ],
)
def test_impossible_grids(changes, message):
    with pytest.raises(GridError, match=message):
        grid(**changes)


def test_no_cells_at_all():
    with pytest.raises(GridError, match="the grid has no cells"):
        build_grid("mine", {"recipe": "digits"})
    with pytest.raises(UnknownRecipe, match="did you mean 'digits'"):
        build_grid("mine", {**BASE, "recipe": "digit"})


def test_the_grid_of_the_docs(tmp_path):
    text = (Path(__file__).parent.parent / "docs" / "sweeps.md").read_text()
    content = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    plan = make_plan(build_grid("docs", content), tmp_path)
    assert len(plan.students) == 2 * 3 * 2 * 5
    assert plan.grid.cells[0].label == "CE, T=1, lr=slow, batch_size=20"
    assert set(re.findall(r"`ckdsnn sweep ([a-z_]+)`", text)) == set(NAMES)


def test_impossible_files(tmp_path):
    path = tmp_path / "grid.yaml"
    for text, message in [
        ("recipe: digits\nseeds: 1\nseeds: 2\n", "line 3: 'seeds' is given twice"),
        ("recipe: digits\ncells: {a: {x: 1, x: 2}}\n", "line 2: 'x' is given twice"),
        ("recipe: [", "is no YAML"),
        ("- 1\n", "a grid is a mapping"),
        ("", "got nothing"),
        ("? [1]\n: 2\n", "a key must be a name"),
        ("a: !!python/object/apply:os.system [true]\n", "is no YAML"),
    ]:
        path.write_text(text)
        with pytest.raises(GridError, match=message) as caught:
            load_grid(str(path))
        assert "\n" not in str(caught.value)
    with pytest.raises(GridError, match="did you mean 'components'"):
        load_grid("component")
    with pytest.raises(GridError, match="there is no file"):
        load_grid(str(tmp_path / "none.yaml"))
    for setting in ("x", "=1", "a=["):
        with pytest.raises(GridError, match="--set"):
            build_grid("mine", BASE, [setting])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed=3", "--set: seed is set by the sweep itself: set the grid's seeds, a number or a list of them"),
        (
            "model.seed=3",
            "--set: model.seed is set by the sweep itself: set the grid's seeds, a number or a list of them",
        ),
        ("sedes=3", "--set sedes=3: there is no key 'sedes'; did you mean 'seeds'?"),
        ("teacher_seeds=0", "--set teacher_seeds=0: there is no key 'teacher_seeds'; did you mean 'teacher_seed'?"),
        ("metrics=val/kl", "--set metrics=val/kl: there is no key 'metrics'; did you mean 'metric'?"),
        ("cells={}", "--set cells={}: cells stands in a grid's file: set the keys of a recipe one by one"),
    ],
)
def test_a_setting_that_is_nearly_one_of_the_grid_names_the_grids_key(setting, message):
    with pytest.raises(GridError) as caught:
        build_grid("mine", BASE, [setting])
    assert str(caught.value) == message


def test_options_at_the_top_of_a_recipe_can_be_set():
    assert build_grid("mine", BASE, ["save_every_n_steps=50"]).cells[0].recipe["save_every_n_steps"] == 50
    trainer = build_grid("mine", BASE, ["trainer={max_epochs: 2}"]).cells[0].recipe["trainer"]
    assert trainer["max_epochs"] == 2
    assert "accelerator" in trainer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"foo": 1}, "cell 'x': unknown option 'foo'$"),
        ({"model.optimizer.lrr": 1}, "cell 'x': .*did you mean 'model.optimizer.lr'"),
        ({"model.optimizer.lr": "fast"}, "cell 'x': .*lr"),
        ({"model.optimizer.lr": -0.1}, "cell 'x': optimizer.lr must be positive, got -0.1"),
        ({"model.optimizer.nesterov": True}, "cell 'x': optimizer.momentum and optimizer.nesterov belong to sgd"),
        ({"data.augmentation.auto_augment": None}, "cell 'x': auto_augment must be one of none, cifar10"),
        ({"model.method.options.gama": 1}, "cell 'x': .*did you mean 'gamma'"),
        ({"model.method.options.samd": {"scaling": "hard"}}, "cell 'x': .*scaling"),
        ({"model.method.options.samd": {"stages": [-4]}}, "stage -4 does not exist"),
        ({"model.network.options.time_steps": 0}, "cell 'x': .*time_steps"),
        ({"model.teacher": None}, "needs a teacher: set model.teacher.name"),
        ({"model.teacher.name": "snn_resnet_small"}, "must be a conventional network"),
    ],
)
def test_impossible_cells_are_found_before_any_run(options, message, tmp_path):
    with pytest.raises(GridError, match=message) as caught:
        make_plan(build_grid("mine", {"recipe": "digits", "cells": {"x": options}}), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("metric", "baseline", "message"),
    [
        ("test/mean_iou", "KD", "metric 'test/mean_iou' is measured in no cell; they have accuracy, kl, kl_noisy: set"),
        ("val/noise_strength", "KD", "metric 'val/noise_strength' is measured in no cell"),
        ("test/kl", "CE", "baseline 'CE' has no 'test/kl': set baseline to one that has it: KD, NLD"),
        ("val/kl_noisy", "KD", "baseline 'KD' has no 'val/kl_noisy': set baseline to one that has it: NLD"),
        ("test/kl", "KD", None),
        ("test/kl_noisy", None, None),
        ("test/firing_rate", "CE", None),
    ],
)
def test_a_metric_that_is_not_measured_is_found_before_any_run(metric, baseline, message, tmp_path):
    cells = {name: {"model.method.name": name.lower()} for name in ("CE", "KD", "NLD")}
    content = {"recipe": "digits", "cells": cells, "metric": metric, "baseline": baseline}
    if message is None:
        assert len(make_plan(build_grid("mine", content), tmp_path / "out").students) == 3
        return
    with pytest.raises(GridError, match=message):
        make_plan(build_grid("mine", content), tmp_path / "out")


NAMES = sorted(path.stem for path in GRIDS.glob("*.yaml"))


def test_all_grids_are_there():
    assert set(NAMES) == {
        *("components", "scaling", "normalisation", "noise", "distribution", "stage", "time_steps", "lambda"),
        *(
            "beta_gamma",
            "cam",
            "baselines",
            "teacher_quality",
            "cross_architecture",
            "learned_strength",
            "demo",
            "label_smoothing",
        ),
        *("demo_settings", "cam_error", "dense", "headline", "recipe_selection"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_of_a_packaged_grid_can_be_built(name, tmp_path):
    plan = make_plan(load_grid(name), tmp_path)
    cells = plan.grid.cells
    assert plan.grid.baseline is not None
    assert any(plan.grid.baseline_of(cell) for cell in cells)
    fingerprints = [repr(student.job.fingerprint) for student in plan.students]
    assert len(set(fingerprints)) == len(cells) * len(plan.grid.seeds)  # no cell is another one again


def test_a_grid_with_another_recipe(tmp_path):
    plan = make_plan(load_grid("components", ["recipe=cifar100_resnet19_t4", "data.root=DATA", "seeds=1"]), tmp_path)
    assert not plan.on_cpu
    assert len(plan.teachers) == 1
    assert plan.teachers[0].fingerprint["teacher"] == {"name": "ann_resnet19", "options": {}, "epochs": 300}


PAPER = (
    "headline",
    "components",
    "scaling",
    "normalisation",
    "stage",
    "noise",
    "lambda",
    "baselines",
    "recipe_selection",
)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_tables_on_cifar(name, tmp_path):
    """As docs/sweeps.md runs them: one teacher, and the epochs that are asked for where a cell is not about them."""
    settings = [
        "recipe=cifar10_resnet19_t1_fast",
        "data.root=DATA",
        "teacher_seed=0",
        "trainer.max_epochs=30",
        "seeds=2",
    ]
    plan = make_plan(load_grid(name, settings), tmp_path)
    assert not plan.on_cpu
    (teacher,) = plan.teachers
    of = teacher.fingerprint
    assert (of["teacher"], of["seed"]) == ({"name": "ann_resnet19", "options": {}, "epochs": 60}, 0)
    assert (of["optimizer"]["weight_decay"], of["data"]["init_args"]["augmentation"]["erase"]) == (5e-4, 0.25)
    assert of["data"]["init_args"]["name"] == "cifar10"
    assert len(plan.students) == 2 * len(plan.grid.cells)
    for student in plan.students:
        assert student.job.epochs == student.cell.options.get("trainer.max_epochs") or student.job.epochs == 30
        ends = [stage[0] for stage in student.job.stages]
        assert ends == (["fit"] if name == "recipe_selection" else ["fit", "test"])


def test_teachers_are_shared_where_nothing_of_theirs_differs(tmp_path):
    cells = {"CE": {"model.method.name": "ce"}, "KD": {"model.method.name": "kd"}, "CKD": {}}
    content = {"recipe": "digits", "seeds": 2, "cells": cells}
    plan = make_plan(build_grid("x", {**content, "product": {"model.network.options.time_steps": [1, 2]}}), tmp_path)
    assert len(plan.teachers) == 2  # one a seed
    assert len({student.job.needs for student in plan.students}) == 3
    assert all((student.teacher is None) == (student.cell.coordinates["cell"] == "CE") for student in plan.students)
    assert len(make_plan(build_grid("x", {**content, "teacher_seed": 5}), tmp_path).teachers) == 1
    for key, values, teachers in [
        ("model.teacher.epochs", [1, 2], 4),
        ("data.views", [1, 2], 4),
        ("model.optimizer.lr", [0.1, 0.2], 4),
        ("trainer.max_epochs", [1, 2], 2),
    ]:
        assert len(make_plan(build_grid("x", {**content, "product": {key: values}}), tmp_path).teachers) == teachers
