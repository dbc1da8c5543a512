"""docs/results.md: what is kept of sweeps, the tables that its CSVs give, and a cell of them that is run again."""

import json
import os
import platform
import statistics
from pathlib import Path

import accuracy
import cpuinfo
import kept
import pytest
import yaml

from ckdsnn import cli
from ckdsnn.sweep.grid import GRIDS, load_grid
from ckdsnn.sweep.plan import make_plan
from ckdsnn.sweep.shared import share_runs
from ckdsnn.sweep.table import csv_runs, csv_table, summarise
from sweep_csv import write_runs

KEPT = sorted(path.parent for path in kept.RESULTS.parent.glob("*/*/runs.csv"))


@pytest.mark.parametrize("path", accuracy.DOCUMENTS, ids=lambda path: path.stem)
def test_documents_have_the_tables_that_the_results_give(path):
    text = path.read_text(encoding="utf-8")
    assert accuracy.rewritten(text) == text, "run python benchmarks/accuracy.py tables"


def test_every_grid_has_its_place_in_the_document():
    text = accuracy.DOCUMENTS[0].read_text(encoding="utf-8")
    assert "<!-- cifar -->" in text
    packaged = [(kept.place(load_grid(path.stem).content["recipe"]).name, path.stem) for path in GRIDS.glob("*.yaml")]
    for recipe, grid in [*packaged, *((folder.parent.name, folder.name) for folder in KEPT)]:
        of_cifar = any(section[1:] == (recipe, grid) for section in accuracy.CIFAR)
        assert of_cifar or f"<!-- {recipe}: {grid} -->" in text, (recipe, grid)


