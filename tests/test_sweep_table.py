"""What a sweep says: the statistics by hand, the files, the figures."""

import csv
import io
import json

import pytest

from ckdsnn.losses import build_method
from ckdsnn.sweep.grid import build_grid
from ckdsnn.sweep.metrics import METRICS
from ckdsnn.sweep.plan import Job, Student, last_validation
from ckdsnn.sweep.plots import bars, heat_map, line, numeric_dimensions, write_plots
from ckdsnn.sweep.table import csv_runs, csv_table, markdown_table, paired_difference, summarise, text_table
from ckdsnn.training.evaluation import metric_names

# Accuracies of seeds 0, 1, 2; the last one has no seed 2.
VALUES = {"CE": (0.60, 0.62, 0.61), "KD": (0.64, 0.63, 0.60), "A|B": (0.70, 0.72, None)}


def finished(folder, name, accuracy, **metrics):
    job = Job(name, folder / name, (), {"is": name}, folder / name / "test.json")
    if accuracy is not None:
        job.write_record(12.0, finished=True)
        job.result.write_text(json.dumps({"metrics": {"test/accuracy": accuracy, **metrics}}))
    return job


def make(tmp_path, content, values, **metrics):
    grid = build_grid("mine", {"recipe": "digits", "seeds": 3, **content})
    students = []
    for cell in grid.cells:
        for seed in grid.seeds:
            name = f"{cell.folder}-{seed}"
            job = finished(tmp_path, name, values(cell, seed), **metrics)
            teacher = finished(tmp_path, f"teacher{seed}", 0.9) if cell.label != "CE" else None
            students.append(Student(cell, seed, job, teacher))
    return grid, students


@pytest.fixture
def methods(tmp_path):
    content = {"cells": {name: {"model.optimizer.lr": i + 1.0} for i, name in enumerate(VALUES)}, "baseline": "CE"}
    return make(tmp_path, content, lambda cell, seed: VALUES[cell.label][seed], **{"test/firing_rate": 0.125})


def test_paired_differences_by_hand(methods):
    rows = {row.cell.label: row for row in summarise(*methods)}
    assert rows["CE"].difference is None
    difference = rows["KD"].difference  # 4, 1, -1: mean 4/3, deviation 2.5166, t(2) = 4.3027
    assert difference.mean == pytest.approx(4 / 3)
    assert difference.half_width == pytest.approx(4.302653 * 2.516611 / 3**0.5, rel=1e-6)
    assert (difference.ahead, difference.n) == (2, 3)
    few = rows["A|B"].difference
    assert (few.mean, few.ahead, few.n) == (pytest.approx(10), 2, 2)
    assert few.half_width == pytest.approx(0, abs=1e-9)
    assert paired_difference({0: 1.0}, {1: 1.0}, lower=False) is None
    assert paired_difference({0: 1.0}, {0: 3.0}, lower=True) == (-2.0, None, 1, 1)


def test_tables(methods):
    rows = summarise(*methods)
    lines = text_table(methods[0], rows).splitlines()
    assert "difference to CE, 95 % CI" in lines[0]
    assert lines[2].split() == ["CE", "61.00", "±", "1.00", "3", "0.125", "±", "0.000", "12", "±", "0"]
    assert "62.33 ± 2.08" in lines[3]
    assert "+1.33 [-4.92, +7.58]" in lines[3]
    assert "2 of 3" in lines[3]
    assert "90.0 ± 0.0" in lines[3]
    marked = markdown_table(methods[0], rows).splitlines()
    assert marked[1].startswith("| :--- | ---: |")
    assert marked[4].startswith("| A\\|B | 71.00 ± 1.41 | 2 |")
    table = list(csv.DictReader(io.StringIO(csv_table(methods[0], rows))))
    assert [row["label"] for row in table] == list(VALUES)
    assert {row["metric"] for row in table} == {"test/accuracy"}
    assert float(table[1]["difference"]) == pytest.approx(4 / 3)
    assert float(table[1]["low"]) == pytest.approx(-4.91828, abs=1e-5)
    assert table[0]["difference"] == ""
    runs = list(csv.DictReader(io.StringIO(csv_runs(*methods))))
    assert len(runs) == 9
    assert [run["finished"] for run in runs].count("True") == 8
    assert runs[3] == {
        "label": "KD",
        "cell": "KD",
        "seed": "0",
        "finished": "True",
        "seconds": "12.0",
        "test/accuracy": "0.64",
        "test/firing_rate": "0.125",
        "teacher_accuracy": "0.9",
        "folder": "KD/seed0",  # in the sweep's, wherever that is moved to
    }


def test_a_metric_that_is_not_there(methods, tmp_path):
    """A cell without it is empty; where no run has it, that is said."""
    grid, students = methods
    for student in students[3:6]:
        student.job.result.write_text('{"metrics": {"test/loss": 1.0}}')
    rows = summarise(grid, students)
    assert [len(row.values) for row in rows] == [3, 0, 2]
    assert rows[1].difference is None
    assert text_table(grid, rows).splitlines()[3].split() == ["KD", "0"]
    assert [p.name for p in write_plots(grid, rows, tmp_path)] == ["bars.png"]
    with pytest.raises(ValueError, match=r"'test/accuracy' is in no run: .*KD-0/test.json has test/loss"):
        summarise(grid, students[3:6])


