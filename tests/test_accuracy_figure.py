"""The figure of accuracy against minutes: what is drawn of which runs, and that its names cover nothing."""

import itertools
import json
import sys

import accuracy
import accuracy_figure
import kept
import numpy as np
import pytest
import yaml
from accuracy_figure import Method
from matplotlib.text import Text

RECIPE = "cifar100_resnet19_t1_fast"
COLUMNS = ("label", "seed", "finished", "seconds", "test/accuracy", "teacher_accuracy")


def keep(results, grid, rows, recipe=RECIPE, settings=(), **environment):
    """`runs.csv` and `environment.json` of a sweep; a row is label, seed, seconds, accuracy, teacher's accuracy."""
    folder = results.parent / recipe / grid
    folder.mkdir(parents=True)
    lines = [",".join(COLUMNS)] + [
        f'"{label}",{seed},{accuracy is not None},{seconds},{"" if accuracy is None else accuracy},{teacher or ""}'
        for label, seed, seconds, accuracy, teacher in rows
    ]
    (folder / "runs.csv").write_text("\n".join(lines) + "\n")
    environment |= {"platform": "Linux, host of two NVIDIA H200", "settings": [f"recipe={recipe}", *settings]}
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


def keep_single(results, method, accuracies, recipe="cifar10_resnet19_t1_fast", epochs=120):
    folder = results.parent / recipe
    content = {
        "trainer": {"max_epochs": epochs},
        "data": {"init_args": {"name": "cifar10"}},
        "model": {"network": {"options": {"time_steps": 1}}},
    }
    for seed, value in enumerate(accuracies):
        run = folder / method / f"seed{seed}"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(yaml.safe_dump(content))
        (run / "test.json").write_text(json.dumps({"metrics": {"test/accuracy": value}}))
    teacher = folder / "teacher" / "seed0"
    teacher.mkdir(parents=True, exist_ok=True)
    (teacher / "metrics.csv").write_text("epoch,train/ce,val/accuracy\n0,2.0,\n0,,0.5\n59,,0.96\n59,0.1,\n")
    known = {"platform": "NVIDIA H200", "seconds an epoch": {"ce": 2.0, "kd": 2.5, "ckd": 3.0}}
    (folder / "environment.json").write_text(json.dumps(known))


def found(results):
    return accuracy_figure.methods([(recipe, grid) for _, recipe, grid in accuracy.CIFAR], results)


def names(axis):
    return [text.get_text() for text in axis.texts]


def dots(axis):
    """What the seeds' dots and the diamonds of means are at: two lists of (minutes, accuracy)."""
    kinds = {"o": [], "D": []}
    for line in axis.lines:
        if line.get_marker() in kinds:
            kinds[line.get_marker()] += np.column_stack(line.get_data()).tolist()
    return sorted(map(tuple, kinds["o"])), sorted(map(tuple, kinds["D"]))


def bars(axis):
    """Lower and upper ends of the standard deviations that are drawn."""
    collections = [collection for drawn in axis.containers for collection in drawn.lines[2]]
    return [segment[:, 1].tolist() for collection in collections for segment in collection.get_segments()]


def test_a_sweep_is_drawn_with_its_epochs_and_its_share_of_the_gpu(tmp_path):
    results = tmp_path / "digits"
    rows = [
        ("CE", 0, 180, 0.70, None),
        ("CE", 1, 360, 0.74, None),
        ("SAMD + NLD", 0, 540, 0.75, 0.78),
        ("SAMD + NLD", 1, 540, None, 0.78),  # not finished
    ]
    keep(results, "components", rows, settings=["trainer.max_epochs=60", "data.root=DATA"], **{kept.SHARED: 3})
    ce, ours = found(results)
    timing = "one H200\n(wall time of a run / 3 runs that share the GPU)"
    assert ce == Method(RECIPE, "CIFAR-100", 1, "CE", 60, ((1.0, 70.0), (2.0, 74.0)), timing, None)
    assert ours == Method(
        RECIPE, "CIFAR-100", 1, "SAMD + NLD", 60, ((3.0, 75.0),), timing, ("ANN teacher: 78.00", 78.0)
    )
    (axis,) = accuracy.figure(results).axes
    assert axis.get_title(loc="left") == "CIFAR-100, T = 1, 60 epochs"
    assert axis.get_xlabel() == f"minutes of a student's run on {timing}"
    assert axis.get_ylabel() == "test accuracy at the last epoch, %"
    seeds, means = dots(axis)
    assert seeds == [(1.0, 70.0), (2.0, 74.0), (3.0, 75.0)]
    assert means == [(1.5, 72.0)]  # none of a single seed
    assert bars(axis) == [pytest.approx([72 - 8**0.5, 72 + 8**0.5])]
    assert names(axis) == [
        "published SAMD + NLD, 400 epochs, best epoch on test: 79.11",
        "ANN teacher: 78.00",
        "SAMD + NLD 75.00",
        "CE 72.00",
    ]
    levels = [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "--"]
    assert sorted(levels) == [78.0, 79.11]
    assert axis.get_xlim()[0] == 0
    assert [text.xy for text in axis.texts] == [(0, 79.11), (0, 78.0), (3.0, 75.0), (1.5, 72.0)]


