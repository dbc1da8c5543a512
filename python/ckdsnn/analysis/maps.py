"""Where teacher and student look, sample by sample, and what noise does to their logits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ckd_kernels import sam
from ckdsnn.analysis.agreement import (
    TOP,
    box_region,
    enlarged,
    entropy,
    intersection_over_union,
    map_cosine,
    map_divergence,
    points_into,
    top_region,
)
from ckdsnn.data import Batch
from ckdsnn.losses import FrozenTeacher, Method, NLDOptions, SAMDOptions, build_method, grad_cam_spiking
from ckdsnn.losses.methods.terms import NLDTerm, SAMDTerm
from ckdsnn.losses.resize import resize_to
from ckdsnn.models import ANN, SNN
from ckdsnn.models.outputs import resolve_stage


@dataclass(frozen=True)
class TeacherMaps:
    """What a teacher says and where it looks, on the CPU.

    Attributes:
        indices, targets: of the samples, int64 [N].
        logits: [N, K].
        maps: Grad-CAM [N, h, w].
        shown: images of the samples that are to be drawn, by index, [C, H, W] or frames [T, C, H, W].
        size: H, W of the images.
    """

    indices: Tensor
    targets: Tensor
    logits: Tensor
    maps: Tensor
    shown: dict[int, Tensor]
    size: tuple[int, int]


@dataclass(frozen=True)
class StudentMaps:
    """What a student says and where it looks, on the CPU.

    Attributes:
        label: for figures and tables, unlike that of every other student beside it.
        logits: [N, K].
        sam: its spike activation maps [N, H, W].
        grad_cam: its Grad-CAM of the label's logit, through surrogate gradients, [N, H, W].
    """

    label: str
    logits: Tensor
    sam: Tensor
    grad_cam: Tensor


@dataclass(frozen=True)
class Places:
    """Which maps are compared.

    Attributes:
        stage: of the student, from 1 or negative from the end.
        teacher_stage: of the teacher.
        teacher_map: see :func:`~ckdsnn.losses.saliency_map`.
    """

    stage: int = -1
    teacher_stage: int = -1
    teacher_map: str = "grad_cam"

    @classmethod
    def of(cls, method: Method) -> Places:
        """What the method has compared in training, at its last stage; else Grad-CAM at the last stage."""
        for term in method.modules():
            if isinstance(term, SAMDTerm):
                return cls(term.stages[-1], term.teacher_stages[-1], term.options.teacher_map)
        return cls()


def teacher_maps(teacher: ANN, batches: Iterable[Batch], places: Places, shown: Iterable[int]) -> TeacherMaps:
    """Runs a teacher, in eval mode, over the samples.

    Raises:
        ValueError: a stage that it does not have, or of which its logits are independent.
    """
    options = SAMDOptions(teacher_stages=(places.teacher_stage,), teacher_map=places.teacher_map)
    method = build_method("samd", teacher_stages=options.teacher_stages, teacher_map=options.teacher_map)
    frozen, wanted = FrozenTeacher(teacher, method), set(shown)
    parts: list[tuple[Tensor, ...]] = []
    images: dict[int, Tensor] = {}
    size = (0, 0)
    for batch in batches:
        out = frozen(batch.images, batch.targets)
        parts.append((batch.indices, batch.targets, out.logits.float(), out.cams[places.teacher_stage]))
        by_sample = batch.images.transpose(0, 1) if batch.images.dim() == 5 else batch.images
        for place, index in enumerate(batch.indices.tolist()):
            if index in wanted:
                images[index] = by_sample[place].cpu()
        size = (batch.images.shape[-2], batch.images.shape[-1])
    indices, targets, logits, maps = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return TeacherMaps(indices, targets, logits, maps, images, size)


def student_maps(network: SNN, batches: Iterable[Batch], stage: int = -1, label: str = "student") -> StudentMaps:
    """Runs a student, in eval mode, over the samples.

    Raises:
        ValueError: a stage that it does not have.
    """
    number = resolve_stage(stage, network.num_stages)
    parts: list[tuple[Tensor, ...]] = []
    for images, targets, _ in batches:
        with torch.enable_grad():
            out = network(images)
            features = out.features[number]
            cam = grad_cam_spiking(out.step_logits, features, targets)
        parts.append((out.logits.detach().float(), sam(features.detach()), cam.detach()))
    logits, sams, cams = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return StudentMaps(label, logits, sams, cams)


@dataclass(frozen=True)
class Scores:
    """Agreement of one kind of map with the teacher's, and with where the object is, one value a sample.

    Attributes:
        kl: see :func:`~ckdsnn.analysis.agreement.map_divergence`.
        cosine: of the angle between the two.
        iou: of the fifth of the positions that is highest in each.
        pointing: whether the maximum lies in the box of the object; None: no boxes are known.
        box_iou: of the box and as many highest pixels of the enlarged map.
    """

    kl: Tensor | None
    cosine: Tensor | None
    iou: Tensor | None
    pointing: Tensor | None
    box_iou: Tensor | None

    @classmethod
    def of(
        cls, maps: Tensor, teacher: Tensor | None, boxes: tuple[Tensor, int] | None, size: tuple[int, int]
    ) -> Scores:
        """Scores of maps [N, h, w].

        Args:
            teacher: its maps, resized to h, w where theirs differ; None for its own scores.
            boxes: upper left corners int64 [N, 2] and side of the squares in which the objects are.
            size: H, W of the images.
        """
        kl = cosine = iou = pointing = box_iou = None
        if teacher is not None:
            theirs = resize_to(teacher, maps.shape[1:])
            count = max(1, round(TOP * maps[0].numel()))
            kl, cosine = map_divergence(theirs, maps), map_cosine(theirs, maps)
            iou = intersection_over_union(top_region(theirs, count), top_region(maps, count))
        if boxes is not None:
            box = box_region(*boxes, size)
            pointing = points_into(maps, box)
            box_iou = intersection_over_union(top_region(enlarged(maps, size), boxes[1] ** 2), box)
        return cls(kl, cosine, iou, pointing, box_iou)

    def columns(self) -> dict[str, Tensor]:
        """Those that are known, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Smoothing:
    """What the noise of NLD does to logits.

    Attributes:
        options: of the noise.
        trained: whether the run's method adds that noise; else it is that of NLD's defaults.
        before, after: logarithms of the softened probabilities without and with noise, [N, K] each, by "student" and
            "teacher".
    """

    options: NLDOptions
    trained: bool
    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, method: Method, student_logits: Tensor, teacher_logits: Tensor, seed: int = 0) -> Smoothing:
        """Draws the method's noise once for each sample; where it has none, that of NLD as it is by default.

        Args:
            student_logits, teacher_logits: [N, K] on the CPU.
            seed: of the noise.
        """
        term = next((term for term in method.modules() if isinstance(term, NLDTerm)), None)
        trained = term is not None and term.options.noise != "none"
        if term is None or not trained:
            term = NLDTerm(NLDOptions(), seed)
        made = cls(term.options, trained)
        generator = torch.Generator().manual_seed(seed)
        for name, logits in (("student", student_logits), ("teacher", teacher_logits)):
            made.before[name] = torch.log_softmax(logits / term.options.temperature, 1)
            made.after[name] = term.smoothed(logits, generator).detach()
        return made

    def entropies(self, name: str) -> tuple[Tensor, Tensor]:
        """Entropies without and with noise, in nats, [N] each."""
        return entropy(self.before[name]), entropy(self.after[name])

    def divergences(self) -> tuple[Tensor, Tensor]:
        """``KL(teacher || student)`` of the softened probabilities, without and with noise in the student's: [N]."""
        target = self.before["teacher"]
        without, with_noise = (
            (target.exp() * (target - student["student"])).sum(1) for student in (self.before, self.after)
        )
        return without, with_noise

    def logits(self, name: str) -> tuple[Tensor, Tensor]:
        """Logits without and with noise, less their mean over classes (of which a softmax knows nothing): [N, K]."""
        without, with_noise = (
            self.options.temperature * (x - x.mean(1, keepdim=True)) for x in (self.before[name], self.after[name])
        )
        return without, with_noise
