"""`ckdsnn gradient`: what it writes, and what it refuses."""

import csv
import math

import pytest
import torch
from PIL import Image

from ckd_kernels import surrogate
from ckdsnn import cli
from ckdsnn.analysis.gradient import Smoothed
from ckdsnn.analysis.gradient_measure import Looked
from ckdsnn.analysis.gradient_report import Agreement, GradientReport
from ckdsnn.checkpoint import load_checkpoint, save_atomically

SMALL = ["--config", "digits", "--trainer.enable_progress_bar", "false", "--data.train_samples", "60"]
SMALL += ["--model.network.options", '{"widths": [4, 6, 8], "time_steps": 2}', "--trainer.max_epochs", "1"]
SMALL += ["--model.teacher.options", '{"widths": [4, 6, 8]}', "--model.teacher.epochs", "1"]


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """A run whose neurons fire, as those of a trained one do."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    for verb in ("teacher", "fit"):
        assert run(verb, *SMALL, "--out", out) == 0
    checkpoint = load_checkpoint(out / "last.ckpt")
    for name, value in checkpoint["state_dict"].items():
        if name.startswith("network.") and name.endswith("bias") and "head" not in name:
            value.fill_(0.7)
    save_atomically(checkpoint, out / "last.ckpt")
    return out


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


QUICK = ["--draws", "64", "--surrogates", "sigmoid", "rectangle", "--alphas", "4", "1", "--noise", "0.5"]


def test_gradient_of_a_run(distilled, capsys):
    options = [*QUICK, "--time_steps", 1, 2, "--step_sizes", 1, 0.1, "--samples", 3]
    assert run("gradient", distilled, *options) == 0
    shown = capsys.readouterr().out
    assert "3 test samples" in shown
    assert "stage 2 of 3" in shown
    assert max(map(len, shown[: shown.index("\nwrote")].splitlines()[1:])) <= 104
    checks = shown[shown.index("must agree") : shown.index("Grad-CAM's channel")]
    assert checks.count("1.000000") == 3
    rows = rows_of(distilled / "gradient" / "gradient.csv")
    assert len(rows) == 2 * (1 + 2 * 2) * (2 + 1)  # T x surrogates x references
    assert {row["surrogate"] for row in rows if row["trained_with"] == "1"} == {"triangle"}
    assert [float(row["size"]) for row in rows[:3]] == [0.1, 1.0, 0.5]
    assert {row["full_width"] for row in rows if row["surrogate"] == "rectangle"} == {"0.25", "1.0"}
    first = rows[0]
    assert f"{float(first['cosine']):.3f} ± {float(first['cosine_error']):.3f}" in shown
    for row in rows:
        assert -1 <= float(row["cosine"]) <= 1
        assert 0 <= float(row["angle_degrees"]) <= 180
        assert row["n"] == "3"
    references = rows_of(distilled / "gradient" / "references.csv")
    assert [row["draws"] for row in references if row["reference"] == "smoothed"] == ["4", "8", "16", "32"] * 2
    samples = rows_of(distilled / "gradient" / "samples.csv")
    assert [(row["time_steps"], row["index"]) for row in samples] == [(t, str(i)) for t in "12" for i in range(3)]
    assert "grad_cam_smoothed_correlation" in samples[0]
    with Image.open(distilled / "gradient" / "gradient.png") as figure:
        assert figure.width > 1500


def test_samples_by_their_numbers_and_again_the_same(distilled, tmp_path, capsys):
    options = [*QUICK, "--time_steps", 2, "--indices", 5, 2, "--stage", 1]
    texts = []
    for name in ("a", "b"):
        assert run("gradient", distilled, *options, "--out", tmp_path / name) == 0
        texts.append((tmp_path / name / "gradient.csv").read_text())
    assert texts[0] == texts[1]
    assert [row["index"] for row in rows_of(tmp_path / "a" / "samples.csv")] == ["2", "5"]
    assert "stage 1 of 3" in capsys.readouterr().out
    assert run("gradient", distilled, *options, "--seed", 1, "--out", tmp_path / "c") == 0
    assert (tmp_path / "c" / "gradient.csv").read_text() != texts[0]


def test_what_cannot_be_measured(distilled, capsys):
    def failing(*arguments):
        try:
            status = run("gradient", distilled, *arguments)
        except SystemExit as stopped:
            status = stopped.code
        shown = capsys.readouterr().err
        assert status in (1, 2)
        assert "Traceback" not in shown
        return shown

    assert "--surrogates sigmod: known are atan, erf" in failing("--surrogates", "sigmod")
    assert "--indices 600: the test part has 600 samples" in failing("--indices", 2, 600)
    assert "--stage -1: no neuron lies behind it" in failing("--stage", -1)
    assert "stage 7 does not exist" in failing("--stage", 7)
    for option in ("--alphas", "--noise", "--step_sizes"):
        for value in ("0", "-1", "nan", "inf", "x"):
            assert f"must be a number above 0, got '{value}'" in failing(f"{option}={value}")
    assert "at least 1" in failing("--draws", 0)


def looked(own, reference):
    """Of two samples, two channels and two positions, with one reference of each kind."""
    features = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]).repeat(2, 1, 1, 1)
    smoothed = Smoothed(reference.repeat(16, 1, 1), 64, 0.75)
    return Looked(features, features.mean(1), own, {surrogate.Sigmoid(2.0): -own}, {0.1: reference}, {0.5: smoothed})


def test_scores_by_hand():
    own, reference = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[1.0, 1.0], [3.0, 4.0]])
    made = looked(own, reference)
    agreement = Agreement.of(made, own, reference)
    torch.testing.assert_close(agreement.cosine, torch.tensor([1 / math.sqrt(2), 1.0]))
    torch.testing.assert_close(agreement.degrees, torch.tensor([45.0, 0.0]), atol=0.1, rtol=0)
    # The maps are relu(w) here; a constant one, (1, 1), correlates with nothing.
    assert agreement.correlation.tolist() == pytest.approx([0.0, 1.0])
    report = GradientReport({4: made}, surrogate.Triangle(1.0), 4, None, torch.ones(2, 1, 2), [7, 9])
    assert report.own_steps == report.shown_steps == 4
    rows = list(csv.DictReader(report.csv().splitlines()))
    mean = (1 / math.sqrt(2) + 1) / 2
    assert [float(row["cosine"]) for row in rows] == pytest.approx([mean, mean, -mean, -mean])
    assert float(rows[0]["cosine_error"]) == pytest.approx((1 - 1 / math.sqrt(2)) / 2)  # |a - b| / sqrt(2) / sqrt(2)
    assert "0.854 ± 0.146" in report.references_table()
    assert " 75 %" in report.references_table()
    assert made.smoothed[0.5].ceiling() == pytest.approx(1)


def test_parts_are_put_together():
    one, two = (looked(torch.full((2, 2), value), torch.ones(2, 2)) for value in (1.0, 2.0))
    both = Looked.together([one, two])
    assert both.own.tolist() == [[1.0, 1.0]] * 2 + [[2.0, 2.0]] * 2
    assert both.smoothed[0.5].groups.shape == (16, 4, 2)
    assert both.differences[0.1].shape == both.surrogates[surrogate.Sigmoid(2.0)].shape == (4, 2)
    assert both.smoothed[0.5].same == 0.75
