"""docs/verdicts.md: what the CSVs of the sweeps say of each claim."""

import pytest
import verdicts
from claims import CLAIMS, Claim, Comparison

from ckdsnn.sweep.grid import GRIDS, load_grid
from sweep_csv import write_runs


def test_claims_name_cells_that_there_are():
    labels = {path.stem: {cell.label for cell in load_grid(path.stem).cells} for path in GRIDS.glob("*.yaml")}
    for claim in CLAIMS:
        assert claim.comparisons
        for comparison in claim.comparisons:
            assert {comparison.cell, comparison.baseline} <= labels[comparison.grid], comparison


def said(claim, results):
    return verdicts.verdict(claim, verdicts.findings(claim, results))


def test_verdicts(tmp_path):
    runs = {"CE": (0.50, 0.52, 0.51), "KD": (0.60, 0.62, 0.61), "SAMD": (0.40, 0.42, 0.41), "NLD": (0.50, 0.53, 0.50)}
    write_runs(tmp_path, "components", runs)

    def of(*cells, **options):
        comparisons = tuple(Comparison("components", cell, "CE", cell) for cell in cells)
        return said(Claim("words", comparisons, **options), tmp_path)

    assert of("KD") == "**holds**"
    assert of("SAMD") == "**does not**"
    assert of("SAMD", sign=-1) == "**holds**"
    assert of("NLD") == "**not shown**"
    assert of("SAMD", "NLD") == "**not shown**"
    assert of("KD", "SAMD") == "**holds if**: KD"
    assert of("NLD", within=4.0) == "**holds**"
    assert of("NLD", within=1.0) == "**not shown**"
    assert of("KD", within=2.0) == "**does not**"
    assert of("SAMD + NLD") == "**not run** (`components`)"
    assert of("KD", "SAMD + NLD") == "**holds** (1 of 2 comparisons not run)"


def test_some_of_many_hold_after_holms_correction_alone(tmp_path):
    """Gains of three seeds with means and deviations of which t, and so p by Student's table, is known."""
    zero = (0.5, 0.5, 0.5)
    shape = (-1.0, 0.0, 1.0)  # of mean 0 and deviation 1: t is 3^0.5 times the mean

    def gains(t):
        return tuple(0.5 + 0.01 * (t / 3**0.5 + offset) for offset in shape)

    # Two-sided p with two degrees of freedom: 0.05 at 4.303, 0.025 at 6.205, 0.0125 at 8.860, 0.01 at 9.925.
    values = {"CE": zero, "KD": gains(10.0), "NLD": gains(6.3), "SAMD": gains(4.5), "SAMD + KD": gains(0.0)}
    write_runs(tmp_path, "components", values)

    def of(*cells):
        claim = Claim("words", tuple(Comparison("components", cell, "CE", cell) for cell in cells))
        return said(claim, tmp_path), verdicts.findings(claim, tmp_path)

    verdict, found = of("KD", "NLD", "SAMD", "SAMD + KD")
    assert [finding.said for finding in found] == ["holds", "holds", "holds", "not shown"]
    assert found[0].holds == pytest.approx(0.00985, abs=2e-5)
    assert found[2].holds == pytest.approx(0.0460, abs=2e-4)
    # 4 x 0.0099 < 0.05, but 3 x 0.0243 is not; without the first, neither; alone or with all others, all of them.
    assert verdict == "**holds if**: KD"
    assert of("NLD", "SAMD + KD")[0] == "**holds if**: NLD"
    assert of("NLD", "SAMD", "SAMD + KD")[0] == "**not shown**"
    assert of("KD", "NLD", "SAMD")[0] == "**holds**"
    assert [f.comparison.cell for f in verdicts.holm(of("SAMD", "NLD", "KD")[1])] == ["SAMD", "NLD", "KD"]


def test_verdicts_are_a_line_a_claim_and_a_line_a_comparison(tmp_path, monkeypatch):
    kl = tuple(Comparison("noise", cell, "none", cell, "test/kl") for cell in ("adaptive", "fixed, sigma 1"))
    claims = (
        Claim("first", (Comparison("components", "KD", "CE", "here"), Comparison("components", "NLD", "CE", "NLD"))),
        Claim("second", (Comparison("dense", "SAMD", "CE", metric="test/mean_iou"),)),
        Claim("third", kl, sign=-1),
    )
    monkeypatch.setattr(verdicts, "CLAIMS", claims)
    write_runs(tmp_path, "components", {"CE": (0.5, 0.52), "KD": (0.6, 0.62), "NLD": (0.4, 0.7)})
    write_runs(tmp_path, "noise", {"none": (0.5, 0.6), "adaptive": (0.4, 0.5), "fixed, sigma 1": (0.6, 0.7)}, "test/kl")
    assert verdicts.verdicts(tmp_path).splitlines() == [
        "| claim | verdict |",
        "|:---|:---|",
        "| 1. first | **holds if**: here |",
        "| 2. second | **not run** (`dense`) |",
        "| 3. third | **holds if**: adaptive |",
        "",
        "The evidence:",
        "",
        "| claim | comparison | paired difference [95 % CI] | seeds ahead | shows | grid |",
        "|:---|:---|---:|---:|:---|:---|",
        "| 1. first | here: KD against CE | +10.0 [+10.0, +10.0] | 2 of 2 | holds | `components` |",
        "|  | NLD against CE | +4.0 [-173.9, +181.9] | 1 of 2 | not shown | `components` |",
        "| 3. third | KL to the teacher: adaptive against none | -0.100 [-0.100, -0.100] nats | 2 of 2 | holds "
        "| `noise` |",
        "|  | KL to the teacher: fixed, sigma 1 against none | +0.100 [+0.100, +0.100] nats | 0 of 2 | does not "
        "| `noise` |",
    ]