def test_runs_that_no_sweep_has_made_take_their_epochs_and_give_way_to_a_sweeps(tmp_path):
    results = tmp_path / "digits"
    recipe = "cifar10_resnet19_t1_fast"
    keep_single(results, "ce", (0.94,))
    keep_single(results, "ckd", (0.95, 0.96))
    timing = "one H200\n(epochs × seconds an epoch)"
    teacher = ("ANN teacher on held-out training images: 96.00", 96.0)
    single = [
        Method(recipe, "CIFAR-10", 1, "CE", 120, ((4.0, 94.0),), timing, None),
        Method(recipe, "CIFAR-10", 1, "SAMD + NLD", 120, ((6.0, 95.0), (6.0, 96.0)), timing, teacher),
    ]
    assert found(results) == single
    swept = [("CE", 0, 120, 0.90, None), ("SAMD + NLD", 0, 300, 0.91, 0.961)]
    keep(results, "headline", swept, recipe=recipe)
    by_label = {method.label: method for method in found(results)}
    assert by_label["CE"].points == ((2.0, 90.0),)  # as many runs: the sweep's
    assert by_label["SAMD + NLD"] == single[1]  # more runs
    keep(results, "components", [("CE", 0, 180, 0.92, None), ("CE", 1, 180, 0.93, None)], recipe=recipe)
    assert {m.label: m.points for m in found(results)}["CE"] == ((3.0, 92.0), (3.0, 93.0))


def test_panels_are_by_time_steps_and_data_and_names_tell_epochs_that_differ(tmp_path):
    results = tmp_path / "digits"
    keep(results, "headline", [("KD", 0, 600, 0.81, 0.80)], recipe="cifar100_resnet19_t4_fast")
    keep(results, "headline", [("KD", 0, 300, 0.77, 0.80), ("KD", 1, 300, 0.77, 0.79)])
    keep(results, "components", [("KD", 0, 150, 0.75, 0.78)], settings=["trainer.max_epochs=60"])
    keep(results, "headline", [("KD", 0, 300, 0.95, 0.96)], recipe="cifar10_resnet19_t1_fast")
    axes = accuracy.figure(results).axes
    assert [axis.get_title(loc="left") for axis in axes if axis.axison] == [
        "CIFAR-10, T = 1, 120 epochs",
        "CIFAR-100, T = 1",
        "CIFAR-100, T = 4, 120 epochs",
    ]
    assert [axis.axison for axis in axes] == [True, True, True, False]
    assert set(names(axes[1])) == {
        "published SAMD + NLD, 400 epochs, best epoch on test: 79.11",
        "2 ANN teachers, mean: 79.50 (students of 120 epochs)",
        "ANN teacher: 78.00 (students of 60 epochs)",
        "KD 77.00 (120 epochs)",
        "KD 75.00 (60 epochs)",
    }
    assert "published SAMD + NLD, 400 epochs, best epoch on test: 83.88" in names(axes[2])


def test_names_cover_neither_each_other_nor_points_nor_lines_and_stay_inside():
    """As many methods as are drawn at most, three of them at nearly the same place, and a far away one."""
    about = {"CE": (2.5, 72.0), "CE, smoothed labels": (2.5, 73.4), "SAMD": (3.1, 72.5)}
    about |= {"KD": (3.0, 75.3), "NLD": (3.05, 75.25), "SAMD + NLD": (3.1, 75.35)}
    methods = [
        Method(RECIPE, "CIFAR-100", 1, label, epochs, points, "one H200", ("ANN teacher: 79.14", 79.14))
        for label, (minutes, mean) in about.items()
        for epochs, more, gain in ((60, 1.0, 0.0), (120, 2.0, 1.7))
        for points in [tuple((more * minutes + s / 20, mean + gain + (s - 1) / 8) for s in range(3))]
    ]
    far = Method(RECIPE, "CIFAR-100", 1, "SAMD + NLD, as printed", 400, ((10.0, 77.9),), "one H200", None)
    figure = accuracy_figure.draw([*methods, far], accuracy.HEADLINE)
    figure.draw_without_rendering()
    (axis,) = figure.axes
    inside = axis.get_window_extent()
    written = [(text.get_text(), Text.get_window_extent(text)) for text in axis.texts]  # of the words, without the line
    assert len(written) == 2 + 13
    for (one, box), (other, another) in itertools.combinations(written, 2):
        assert not box.overlaps(another), (one, other)
    means = axis.transData.transform([(x, y) for x, y in dots(axis)[1]])
    for name, box in written:
        assert inside.contains(*box.min), name
        assert inside.contains(*box.max), name
        assert not any(box.contains(*mean) for mean in means), name
        for level in (79.11, 79.14):
            height = axis.transData.transform((0, level))[1]
            assert not box.y0 < height < box.y1, name


def test_the_documents_figure_has_the_kept_runs_of_every_recipe_and_method(tmp_path, monkeypatch):
    """By a look at the files that is not the figure's. Where two have the same cell, one of them is drawn."""
    known = {}
    for path in kept.RESULTS.parent.glob("cifar*/*/runs.csv"):
        if path.parent.name in accuracy_figure.GRIDS:
            for row in kept.read_csv(path):
                if row["finished"] == "True":
                    known.setdefault(row["label"], set()).add(100 * float(row["test/accuracy"]))
    for path in kept.RESULTS.parent.glob("cifar*/*/seed*/test.json"):
        label = accuracy_figure.SINGLE[path.parts[-3]]
        known.setdefault(label, set()).add(100 * json.loads(path.read_text())["metrics"]["test/accuracy"])
    drawn = {}
    for axis in accuracy.figure().axes:
        for line in axis.lines:
            if line.get_marker() == "o":
                drawn.setdefault(line.get_label(), set()).update(line.get_ydata())
    assert drawn.keys() == known.keys()
    assert all(drawn[label] <= known[label] for label in known)
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "figure", "--out", str(tmp_path / "figure.png")])
    assert accuracy.main() == 0
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_there_is_no_figure_of_nothing(tmp_path):
    with pytest.raises(SystemExit, match="nothing to draw: no run of headline or components on CIFAR is kept"):
        accuracy.figure(tmp_path / "digits")
