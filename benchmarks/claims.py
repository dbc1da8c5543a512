"""What the paper claims and leaves open, as comparisons of cells of packaged grids: docs/verdicts.md is made of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Two cells of a grid.

    Attributes:
        grid: name of a packaged grid.
        cell, baseline: their labels.
        condition: what is particular about it among the comparisons of its claim, as in "holds if: T = 1".
        metric: of the runs.
    """

    grid: str
    cell: str
    baseline: str
    condition: str = ""
    metric: str = "test/accuracy"

    def words(self) -> str:
        said = f"{self.cell} against {self.baseline}"
        told = not self.condition or self.condition in (self.cell, f"against {self.baseline}")
        return said if told else f"{self.condition}: {said}"


@dataclass(frozen=True)
class Claim:
    """A claim: that the cells' values differ in the direction of `sign`, or by less than `within`.

    Attributes:
        words: as it stands in the document.
        comparisons: it holds where it holds in all of them.
        sign: 1: the cell's value is above that of its baseline, -1: below.
        within: the difference is smaller than this; None: there is one.
    """

    words: str
    comparisons: tuple[Comparison, ...]
    sign: int = 1
    within: float | None = None


def _each(grid: str, cells: tuple[str, ...], baseline: str, metric: str = "test/accuracy") -> tuple[Comparison, ...]:
    return tuple(Comparison(grid, cell, baseline, cell, metric) for cell in cells)


def _over(grid: str, cell: str, baselines: tuple[str, ...]) -> tuple[Comparison, ...]:
    return tuple(Comparison(grid, cell, baseline, f"against {baseline}") for baseline in baselines)


def _along(grid: str, cell: str, baseline: str, key: str, values: tuple[object, ...]) -> tuple[Comparison, ...]:
    return tuple(
        Comparison(grid, f"{cell}, {key}={value}", f"{baseline}, {key}={value}", f"{key} {value}") for value in values
    )


BOTH = "SAMD + NLD"
SMOOTHED = ("CE, smoothing 0.1", "CE, smoothing 0.3", "CE, smoothing 0.6")
OTHERS = ("KD", "DKD", "CAT-KD", "e2KD", "KDSNN", "BKDSNN", "TSER", "HTA-KL", "SEAL", "decoupled")
STEPS, EPOCHS, ERRORS = (1, 2, 4, 8), (1, 3, 10, 40), (0.25, 0.5, 0.75, 1.0)
WEIGHTS = (0.5, 1.0, 2.0, 4.0)
IOU, KL = "test/mean_iou", "test/kl"


def _of_teachers(baseline: str) -> tuple[Comparison, ...]:
    """Both terms against a baseline, with teachers of the student's own 300 digits, and of all 897."""
    return (
        Comparison("components", BOTH, baseline, "teacher of 300 digits"),
        Comparison("demo", BOTH, baseline, "teacher of 897 digits"),
    )


def _gaussian_over_others(metric: str = "test/accuracy") -> tuple[Comparison, ...]:
    """With the same standard deviation."""
    return tuple(
        Comparison("distribution", f"gaussian, lambda={v}", f"{other}, std, lambda={v}", f"{other}, lambda {v}", metric)
        for v in (0.1, 0.5, 1.0)
        for other in ("laplace", "uniform", "gumbel")
    )


def _learned_over_fixed(metric: str = "test/accuracy") -> tuple[Comparison, ...]:
    return tuple(
        Comparison("learned_strength", f"from {v}, prior 0.1", f"fixed {v}", f"from {v}", metric) for v in (0.1, 0.5)
    )


def _weights(beta: float, gamma: float, of_beta: float, of_gamma: float, condition: str) -> Comparison:
    cells = [f"beta={b}, gamma={g}" for b, g in ((beta, gamma), (of_beta, of_gamma))]
    return Comparison("beta_gamma", *cells, condition)


def _of_epochs(*methods: str) -> tuple[Comparison, ...]:
    """Teachers of 40 epochs against those of one."""
    return tuple(Comparison("teacher_quality", f"{m}, epochs=40", f"{m}, epochs=1", m) for m in methods)