def test_every_metric_of_an_evaluation_can_be_a_grids():
    measured = {name for method in ("ce", "nld") for name in metric_names(build_method(method), dense=True)}
    learnt = metric_names(build_method("nld", learnable_strength=True), dense=False)
    assert set(METRICS) == {f"{part}/{name}" for part in ("test", "val") for name in measured.union(learnt)} | {
        "test/firing_rate"
    }


def kl(tmp_path, metric):
    """KL of 0.5 + 0.1 for `b`, whose seeds differ; no teacher in `CE`."""
    content = {"cells": {"a": {}, "b": {"data.views": 2}, "CE": {"data.views": 3}}, "baseline": "a", "metric": metric}
    grid = build_grid("mine", {"recipe": "digits", "seeds": 3, **content})
    students = []
    for cell in grid.cells:
        for seed in grid.seeds:
            values = {"a": 0.5, "b": (0.4, 0.3, 0.6)[seed]}
            measured = {} if cell.label == "CE" else {metric: values[cell.label]}
            job = finished(tmp_path, f"{cell.folder}-{seed}", 0.5, **{"test/firing_rate": 0.1, **measured})
            students.append(Student(cell, seed, job, None))
    return grid, students


@pytest.mark.parametrize(
    ("metric", "heading", "axis", "count", "ahead"),
    [
        (
            "test/kl",
            "KL to the teacher, nats",
            "test KL to the teacher, nats (lower is ahead)",
            "seeds ahead (lower)",
            2,
        ),
        ("test/noise_strength", "learnt strength of the noise", "test learnt strength of the noise", "seeds higher", 1),
    ],
)
def test_a_metric_that_is_no_share(metric, heading, axis, count, ahead, tmp_path):
    grid, students = kl(tmp_path, metric)
    rows = summarise(grid, students)
    assert (rows[1].difference.mean, rows[1].difference.ahead) == (pytest.approx(-0.2 / 3), ahead)
    lines = text_table(grid, rows).splitlines()
    assert f"{heading}  " in lines[0]
    assert count in lines[0]
    assert "0.433 ± 0.153" in lines[3]
    assert "-0.067 [-0.446, +0.313]" in lines[3]
    assert f"{ahead} of 3" in lines[3]
    assert markdown_table(grid, rows).startswith(f"| cell | {heading} | n | difference to a, 95 % CI | {count} |")
    (_, b, ce) = csv.DictReader(io.StringIO(csv_table(grid, rows)))
    assert float(b["mean"]) == pytest.approx(1.3 / 3)
    assert (ce["n"], ce["mean"], ce["difference"]) == ("0", "", "")
    assert bars(grid, rows[:2]).axes[0].get_xlabel().startswith(axis)
    assert [run[metric] for run in csv.DictReader(io.StringIO(csv_runs(grid, students)))][3:7] == [
        *("0.4", "0.3", "0.6", "")
    ]


def test_the_firing_rate_is_there_once(tmp_path):
    grid, students = kl(tmp_path, "test/firing_rate")
    head = text_table(grid, summarise(grid, students)).splitlines()[0]
    assert head.count("firing rate") == 1
    assert grid.metric.axis == "test firing rate, spikes a neuron and time step (lower is ahead)"


@pytest.mark.parametrize(
    ("metric", "column", "heading", "shown"),
    [
        ("test/accuracy", "teacher_accuracy", "teacher accuracy %", "95.0 ± 0.0"),
        ("test/mean_iou", "teacher_mean_iou", "teacher mean IoU %", "60.0 ± 0.0"),
        ("val/accuracy", "teacher_val_accuracy", "teacher validation accuracy %", "80.0 ± 0.0"),
        ("test/kl", "teacher_accuracy", "teacher accuracy %", "95.0 ± 0.0"),
    ],
)
def test_the_teacher_is_measured_as_its_students_are(metric, column, heading, shown, tmp_path):
    content = {"recipe": "digits", "seeds": 2, "cells": {"a": {}}, "metric": metric}
    grid = build_grid("mine", content)
    measured = {"test/mean_iou": 0.6, "val/accuracy": 0.8}
    teacher = finished(tmp_path, "teacher", 0.95, **measured)
    jobs = [finished(tmp_path, f"a-{seed}", 0.5, **{**measured, "test/kl": 0.1}) for seed in grid.seeds]
    students = [Student(grid.cells[0], seed, job, teacher) for seed, job in zip(grid.seeds, jobs, strict=True)]
    rows = summarise(grid, students)
    lines = text_table(grid, rows).splitlines()
    assert heading in lines[0]
    assert shown in lines[2]
    (row,) = csv.DictReader(io.StringIO(csv_table(grid, rows)))
    assert float(row[column]) == pytest.approx(float(shown.split()[0]))
    run = next(csv.DictReader(io.StringIO(csv_runs(grid, students))))
    of_teacher = {key: value for key, value in run.items() if key.startswith("teacher_")}
    assert of_teacher == {"teacher_accuracy": "0.95", "teacher_mean_iou": "0.6", "teacher_val_accuracy": "0.8"}


