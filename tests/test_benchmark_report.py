"""The report of the benchmarks and the comparison of two runs, on numbers made up here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import report

ENVIRONMENT = {"cpu": "Made(R) Up CPU @ 1 GHz", "threads": 2, "torch": "2.13.0"}


def entry(contestant: str, milliseconds: float, *, op: str = "lif", **facts: object) -> dict:
    """A benchmark as pytest-benchmark writes it, of one million elements."""
    described = {"op": op, "device": "cpu", "shape": "(4, 250000)", "dtype": "float32", "work": "forward"}
    if op == "lif":
        facts = {"elements": 10**6, "floor_bytes": 8 * 10**6, **facts}
    median = milliseconds / 1e3
    return {
        "name": f"test_{op}[{contestant}]",
        "extra_info": described | {"contestant": contestant, "peak_bytes": 4_000_000, **facts},
        "stats": {"median": median, "q1": 0.9 * median, "q3": 1.2 * median, "rounds": 15, "iqr": 0.3 * median},
    }


LIF = [entry("floor", 2.0), entry("ours-cpu", 2.2), entry("fair-loop", 22.0)]
STEP = [entry("ours", 50.0, op="step", convolution=0.6), entry("paper", 100.0, op="step", convolution=0.3)]


@pytest.fixture
def write(tmp_path):
    def write(name: str, benchmarks: list[dict], **environment: object) -> Path:
        machine = {"node": "name-of-a-host", "ckd": {**ENVIRONMENT, **environment}}
        path = tmp_path / name
        path.write_text(json.dumps({"machine_info": machine, "benchmarks": benchmarks}))
        return path

    return write


def make(*arguments: object) -> int:
    return report.main([str(argument) for argument in arguments])


def test_tables_have_ratios_bytes_and_the_part_of_the_floor(write, tmp_path):
    assert make(write("run.json", LIF + STEP), "--out", tmp_path) == 0
    folder = tmp_path / "made-up-cpu-1-ghz-2-threads"
    text = (folder / "report.md").read_text()
    # 2.2 ms over 2.0 ms; a copy would have moved 8.8 bytes an element in that time; 2.0 over 2.2
    assert "| ours-cpu | 2.20 | 1.98–2.64 | 1.10 | 1.00 | 4.0 | 8 | 8.8 | 91% |" in text
    assert "| fair-loop | 22.00 | 19.80–26.40 | 11.00 | 10.00 | 4.0 | 8 | 88 | 9% |" in text
    assert "| paper | 100.00 | 90.00–120.00 | 1.00 | 2.00 | 4.0 | 30% |" in text
    assert "| torch | 2.13.0 |" in text
    assert {path.name for path in folder.iterdir()} == {
        "report.md",
        "benchmarks.json",
        "over_floor_lif_cpu.png",
        "roofline_lif_cpu.png",
    }
    assert "name-of-a-host" not in (folder / "benchmarks.json").read_text()


def test_a_run_in_parts_is_the_run(write, tmp_path):
    together, parts = write("run.json", LIF + STEP), [write("lif.json", LIF), write("step.json", STEP)]
    assert report.read(parts) == report.read([together])
    make(*parts, "--out", tmp_path, "--machine", "here")
    assert report.read([tmp_path / "here" / "benchmarks.json"]) == report.read([together])


def test_the_last_file_with_a_group_counts(write):
    again = write("again.json", [entry("floor", 4.0), entry("ours-cpu", 8.0)])
    run = report.read([write("first.json", LIF + STEP), again])
    assert [r.median for r in run.results if r.op == "lif"] == [0.004, 0.008]
    assert len(run.results) == 4


@pytest.mark.parametrize(
    ("ours", "floor", "code"),
    [(2.2, 2.0, 0), (2.74, 2.0, 0), (2.75, 2.0, 0), (2.76, 2.0, 1), (22.0, 20.0, 0), (2.2, 1.0, 1)],
    ids=["same", "below the limit", "at the limit", "above it", "slower machine", "faster floor"],
)
def test_comparison_is_of_ratios_and_fails_above_25_percent(write, tmp_path, capsys, ours, floor, code):
    make(write("stored.json", LIF), "--out", tmp_path)
    before = sorted(tmp_path.rglob("*"))
    now = write("now.json", [entry("floor", floor), entry("ours-cpu", ours), entry("fair-loop", 500.0)])
    assert make(now, "--out", tmp_path, "--compare") == code
    assert f"lif cpu (4, 250000) float32 forward ours-cpu: 1.10 -> {ours / floor:.2f}" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == sorted([*before, now])


@pytest.mark.parametrize(("tolerance", "code"), [("0", 1), ("19.9", 1), ("20", 0), ("200", 0)])
def test_the_tolerance_is_an_option(write, capsys, tolerance, code):
    now = write("now.json", [entry("floor", 2.0), entry("ours-cpu", 2.64)])
    assert make(now, "--compare", write("stored.json", LIF), "--tolerance", tolerance) == code
    assert f"{code} have grown by more than {tolerance} %" in capsys.readouterr().out


@pytest.mark.parametrize("tolerance", ["-1", "nan", "inf", "much"])
def test_tolerances_that_are_none_are_refused(write, capsys, tolerance):
    run = write("run.json", LIF)
    with pytest.raises(SystemExit):
        make(run, "--compare", run, f"--tolerance={tolerance}")
    assert tolerance in capsys.readouterr().err


def test_of_several_stored_runs_the_slowest_counts(write, capsys):
    slow = write("slow.json", [entry("floor", 2.0), entry("ours-cpu", 4.0)], cpu="another")
    now = write("now.json", [entry("floor", 2.0), entry("ours-cpu", 4.8), *STEP])
    assert make(now, "--compare", write("stored.json", LIF), slow) == 0
    said = capsys.readouterr().out
    assert "1 of 2 ratios compared" in said  # the step is in none of them
    assert "ours-cpu: 2.00 -> 2.40 (+20%)" in said
    assert make(now, "--compare", write("stored.json", LIF)) == 1


def test_where_there_is_no_floor_the_papers_modules_are_the_measure(write, tmp_path, capsys):
    stored = write("stored.json", STEP)
    now = write("now.json", [entry("ours", 70.0, op="step"), entry("paper", 100.0, op="step")])
    assert make(now, "--compare", stored) == 1
    assert "ours: 0.50 -> 0.70 (+40%)" in capsys.readouterr().out


def test_nothing_in_common_is_no_success(write, capsys):
    assert make(write("now.json", LIF), "--compare", write("stored.json", STEP)) == 2
    assert "nothing in common" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [None, "", "{}", "[]", '{"benchmarks": [{}], "machine_info": {"ckd": {}}}'], ids=str
)
def test_files_that_hold_no_benchmarks(tmp_path, capsys, content):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    assert make(path, "--out", tmp_path) == 2
    message = capsys.readouterr().err
    assert str(path) in message
    assert "--benchmark-json" in message


def test_parts_of_two_environments_do_not_mix(write, tmp_path, capsys):
    assert make(write("a.json", LIF), write("b.json", STEP, torch="2.12.0"), "--out", tmp_path) == 2
    assert "another environment" in capsys.readouterr().err