CLAIMS = (
    Claim("SAMD + NLD beats training without a teacher", _of_teachers("CE")),
    Claim("SAMD + NLD beats plain distillation (KD)", _of_teachers("KD")),
    Claim("SAMD alone beats training without a teacher", _over("components", "SAMD", ("CE",))),
    Claim("NLD alone beats training without a teacher", _over("components", "NLD", ("CE",))),
    Claim("the two terms together beat each of them alone", _over("components", BOTH, ("SAMD", "NLD"))),
    Claim("SAMD adds to plain distillation of the logits", _over("components", "SAMD + KD", ("KD",))),
    Claim("NLD beats the same distillation without noise", _over("noise", "adaptive", ("none",))),
    Claim("CKDSNN beats the other methods", _over("baselines", "CKDSNN", OTHERS)),
    Claim(
        "the released code's gain is not that of its network (a ReLU at the end, a head of two layers) alone",
        (Comparison("baselines", "CKDSNN, released code", "CE, released code's network"),),
    ),
    Claim(
        "the released code's losses beat training without a teacher in a network that spikes throughout",
        (Comparison("baselines", "CKDSNN, released code, own network", "CE"),),
    ),
    Claim("with the same number of time steps it beats CE at every T", _along("time_steps", BOTH, "CE", "T", STEPS)),
    Claim("with the same number of time steps it beats KD at every T", _along("time_steps", BOTH, "KD", "T", STEPS)),
    Claim(
        "SAMD + NLD beats training without a teacher with other weights, too (open: beta and gamma alike)",
        tuple(_weights(v, v, 0.0, 0.0, f"weights {v}") for v in WEIGHTS),
    ),
    Claim(
        "half or twice the weight of a term makes little difference (less than 2 points; open)",
        tuple(
            _weights(beta, gamma, 1.0, 1.0, f"beta {beta}, gamma {gamma}")
            for beta, gamma in ((0.5, 1.0), (2.0, 1.0), (1.0, 0.5), (1.0, 2.0))
        ),
        within=2.0,
    ),
    Claim(
        "softmax is the best scaling of the maps (then z-score, none, L2)",
        _over("scaling", "softmax", ("z-score", "none", "l2")),
    ),
    Claim(
        "the last stage is the one to align",
        tuple(
            Comparison("stage", "stages=last", f"stages={other}", f"against the {other}")
            for other in ("second last", "third last")
        ),
    ),
    Claim("CAM-SAM beats CAM-CAM, whose student map needs surrogate gradients", _over("cam", "CAM-SAM", ("CAM-CAM",))),
    Claim(
        "lambda within [0.05, 0.15] makes little difference (less than 2 points)",
        tuple(Comparison("lambda", f"lambda={v}", "lambda=0.1", f"lambda {v}") for v in (0.05, 0.15)),
        within=2.0,
    ),
    Claim(
        "a strong noise does harm (how strong: open)",
        tuple(
            Comparison("lambda", f"lambda={v}", "lambda=0.1", f"lambda {v}") for v in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
        ),
        sign=-1,
    ),
    Claim(
        "noise of the logits' own scale beats a fixed one",
        _over("noise", "adaptive", ("fixed, sigma 0.1", "fixed, sigma 1")),
    ),
    Claim(
        "Gaussian noise is the right one (open: other distributions of the same variance)",
        _gaussian_over_others(),
    ),
    Claim("a learned strength beats the fixed one (open)", _learned_over_fixed()),
    Claim(
        "NLD's noise lowers the KL to the teacher (open), of what the student predicts without noise",
        _each("noise", ("adaptive", "fixed, sigma 0.1", "fixed, sigma 1"), "none", KL),
        sign=-1,
    ),
    Claim(
        "noise of some strength lowers the KL to the teacher (open)",
        tuple(Comparison("lambda", f"lambda={v}", "lambda=0.0", f"lambda {v}", KL) for v in (0.1, 0.25, 0.5, 1.0, 2.0)),
        sign=-1,
    ),
    Claim(
        "Gaussian noise reaches a lower KL to the teacher than other distributions of the same variance (open)",
        _gaussian_over_others(KL),
        sign=-1,
    ),
    Claim(
        "a learned strength reaches a lower KL to the teacher than the fixed one (open)",
        _learned_over_fixed(KL),
        sign=-1,
    ),
    Claim(
        "the noise of NLD makes up for a poor teacher (open): NLD beats KD from teachers of few epochs",
        _along("teacher_quality", "NLD", "KD", "epochs", EPOCHS),
    ),
    Claim(
        "SAMD + NLD beats KD from a teacher of any quality (open)",
        _along("teacher_quality", BOTH, "KD", "epochs", EPOCHS),
    ),
    Claim(
        "a better teacher makes a better student (open): 40 epochs against 1, by its logits",
        _of_epochs("KD", "NLD", BOTH),
    ),
    Claim("a better teacher makes a better student (open): 40 epochs against 1, by its maps alone", _of_epochs("SAMD")),
    Claim(
        "a teacher at chance is more than a smoothing of labels (open): KD from it beats CE with smoothed labels",
        _over("label_smoothing", "KD, teacher of 1 epoch", SMOOTHED),
    ),
    Claim(
        "a trained teacher is more than a smoothing of labels (open): KD from it beats CE with smoothed labels",
        _over("label_smoothing", "KD, teacher of 40 epochs", SMOOTHED),
    ),
    Claim(
        "wrong maps do harm (open): SAMD where a share of the maps is wrong",
        tuple(Comparison("cam_error", f"SAMD, cam_error={v}", "SAMD, cam_error=0.0", f"share {v}") for v in ERRORS),
        sign=-1,
    ),
    Claim(
        "the noise of NLD makes up for wrong maps (open): SAMD + NLD beats SAMD where a share of the maps is wrong",
        _along("cam_error", BOTH, "SAMD", "cam_error", ERRORS),
    ),
    Claim(
        "maps that are scaled to a common range a sample beat the others (open: the papers do not say)",
        _over("normalisation", "min-max of a sample", ("min-max of the batch", "z-score", "none")),
    ),
    Claim(
        "a teacher of another architecture helps (open)",
        (
            Comparison("cross_architecture", "ViT -> ResNet", "ResNet alone", "ViT to ResNet"),
            Comparison("cross_architecture", "ResNet -> Spikformer", "Spikformer alone", "ResNet to Spikformer"),
        ),
    ),
    Claim(
        "SAMD helps dense prediction (open): mean IoU of pixels",
        (
            Comparison("dense", "SAMD", "CE", "against CE", IOU),
            Comparison("dense", "SAMD of classes", "CE", "of classes, against CE", IOU),
            Comparison("dense", "KD + SAMD", "KD", "against KD", IOU),
            Comparison("dense", "KD + SAMD of classes", "KD", "of classes, against KD", IOU),
        ),
    ),
    Claim(
        "the student fires less (lower firing rate than without a teacher)",
        (Comparison("components", BOTH, "CE", metric="test/firing_rate"),),
        sign=-1,
    ),
)
