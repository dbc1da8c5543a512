"""What a sweep comes to: trained and given teachers, what is tested, runs that grids have in common, cells alone."""

import csv
import json
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml

from ckdsnn import cli
from ckdsnn.checkpoint import RunError, save_atomically
from ckdsnn.models import build_model
from ckdsnn.sweep.grid import build_grid
from ckdsnn.sweep.plan import make_plan
from ckdsnn.sweep.run import Outcome
from ckdsnn.sweep.shared import jobs_of, share_runs

WIDTHS = {"widths": [2, 3, 4]}
CELLS = {"CE": {"model.method.name": "ce"}, "KD": {"model.method.name": "kd"}, "CKD": {}}
CONTENT = {"recipe": "digits", "seeds": 2, "options": {"model.teacher.options": WIDTHS}, "cells": CELLS}


def write_teacher(path, seed=0, **made):
    torch.manual_seed(seed)
    network = {"name": "ann_resnet_small", "options": WIDTHS, "num_classes": 10, "in_channels": 1}
    state = build_model("ann_resnet_small", 10, **WIDTHS).state_dict()
    # In the lower precision that fits where files have to be small.
    weights = {f"network.{k}": v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}
    made = {"network": network, "config": {}, "finished": True, **made}
    save_atomically({"ckdsnn": made, "state_dict": weights, "pytorch-lightning_version": L.__version__}, path)
    return str(path)


def planned(path, tmp_path, **changes):
    options = {**CONTENT["options"], "model.teacher.checkpoint": path}
    return make_plan(build_grid("x", {**CONTENT, "options": options, **changes}), tmp_path / "out")


def test_a_given_teacher_is_tested_and_known_by_its_weights(tmp_path):
    first = planned(write_teacher(tmp_path / "a.ckpt"), tmp_path)
    (teacher,) = first.teachers
    (stage,) = teacher.stages
    assert stage[0] == "test"
    assert stage[stage.index("--ckpt_path") + 1] == str(tmp_path / "a.ckpt")
    assert {s.job.needs for s in first.students if s.cell.label != "CE"} == {teacher.folder}
    assert all(s.teacher is None and s.job.needs is None for s in first.students if s.cell.label == "CE")
    # Its place is in the recipe alone: what goes on elsewhere is the same run, another teacher's is not.
    assert not any("--model.teacher.checkpoint" in stage for s in first.students for stage in s.job.stages)
    moved = planned(write_teacher(tmp_path / "b.ckpt"), tmp_path)
    other = planned(write_teacher(tmp_path / "c.ckpt", seed=1), tmp_path)
    fingerprints = [[s.job.fingerprint for s in plan.students] for plan in (first, moved, other)]
    assert fingerprints[0] == fingerprints[1]
    assert [a == b for a, b in zip(fingerprints[0], fingerprints[2], strict=True)] == [True, False, False] * 2


def test_a_file_that_cannot_teach_is_found_before_any_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        planned(str(tmp_path / "none.ckpt"), tmp_path)
    path = write_teacher(tmp_path / "a.ckpt", finished=False)
    with pytest.raises(RunError, match="unfinished"):
        planned(path, tmp_path)
    with pytest.raises(ValueError, match="the configuration asks for ann_resnet_small"):
        planned(write_teacher(tmp_path / "a.ckpt"), tmp_path, cells={"KD": {"model.teacher.options.widths": [2, 3, 5]}})
    # A method that needs no teacher does not ask for the file.
    assert planned(str(tmp_path / "none.ckpt"), tmp_path, cells={"CE": {"model.method.name": "ce"}}).teachers == ()


def test_one_seed_for_all_teachers(tmp_path):
    plan = make_plan(build_grid("x", {**CONTENT, "seeds": 3, "teacher_seed": 7}), tmp_path)
    (teacher,) = plan.teachers
    assert all(stage[stage.index("--seed_everything") + 1] == "7" for stage in teacher.stages)
    assert {s.job.needs for s in plan.students if s.cell.label != "CE"} == {teacher.folder}
    assert len(make_plan(build_grid("x", CONTENT, ["teacher_seed=null"]), tmp_path).teachers) == 2


def test_where_validation_counts_no_teacher_is_tested(tmp_path):
    by_validation = make_plan(build_grid("x", {**CONTENT, "metric": "val/accuracy"}), tmp_path / "x", tmp_path / "t")
    assert {stage[0] for job in by_validation.jobs for stage in job.stages} == {"teacher", "fit"}
    assert planned(write_teacher(tmp_path / "a.ckpt"), tmp_path, metric="val/accuracy").teachers == ()
    by_test = make_plan(build_grid("y", CONTENT), tmp_path / "y", tmp_path / "t")
    teachers = {job.folder for job in by_test.teachers}
    assert teachers == {job.folder for job in by_validation.teachers}
    for plans in ([by_validation, by_test], [by_test, by_validation]):
        both = [job for job in jobs_of(plans) if job.folder in teachers]
        assert [[stage[0] for stage in job.stages] for job in both] == [["teacher", "test"]] * 2
    # What its training has written counts, below the folder that the teacher's record is in.
    job = by_validation.teachers[0]
    log = job.folder / "teacher" / "logs" / "version_0" / "metrics.csv"
    log.parent.mkdir(parents=True)
    log.write_text("epoch,val/accuracy\n0,0.5\n1,0.625\n")
    job.write_record(1.0, finished=True)
    assert job.finished
    assert job.metrics() == {"val/accuracy": 0.625}
    assert not next(j for j in by_test.teachers if j.folder == job.folder).finished  # its test is left


