"""Gradient errors as tables and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ckd_kernels.surrogate import Surrogate
from ckdsnn.analysis.agreement import map_divergence
from ckdsnn.analysis.gradient import angle, correlation, cosine, full_width
from ckdsnn.analysis.gradient_measure import Checks, Looked
from ckdsnn.losses.resize import resize_to

REFERENCES = {"difference": "finite difference, step", "smoothed": "smoothed, sigma"}


@dataclass(frozen=True)
class Agreement:
    """How well two sets of channel weights agree, one value a sample, [N] each.

    Attributes:
        cosine: of the channel weights, 0 where one is zero.
        degrees: the angle between them.
        correlation: Pearson's of the two maps, 0 where one is constant.
    """

    cosine: Tensor
    degrees: Tensor
    correlation: Tensor

    @classmethod
    def of(cls, looked: Looked, weights: Tensor, reference: Tensor) -> Agreement:
        """Of weights [N, C] with a reference's."""
        cosines = cosine(weights, reference)
        maps = correlation(looked.map_of(weights), looked.map_of(reference))
        return cls(cosines, angle(cosines), maps)


def mean_and_error(values: Tensor) -> tuple[float, float | None]:
    """Mean over the samples and its standard error; None for a single one."""
    values = values.double()
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return float(values.mean()), error


def _show(values: Tensor, digits: int = 3) -> str:
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


