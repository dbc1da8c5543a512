"""Agreement of maps and the effect of noise, as tables, CSV and words."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from torch import Tensor

from ckdsnn.analysis.maps import Scores, Smoothing, StudentMaps, TeacherMaps

Scored = dict[tuple[str, str], Scores]  # by the student's label ("" for the teacher) and kind of map

TITLES = {"kl": "KL, nats", "cosine": "cosine", "iou": "IoU top 20%", "pointing": "pointing", "box_iou": "IoU box"}


def score(teacher: TeacherMaps, students: Sequence[StudentMaps], boxes: tuple[Tensor, int] | None) -> Scored:
    """Scores of the teacher's map against the boxes, and of both maps of every student against teacher and boxes."""
    scored = {("", "teacher CAM"): Scores.of(teacher.maps, None, boxes, teacher.size)}
    for student in students:
        for kind, maps in (("SAM", student.sam), ("Grad-CAM", student.grad_cam)):
            scored[student.label, kind] = Scores.of(maps, teacher.maps, boxes, teacher.size)
    return scored


def table(scored: Scored) -> str:
    """Means over the samples and their standard errors, for a terminal of 100 columns."""
    columns = [name for name in TITLES if any(name in scores.columns() for scores in scored.values())]
    head = f"{'student':<12} {'map':<11} " + " ".join(f"{TITLES[name]:>14}" for name in columns)
    lines = [head, "-" * len(head)]
    for (label, kind), scores in scored.items():
        if known := scores.columns():
            cells = [_mean(known[name]) if name in known else "" for name in columns]
            name = label if len(label) <= 12 else "..." + label[-9:]
            lines.append(f"{name:<12} {kind:<11} " + " ".join(f"{cell:>14}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def _mean(values: Tensor) -> str:
    values = values.double()
    error = f" ± {float(values.std() / len(values) ** 0.5):.3f}" if len(values) > 1 else ""
    return f"{float(values.mean()):.3f}{error}"


def smoothing_words(smoothing: Smoothing, label: str) -> str:
    """Whether the noise smooths: what it does to the entropies, with a confidence interval."""
    options = smoothing.options
    if smoothing.trained:
        lines = [f"noise of the run's method ({label}), softmax(z / {options.temperature:g}):"]
    else:
        lines = [
            f"the run's method adds no noise; that of nld by default ({label}), softmax(z / {options.temperature:g}):"
        ]
    for name in ("student", "teacher"):
        before, after = (values.double() for values in smoothing.entropies(name))
        change = after - before
        half = f" ± {1.96 * float(change.std()) / len(change) ** 0.5:.4f}" if len(change) > 1 else ""
        lines.append(
            f"  {name} entropy {float(before.mean()):.4f} -> {float(after.mean()):.4f} nats, change "
            f"{float(change.mean()):+.4f}{half} (95 %); higher in {100 * float((change > 0).double().mean()):.0f} % of "
            "samples"
        )
    without, with_noise = (values.double() for values in smoothing.divergences())
    lines.append(f"  KL(teacher || student) {float(without.mean()):.4f} -> {float(with_noise.mean()):.4f} nats")
    return "\n".join(lines)


def agreement_csv(teacher: TeacherMaps, students: Sequence[StudentMaps], scored: Scored) -> str:
    """A line a checkpoint and sample; scores as `sam_kl`, `grad_cam_kl`, ..., `teacher_pointing`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    prefixes = {"sam": "SAM", "grad_cam": "Grad-CAM"}
    of_teacher = scored["", "teacher CAM"].columns()
    for number, student in enumerate(students):
        columns: dict[str, list[object]] = {
            "student": [student.label] * len(student.logits),
            "index": teacher.indices.tolist(),
            "target": teacher.targets.tolist(),
            "teacher_prediction": teacher.logits.argmax(1).tolist(),
            "student_prediction": student.logits.argmax(1).tolist(),
        }
        for prefix, kind in prefixes.items():
            for name, values in scored[student.label, kind].columns().items():
                columns[f"{prefix}_{name}"] = _plain(values)
        for name, values in of_teacher.items():
            columns[f"teacher_{name}"] = _plain(values)
        if number == 0:
            writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def logits_csv(teacher: TeacherMaps, smoothing: Smoothing) -> str:
    """A line a sample: entropies of student and teacher without and with noise, and the divergence between the two."""
    columns: dict[str, list[object]] = {"index": teacher.indices.tolist()}
    for name in ("student", "teacher"):
        before, after = smoothing.entropies(name)
        columns |= {f"{name}_entropy": _plain(before), f"{name}_entropy_with_noise": _plain(after)}
    without, with_noise = smoothing.divergences()
    columns |= {"kl": _plain(without), "kl_with_noise": _plain(with_noise)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _plain(values: Tensor) -> list[object]:
    return [int(value) if isinstance(value, bool) else value for value in values.tolist()]