def test_a_run_of_two_grids_is_run_once(tmp_path):
    """An option that is written out is the same run as one left at its default, whatever the cells are called."""
    options = {"model.method.name": "samd"}
    one = {**CONTENT, "cells": {"CE": {"model.method.name": "ce"}, "SAMD": options}}
    two = {**CONTENT, "product": {"model.method.options.scaling": ["softmax", "l2"]}, "options": options}
    two["options"] |= CONTENT["options"]
    del two["cells"]
    plans = share_runs(
        [make_plan(build_grid(name, grid), tmp_path / name, tmp_path / "t") for name, grid in [("1", one), ("2", two)]]
    )
    folders = [[str(s.job.folder.relative_to(tmp_path)) for s in plan.students] for plan in plans]
    assert folders[0] == ["1/CE/seed0", "1/SAMD/seed0", "1/CE/seed1", "1/SAMD/seed1"]
    assert folders[1] == ["1/SAMD/seed0", "2/scaling=l2/seed0", "1/SAMD/seed1", "2/scaling=l2/seed1"]
    assert len(jobs_of(plans)) == 2 + 6
    assert [s.folder for s in plans[1].students[:2]] == ["../1/SAMD/seed0", "scaling=l2/seed0"]
    # A run that is not tested is none that is.
    tested = make_plan(build_grid("3", {**one, "metric": "val/accuracy"}), tmp_path / "3", tmp_path / "t")
    assert all(s.job.folder.is_relative_to(tmp_path / "3") for s in share_runs([plans[0], tested])[1].students)


def test_a_sweep_with_a_given_teacher(tmp_path, monkeypatch, capsys):
    """Real runs; then the same sweep by the file that it has left, the teacher lying elsewhere: all is finished."""
    monkeypatch.chdir(tmp_path)
    write_teacher("a.ckpt")
    cells = {"KD": {"model.method.name": "kd"}}
    Path("grid.yaml").write_text(json.dumps({**CONTENT, "cells": cells, "seeds": 1}))
    settings = ["model.network.options={widths: [4, 6, 8], time_steps: 1}", "data.train_samples=60"]
    settings += ["trainer.max_epochs=1", "model.teacher.checkpoint=a.ckpt"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert cli.main(["sweep", "grid.yaml", "--out", "out", *arguments]) == 0, capsys.readouterr().err
    with Path("out/table.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    result = json.loads(next(Path("out/teachers").glob("*/teacher/test.json")).read_text())
    assert float(row["teacher_accuracy"]) == pytest.approx(100 * result["metrics"]["test/accuracy"])
    assert yaml.safe_load(Path("out/grid.yaml").read_text())["options"]["trainer.max_epochs"] == 1
    Path("a.ckpt").rename("b.ckpt")
    capsys.readouterr()
    again = ["out/grid.yaml", "--out", "out", "--set", "model.teacher.checkpoint=b.ckpt", "--dry_run"]
    assert cli.main(["sweep", *again]) == 0
    assert "0 of 2 runs are left" in capsys.readouterr().out


def test_some_cells_alone(tmp_path, monkeypatch, capsys):
    """By label or coordinate, with the teachers that they need; the table has all."""
    cells = {"CE": {"model.method.name": "ce"}, "KD": {"model.method.name": "kd"}}
    grid = {
        **CONTENT,
        "seeds": 1,
        "cells": cells,
        "product": {"model.network.options.time_steps": [1, 2]},
        "baseline": "CE",
    }
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    monkeypatch.chdir(tmp_path)
    ran = []
    monkeypatch.setattr("ckdsnn.sweep.run.run_jobs", lambda jobs, *at, **options: ran.append(jobs) or Outcome())
    call = ["sweep", "grid.yaml", "--out", "out"]
    for only in (["CE"], ["CE, T=2", "KD, T=1"]):
        assert cli.main([*call, *(part for name in only for part in ("--only", name))]) == 0
    names = [[job.name.removeprefix("teacher ") for job in jobs] for jobs in ran]
    assert names == [
        ["CE, T=1, seed 0", "CE, T=2, seed 0"],
        ["ann_resnet_small (40 epochs), seed 0", "CE, T=2, seed 0", "KD, T=1, seed 0"],
    ]
    assert len(Path("out/runs.csv").read_text().splitlines()) == 5
    # A second grid says which of its runs are those of the first one.
    Path("other.yaml").write_text(
        json.dumps({**grid, "cells": {"CE": cells["CE"], "NLD": {"model.method.name": "nld"}}})
    )
    capsys.readouterr()
    assert cli.main(["sweep", "grid.yaml", "other.yaml", "--dry_run"]) == 0
    said = capsys.readouterr().out.splitlines()
    of = [line.split()[0] for line in said if line.split()[0] in ("to", "shared")]
    assert of == ["to"] * 5 + ["shared"] * 3 + ["to"] * 2  # teacher, CE, CE, KD, KD; teacher, CE, CE, NLD, NLD
    assert said[-1] == "all grids: 7 of 7 runs are left"
    assert cli.main([*call, "--only", "KDD"]) == 1
    assert "--only KDD: there is no such cell; cells: CE, T=1, CE, 1, CE, T=2" in capsys.readouterr().err
