"""What a sweep says: the statistics by hand, the files, the figures."""

import csv
import io
import json

import pytest

from ckdsnn.sweep.grid import build_grid
from ckdsnn.sweep.plan import Job, Student
from ckdsnn.sweep.plots import bars, heat_map, line, numeric_dimensions, write_plots
from ckdsnn.sweep.table import csv_runs, csv_table, markdown_table, paired_difference, summarise, text_table

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
    assert float(table[1]["difference"]) == pytest.approx(4 / 3)
    assert float(table[1]["low"]) == pytest.approx(-4.91828, abs=1e-5)
    assert table[0]["difference"] == ""
    runs = list(csv.DictReader(io.StringIO(csv_runs(*methods))))
    assert len(runs) == 9
    assert [run["finished"] for run in runs].count("True") == 8
    assert runs[3] | {"folder": ""} == {
        "label": "KD",
        "cell": "KD",
        "seed": "0",
        "finished": "True",
        "seconds": "12.0",
        "test/accuracy": "0.64",
        "test/firing_rate": "0.125",
        "teacher_accuracy": "0.9",
        "folder": "",
    }


def test_a_metric_that_is_not_there(methods):
    students = methods[1]
    students[4].job.result.write_text('{"metrics": {"test/loss": 1.0}}')
    with pytest.raises(ValueError, match=r"'test/accuracy' is not in .*KD-1/test.json, which has test/loss"):
        summarise(methods[0], students)


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