def test_the_last_validation_of_a_log(tmp_path):
    """All that was validated in the last epoch, of the log of a training that went on; half a line is none."""
    for version, text in enumerate(
        [
            "epoch,step,train/loss,val/accuracy,val/kl\n0,9,,0.5,1.5\n0,9,2.0,,\n1,19,,0.6,1.4\n",
            "epoch,step,train/loss,val/accuracy,val/kl\n2,29,,0.7,1.25\n2,29,2.0,,\n3,3",
        ]
    ):
        (tmp_path / f"version_{version}").mkdir()
        (tmp_path / f"version_{version}" / "metrics.csv").write_text(text)
    assert last_validation(tmp_path) == {"val/accuracy": 0.7, "val/kl": 1.25}
    assert last_validation(tmp_path / "none") == {}


def test_a_broken_result_is_no_result(methods, tmp_path):
    (tmp_path / "CE-0" / "test.json").write_text('{"metrics": [')
    (tmp_path / "CE-1" / "sweep.json").write_text("{")
    assert list(summarise(*methods)[0].values) == [2]


def test_bars(methods, tmp_path):
    grid, _ = methods
    rows = summarise(*methods)
    axis = bars(grid, rows).axes[0]
    assert [patch.get_width() for patch in axis.patches] == pytest.approx([61, 62 + 1 / 3, 71])
    assert [len(dots.get_xdata()) for dots in axis.lines if dots.get_marker() == "o"] == [3, 3, 2]
    assert "accuracy %" in axis.get_xlabel()
    assert "does not start at 0" in axis.get_xlabel()
    assert [p.name for p in write_plots(grid, rows, tmp_path)] == ["bars.png"]
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert write_plots(grid, [], tmp_path) == []


def test_a_line_over_one_number(tmp_path):
    content = {"cells": {"a": {}, "b": {"data.views": 2}}, "product": {"model.network.options.time_steps": [1, 2, 8]}}
    steps = "model.network.options.time_steps"
    made = make(tmp_path, content, lambda cell, seed: 0.1 * cell.values[steps] + 0.01 * seed)
    assert numeric_dimensions(made[0]) == [steps]
    axis = line(made[0], summarise(*made), steps).axes[0]
    assert [list(curve.get_xdata()) for curve in axis.lines] == [[1, 2, 8]] * 2
    assert list(axis.lines[0].get_ydata()) == pytest.approx([11, 21, 81])
    assert len(axis.collections) == 2
    assert axis.get_xscale() == "log"
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "2", "8"]
    assert [p.name for p in write_plots(made[0], summarise(*made), tmp_path)] == ["bars.png", "line.png"]


def test_a_heat_map_over_two_numbers(tmp_path):
    beta, gamma = "model.method.options.beta", "model.method.options.gamma"
    content = {"product": {beta: [0.0, 1.0], gamma: [0.0, 0.5, 2.0]}}
    made = make(tmp_path, content, lambda cell, seed: 0.1 * cell.values[beta] + 0.2 * cell.values[gamma])
    axis = heat_map(made[0], summarise(*made), beta, gamma).axes[0]
    assert axis.images[0].get_array().tolist() == [pytest.approx([0, 10, 40]), pytest.approx([10, 20, 50])]
    assert sorted(float(text.get_text()) for text in axis.texts) == [0, 10, 10, 20, 40, 50]
    assert [p.name for p in write_plots(made[0], summarise(*made), tmp_path)] == ["bars.png", "heatmap.png"]


@pytest.mark.parametrize(("metric", "colours"), [("test/accuracy", "cividis"), ("test/kl", "cividis_r")])
def test_what_is_ahead_is_bright(metric, colours, tmp_path):
    """A number is black on the bright cell of the best value, white on the dark one of the worst."""
    beta, gamma = "model.method.options.beta", "model.method.options.gamma"
    content = {"product": {beta: [0.0, 1.0], gamma: [0.0, 1.0]}, "metric": metric}
    grid, students = make(tmp_path, content, lambda cell, seed: 0.5)
    for student in students:
        value = 0.1 + 0.2 * student.cell.values[beta] + 0.4 * student.cell.values[gamma]
        student.job.result.write_text(json.dumps({"metrics": {metric: value}}))
    axis = heat_map(grid, summarise(grid, students), beta, gamma).axes[0]
    assert axis.images[0].get_cmap().name == colours
    shown = {float(text.get_text()): text.get_color() for text in axis.texts}
    ordered = [shown[value] for value in sorted(shown, reverse=metric == "test/kl")]
    assert ordered == ["w", "w", "k", "k"]