@dataclass(frozen=True)
class GradientReport:
    """What was measured of one network at one stage.

    Attributes:
        looked: by number of time steps.
        own: the surrogate that the network was trained with.
        own_steps: the number of time steps that it was trained with.
        checks: None: not run.
        teacher: maps of the teacher at that stage, [N, h, w]; None: there is none.
        samples: which ones.
    """

    looked: dict[int, Looked]
    own: Surrogate
    own_steps: int
    checks: Checks | None
    teacher: Tensor | None
    samples: Sequence[int]

    @property
    def sigma(self) -> float:
        """Of the smoothed gradient that surrogates are compared with where there is room for one: the middle one."""
        sigmas = sorted(next(iter(self.looked.values())).smoothed)
        return sigmas[len(sigmas) // 2]

    @property
    def step(self) -> float:
        """Of the finite difference that stands for all: the middle one."""
        steps = sorted(next(iter(self.looked.values())).differences)
        return steps[len(steps) // 2]

    @property
    def shown_steps(self) -> int:
        """The number of time steps that stands for all: that of the training where it was looked at."""
        return self.own_steps if self.own_steps in self.looked else max(self.looked)

    def checks_table(self) -> str:
        """What must agree if the method is right, least cosine over the samples."""
        assert self.checks is not None
        lines = [
            "must agree where nothing spikes (least cosine of the samples):",
            f"  student's last stage, no neuron behind it: finite difference {self.checks.last_difference:.6f}, "
            f"smoothed {self.checks.last_smoothed:.6f}",
        ]
        if self.checks.teacher is not None:
            lines.append(f"  conventional teacher, same stage: finite difference {self.checks.teacher:.6f}")
        return "\n".join(lines)

    def references_table(self) -> str:
        """The network's own surrogate against every reference."""
        head = (
            f"{'T':>2}  {'reference':<29} {'cosine':>15} {'angle, degrees':>16} {'map correlation':>16} {'at best':>8}"
        )
        head += f" {'same':>6}"
        lines = [head, "-" * len(head)]
        for steps, looked in self.looked.items():
            for (kind, size), reference in looked.references().items():
                agreement = Agreement.of(looked, looked.own, reference)
                best = same = ""
                if kind == "smoothed":
                    best = f"{looked.smoothed[size].ceiling():.3f}"
                    same = f"{100 * looked.smoothed[size].same:.0f} %"
                name = f"{REFERENCES[kind]} {size:g}"
                lines.append(
                    f"{steps:>2}  {name:<29} {_show(agreement.cosine):>15} {_show(agreement.degrees, 1):>16} "
                    f"{_show(agreement.correlation):>16} {best:>8} {same:>6}".rstrip()
                )
        return "\n".join(lines)

    def surrogates_table(self) -> str:
        """Every surrogate against the smoothed gradient, at one number of time steps."""
        looked = self.looked[self.shown_steps]
        reference = looked.smoothed[self.sigma].weights
        names = list(dict.fromkeys(surrogate.name for surrogate in looked.surrogates))
        alphas = sorted({surrogate.alpha for surrogate in looked.surrogates})
        head = f"{'surrogate':<14}" + "".join(f"{f'alpha {alpha:g}':>16}" for alpha in alphas)
        lines = [head, "-" * len(head)]
        for name in names:
            cells = {s.alpha: _show(cosine(w, reference)) for s, w in looked.surrogates.items() if s.name == name}
            lines.append(f"{name:<14}" + "".join(f"{cells[alpha]:>16}" for alpha in alphas))
        return "\n".join(lines)

    def maps(self, steps: int) -> dict[str, Tensor]:
        """The student's maps by what they are, [N, H, W]."""
        looked = self.looked[steps]
        return {
            "SAM": looked.sam,
            "Grad-CAM, surrogate": looked.map_of(looked.own),
            "Grad-CAM, finite difference": looked.map_of(looked.differences[self.step]),
            "Grad-CAM, smoothed": looked.map_of(looked.smoothed[self.sigma].weights),
        }

    def agreement_with_teacher(self, maps: Tensor) -> dict[str, Tensor]:
        """Cosine, correlation and divergence of maps [N, H, W] with the teacher's, [N] each."""
        assert self.teacher is not None
        theirs = resize_to(self.teacher, maps.shape[1:])
        scores = {"cosine": cosine(maps, theirs), "correlation": correlation(maps, theirs)}
        return scores | {"kl": map_divergence(theirs, maps)}

    def teacher_table(self) -> str:
        """The student's maps against the teacher's Grad-CAM at the same stage."""
        head = f"{'T':>2}  {'map of the student':<29} {'cosine':>15} {'correlation':>16} {'KL, nats':>16}"
        lines = [head, "-" * len(head)]
        for steps in self.looked:
            for name, maps in self.maps(steps).items():
                scores = self.agreement_with_teacher(maps)
                lines.append(
                    f"{steps:>2}  {name:<29} {_show(scores['cosine']):>15} {_show(scores['correlation']):>16} "
                    f"{_show(scores['kl'], 4):>16}"
                )
        return "\n".join(lines)

    def csv(self) -> str:
        """A line a number of time steps, surrogate and reference: means over the samples and their standard errors."""
        lines: list[list[object]] = [
            ["time_steps", "surrogate", "alpha", "full_width", "trained_with", "reference", "size", "n", "cosine"]
        ]
        lines[0] += ["cosine_error", "angle_degrees", "angle_error", "map_correlation", "map_correlation_error"]
        for steps, looked in self.looked.items():
            sources = [(self.own, True, looked.own), *((s, False, w) for s, w in looked.surrogates.items())]
            for surrogate, trained, weights in sources:
                for (kind, size), reference in looked.references().items():
                    agreement = Agreement.of(looked, weights, reference)
                    line: list[object] = [steps, surrogate.name, surrogate.alpha, full_width(surrogate), int(trained)]
                    line += [kind, size, len(weights)]
                    for values in (agreement.cosine, agreement.degrees, agreement.correlation):
                        line += mean_and_error(values)
                    lines.append(line)
        return _csv(lines)

    def references_csv(self) -> str:
        """A line a reference: how far it can be trusted.

        `zero` is the share of channels along which a finite difference sees no change at all; `repeatability` the
        cosine of two independent smoothed gradients of `draws` each.
        """
        lines: list[list[object]] = [["time_steps", "reference", "size", "zero", "draws", "repeatability", "same"]]
        for steps, looked in self.looked.items():
            for step, weights in looked.differences.items():
                lines.append([steps, "difference", step, float((weights == 0).double().mean()), None, None, None])
            for sigma, smoothed in looked.smoothed.items():
                for draws, cosines in smoothed.repeatability().items():
                    lines.append([steps, "smoothed", sigma, None, draws, float(cosines.mean()), smoothed.same])
        return _csv(lines)

    def samples_csv(self) -> str:
        """A line a number of time steps and sample: the own surrogate against the references that stand for all, and
        the maps against the teacher's."""
        lines: list[list[object]] = []
        for steps, looked in self.looked.items():
            columns: dict[str, list[object]] = {
                "time_steps": [steps] * len(self.samples),
                "index": list(self.samples),
            }
            for (kind, size), reference in looked.references().items():
                if size == (self.sigma if kind == "smoothed" else self.step):
                    columns[f"{kind}_cosine"] = cosine(looked.own, reference).tolist()
            if self.teacher is not None:
                for name, maps in self.maps(steps).items():
                    key = name.lower().replace("-", "_").replace(", ", "_").replace(" ", "_")
                    for score, values in self.agreement_with_teacher(maps).items():
                        columns[f"{key}_{score}"] = values.tolist()
            if not lines:
                lines.append(list(columns))
            lines += [list(line) for line in zip(*columns.values(), strict=True)]
        return _csv(lines)


def _csv(lines: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