@pytest.mark.parametrize("folder", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_kept_tables_are_those_of_their_runs(folder):
    """Means and differences by hand, from the values of the runs alone."""
    metric = load_grid(folder.name).metric.key
    runs = kept.read_runs(folder.name, metric, folder.parent)
    for row in kept.read_csv(folder / "table.csv"):
        if not (values := runs.get(row["label"])):
            assert row["n"] == "0"
            continue
        assert int(row["n"]) == len(values)
        assert float(row["mean"]) == pytest.approx(statistics.fmean(values.values()))
        if row["difference"]:
            baseline = runs[row["baseline"]]
            gains = [values[seed] - baseline[seed] for seed in values if seed in baseline]
            assert float(row["difference"]) == pytest.approx(statistics.fmean(gains), abs=1e-9)
            assert int(row["ahead"]) == sum(gain > 0 for gain in gains)


def finished(grid, out, accuracy_of, where="x", measured=lambda student: {}, settings=()):
    """A folder as a sweep leaves it."""
    plan = make_plan(load_grid(grid, ["seeds=2", *settings]), out / grid)
    if settings:  # older ones have left none
        plan.write_recipes()
    for student in plan.students:
        student.job.write_record(2.0, finished=True)
        metrics = {"test/accuracy": accuracy_of(student), "test/firing_rate": 0.25, **measured(student)}
        versions = {"torch": "2", "ckd-kernels": "not installed"}
        written = {"checkpoint": str(student.job.folder), "metrics": metrics, "versions": versions}
        written |= {"platform": where, "git": None}
        student.job.result.write_text(json.dumps(written))
    for name, text in (
        ("runs.csv", csv_runs(plan.grid, plan.students)),
        ("table.csv", csv_table(plan.grid, summarise(plan.grid, plan.students))),
    ):
        (out / grid / name).write_text(text)


def test_results_are_taken_and_shown(tmp_path):
    finished("scaling", tmp_path / "runs", lambda s: 0.5 + 0.1 * (s.cell.label == "softmax") + 0.01 * s.seed)
    results = tmp_path / "digits"
    kept.take([tmp_path / "runs"], results)
    assert {path.name for path in (results / "scaling").iterdir()} == {"runs.csv", "table.csv", "environment.json"}
    environment = json.loads((results / "scaling" / "environment.json").read_text())
    assert environment == {"versions": {"torch": "2"}, "platform": "x", "settings": [], "seconds a run": 2.0}
    lines = accuracy.table("scaling", results).splitlines()
    assert lines[1] == "ckdsnn sweep scaling --set seeds=2"
    assert lines[4].startswith("| cell | accuracy % | n | difference to softmax, 95 % CI |")
    assert lines[4].endswith("| paper's (CIFAR-100) |")
    assert "| CE | 50.50 ± 0.71 | 2 | -10.00 [-10.00, -10.00] | 0 of 2 | 0.250 |  |" in lines
    assert "| softmax | 60.50 ± 0.71 | 2 |  |  | 0.250 | 79.11 |" in lines
    text = accuracy.rewritten("a\n<!-- digits: scaling -->\nold\n<!-- end -->\nb\n", results)
    assert "old" not in text
    assert lines[1] in text
    assert accuracy.rewritten(text, results) == text
    (tmp_path / "runs" / "scaling").rename(tmp_path / "runs" / "mine")
    with pytest.raises(SystemExit, match="there is no packaged grid"):
        kept.take([tmp_path / "runs"], results)


def test_results_of_another_recipe_say_how_they_were_made(tmp_path):
    """The grid beside the table tells recipe, name and settings; the folder may be called as one likes."""
    settings = [
        "recipe=cifar10_resnet19_t4_fast",
        "data.root=/home/me/cifar",
        "teacher_seed=null",
        "trainer.max_epochs=60",
    ]
    finished("headline", tmp_path / "runs", lambda s: 0.5, settings=settings)
    (tmp_path / "runs" / "headline").rename(tmp_path / "runs" / "c10")
    kept.take([tmp_path / "runs"], tmp_path / "digits", per_gpu=2)
    folder = tmp_path / "cifar10_resnet19_t4_fast"
    assert kept.environment("headline", folder)["runs at a time on a GPU"] == 2
    assert not (tmp_path / "digits").exists()
    text = accuracy.rewritten("<!-- cifar -->\n<!-- end -->", tmp_path / "digits")
    lines = text.splitlines()[2:]
    assert lines[0] == "### CIFAR-10, T = 4"
    told = (
        "--set recipe=cifar10_resnet19_t4_fast --set teacher_seed=null --set data.root=DATA --set trainer.max_epochs=60"
    )
    assert lines[3] == f"ckdsnn sweep headline {told} --set seeds=2"
    assert (
        "| SAMD + NLD, as printed | 50.00 ± 0.00 | 2 | +0.00 [+0.00, +0.00] | 0 of 2 | 0.250 | 0.0 | 97.81 |" in lines
    )
    assert lines[6].endswith("| firing rate | minutes, 2 runs on a GPU | paper's |")
    assert "/home/me" not in "".join(path.read_text() for path in folder.rglob("*.*"))
    (tmp_path / "runs" / "c10" / "noise.yaml").touch()
    with pytest.raises(SystemExit, match=r"c10 is of several grids, headline\.yaml, noise\.yaml"):
        kept.take([tmp_path / "runs"], tmp_path / "digits")
    # What is not kept says what it takes.
    scaling = "`ckdsnn sweep scaling --set recipe=cifar100_resnet19_t1_fast --set data.root=DATA`"
    assert f"| CIFAR-100, T = 1: scaling of the maps | {scaling} |" in lines
    assert not any(line.startswith("| CIFAR-10, T = 4 |") for line in lines)


def test_of_long_runs_each_is_kept_and_of_the_canvas_none(tmp_path):
    home = tmp_path / "somebody"
    finished(
        "headline", home, lambda s: 0.5, settings=["data.root=/home/somebody/cifar"], where="Linux-5-secret-x86_64"
    )
    finished("scaling", home, lambda s: 0.5)
    for run in home.glob("*/*/seed1"):
        (run / "config.yaml").write_text(
            f"out: {run}\nckpt_path: {run}/last.ckpt\nseed_everything: 1\n"
            f"model:\n  teacher: {{checkpoint: {home}/t.ckpt}}\n"
            f"data:\n  init_args: {{root: {home}/cifar, name: cifar100}}\n"
        )
        for version, text in ((2, "epoch,step\n0,9\n"), (10, "epoch,step,val/accuracy\n1,19,0.5\n")):
            (run / "logs" / f"version_{version}").mkdir(parents=True)
            (run / "logs" / f"version_{version}" / "metrics.csv").write_text(text)
    kept.take([home], tmp_path / "digits", processor="a GPU")
    runs = tmp_path / "cifar100_resnet19_t1_fast" / "headline"
    assert sorted(path.name for path in (runs / "KD" / "seed1").iterdir()) == [
        "config.yaml",
        "metrics.csv",
        "test.json",
    ]
    assert yaml.safe_load((runs / "KD" / "seed1" / "config.yaml").read_text()) == {
        "out": "KD/seed1",
        "ckpt_path": None,
        "seed_everything": 1,
        "model": {"teacher": {"checkpoint": "TEACHER"}},
        "data": {"init_args": {"root": "DATA", "name": "cifar100"}},
    }
    assert (runs / "KD" / "seed1" / "metrics.csv").read_text() == "epoch,step,val/accuracy\n0,9,\n1,19,0.5\n"
    said = json.loads((runs / "KD" / "seed1" / "test.json").read_text())
    assert said["checkpoint"] == "KD/seed1/last.ckpt"
    assert said["metrics"]["test/accuracy"] == 0.5
    assert said["platform"].endswith("a GPU")
    for path in runs.rglob("*.*"):
        assert not any(word in path.read_text() for word in ("somebody", "secret")), path
    assert [path.name for path in sorted((tmp_path / "digits" / "scaling").iterdir())] == [
        "environment.json",
        "runs.csv",
        "table.csv",
    ]


def test_what_is_taken_names_no_path_and_no_machine(tmp_path):
    """Nothing has to be edited by hand, neither where an older version wrote whole paths into runs.csv."""
    here = tmp_path / "home" / "somebody"
    finished("scaling", here, lambda s: 0.5, where=platform.platform())
    finished("cam", here, lambda s: 0.5, where="Linux-5.15.0-secret-aarch64-with-glibc2.36")
    runs = here / "cam" / "runs.csv"
    runs.write_text(runs.read_text().replace("CE/seed", f"{here}/cam/CE/seed"))
    kept.take([here], tmp_path / "kept")
    for path in (tmp_path / "kept").rglob("*.*"):
        text = path.read_text()
        for word in (str(tmp_path), "somebody", "secret", platform.release(), "not installed"):
            assert word not in text, path
    for grid, cell in (("scaling", "softmax"), ("cam", "CE")):
        folders = [
            row["folder"] for row in kept.read_csv(tmp_path / "kept" / grid / "runs.csv") if row["label"] == cell
        ]
        assert folders == [f"{cell}/seed0", f"{cell}/seed1"]
    said = {
        grid: json.loads((tmp_path / "kept" / grid / "environment.json").read_text())["platform"]
        for grid in ("scaling", "cam")
    }
    assert said["cam"] == "Linux aarch64"
    assert said["scaling"].startswith(f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} core")
    assert " ".join(cpuinfo.get_cpu_info()["brand_raw"].split()) in said["scaling"]
    kept.take([here / "cam"], tmp_path / "kept", processor="64 cores of a machine")
    environment = json.loads((tmp_path / "kept" / "cam" / "environment.json").read_text())
    assert environment["platform"] == "Linux aarch64, 64 cores of a machine"
    table = here / "cam" / "table.csv"
    table.write_text(table.read_text().replace("test/accuracy", "test/kl"))
    with pytest.raises(SystemExit, match=r"table\.csv is not of test/accuracy: make it again with the command"):
        kept.take([here / "cam"], tmp_path / "kept")


def test_a_sweeps_folder_is_that_sweep_alone_and_another_one_all_sweeps_in_it(tmp_path, capsys):
    """`--out OUT` of one grid, and then of several, which makes folders of their own in it."""
    out, results = tmp_path / "out", tmp_path / "digits"
    finished("scaling", tmp_path, lambda s: 0.5, settings=["trainer.max_epochs=60"])
    (tmp_path / "scaling").rename(out)
    for grid in ("cam", "components"):
        finished(grid, out, lambda s: 0.5, where="another machine")
    kept.take([out], results)
    assert [path.name for path in results.iterdir()] == ["scaling"]
    said = capsys.readouterr().err
    assert f"{out / 'cam'} lies in another sweep's folder and is not taken" in said
    assert "several versions or machines" not in said  # none of the other sweeps' results is looked at
    assert json.loads((results / "scaling" / "environment.json").read_text())["platform"] == "x"
    kept.take([out / "cam", out / "cam"], results)
    assert {path.name for path in results.iterdir()} == {"scaling", "cam"}
    (out / "table.csv").unlink()
    kept.take([out], results)
    assert {path.name for path in results.iterdir()} == {"scaling", "cam", "components"}


def test_nothing_is_kept_where_one_of_the_folders_is_refused(tmp_path):
    for name in ("a", "b"):
        finished("scaling", tmp_path / name, lambda s: 0.5)
    with pytest.raises(SystemExit, match=r"a/scaling and .*b/scaling are both scaling with digits: take one of them"):
        kept.take([tmp_path / "a", tmp_path / "b"], tmp_path / "digits")
    (tmp_path / "none").mkdir()
    for name in ("none", "nowhere"):
        with pytest.raises(SystemExit, match=rf"{name} holds no sweep: there is no table\.csv in it; give the --out"):
            kept.take([tmp_path / "a", tmp_path / name], tmp_path / "digits")
    runs = tmp_path / "b" / "scaling" / "runs.csv"
    runs.write_text(runs.read_text().replace("softmax,softmax", "sigmoid,sigmoid"))
    with pytest.raises(SystemExit, match="b/scaling: the packaged grid scaling has no cell 'sigmoid': add it there"):
        kept.take([tmp_path / "b"], tmp_path / "digits")
    assert not (tmp_path / "digits").exists()


def test_a_run_that_is_another_grids_is_kept_with_the_name_of_that_grid(tmp_path):
    """As of one command: CAM-SAM of `cam` is softmax of `scaling`."""
    runs = tmp_path / "runs"
    shared = share_runs([make_plan(load_grid(grid, ["seeds=2"]), runs / grid) for grid in ("scaling", "cam")])
    for grid in ("scaling", "cam"):
        finished(grid, runs, lambda s: 0.5)
    (runs / "cam" / "runs.csv").write_text(csv_runs(shared[1].grid, shared[1].students))
    kept.take([runs], tmp_path / "kept")
    folders = {row["label"]: row["folder"] for row in kept.read_csv(tmp_path / "kept" / "cam" / "runs.csv")}
    assert folders["CE"] == "../scaling/CE/seed1"
    assert folders["CAM-SAM"] == "../scaling/softmax/seed1"
    assert folders["CAM-CAM"] == "CAM-CAM/seed1"
    for row in kept.read_csv(tmp_path / "kept" / "scaling" / "runs.csv"):
        assert row["folder"] == f"{row['label']}/seed{row['seed']}"


@pytest.mark.parametrize("folder", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_kept_runs_say_of_which_cell_of_which_grid_they_are(folder):
    """And, where that is another grid's which is kept, too, they are the same run there."""
    cells = {cell.label: cell.folder for cell in load_grid(folder.name).cells}
    for row in kept.read_csv(folder / "runs.csv"):
        *grid, cell, seed = row["folder"].split("/")
        assert seed == f"seed{row['seed']}"
        if not grid:
            assert cell == cells[row["label"]]
            continue
        up, other = grid
        assert up == ".."
        names = {cell.folder: cell.label for cell in load_grid(other).cells}
        values = kept.read_runs(other, results=folder.parent)[names[cell]]
        assert values[int(row["seed"])] == 100 * float(row["test/accuracy"])


def test_the_grids_about_noise_have_the_divergence_beside_the_accuracy(tmp_path):
    def measured(student):
        kl = {"test/kl": 0.5 + 0.1 * student.seed}
        if student.cell.label == "no noise":
            return kl
        kl["test/kl_noisy"] = 0.75
        return {**kl, "test/noise_strength": 0.125} if "from" in student.cell.label else kl

    finished("learned_strength", tmp_path / "runs", lambda s: 0.5, measured=measured)
    finished("distribution", tmp_path / "runs", lambda s: 0.5, measured=measured)
    kept.take([tmp_path / "runs"], tmp_path / "digits")
    lines = accuracy.table("learned_strength", tmp_path / "digits").splitlines()
    assert lines[4].endswith(
        "| firing rate | KL to the teacher, nats | KL to the teacher with noise, nats | learnt strength of the noise |"
    )
    assert lines[6].endswith("| 0.250 | 0.550 ± 0.071 |  |  |")
    assert lines[7].endswith("| 0.250 | 0.550 ± 0.071 | 0.750 ± 0.000 |  |")
    assert lines[-1].endswith("| 0.250 | 0.550 ± 0.071 | 0.750 ± 0.000 | 0.125 ± 0.000 |")
    lines = accuracy.table("distribution", tmp_path / "digits").splitlines()
    assert len(lines) == 6 + len(load_grid("distribution").cells)  # a row a cell, and no matrix of accuracies alone
    assert lines[-1].endswith("| 0.250 | 0.550 ± 0.071 | 0.750 ± 0.000 |")


def test_settings_of_the_demo_say_how_many_seeds_they_take(tmp_path):
    runs = {"digits, name=CE": (0.5, 0.5, 0.5), "digits, name=KD": (0.58, 0.62, 0.6)}
    write_runs(tmp_path, "demo_settings", {**runs, "digits, name=SAMD + NLD": (0.6, 0.61, 0.62)}, "val/accuracy")
    (tmp_path / "demo_settings" / "table.csv").write_text("label\n")
    line = accuracy.table("demo_settings", tmp_path).splitlines()[-1]
    # Over CE 10, 11, 12: deviation 1; over KD 2, -1, 2: 1 with the deviation 1.73, which takes 15 seeds.
    assert line == "| digits | 3 | 50.00 | 60.00 | 61.00 | +11.00 [+8.52, +13.48] | 2 | +1.00 [-3.30, +5.30] | 15 |"


def test_a_cell_is_run_again(tmp_path, monkeypatch):
    """One cell of the document by its command. On another processor or PyTorch a training is as another seed's: within
    10 points, three standard deviations of the seeds; on one machine (test_sweep_run.py) it is the same bit for bit."""
    if "CI" in os.environ:
        pytest.skip("trains for up to a minute")
    published = kept.read_runs("time_steps")
    if not published:
        pytest.skip("there are no results of the grid time_steps")
    grid = {"recipe": "digits", "cells": {"CE": {"model.method.name": "ce"}}}
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text(json.dumps({**grid, "product": {"model.network.options.time_steps": [1]}}))
    assert cli.main(["sweep", "grid.yaml", "--out", "out"]) == 0
    (row,) = kept.read_csv(Path("out/runs.csv"))
    assert row["label"] == "CE, T=1"
    assert 100 * float(row["test/accuracy"]) == pytest.approx(published["CE, T=1"][0], abs=10)
