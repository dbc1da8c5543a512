"""What a distillation method is: a module from the outputs of student and teacher to named parts of the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ckdsnn import registry
from ckdsnn.losses.arguments import check_target, check_tensor, check_whole
from ckdsnn.losses.divergence import check_logits
from ckdsnn.losses.precision import full_precision, outside_autocast
from ckdsnn.models.base import ANN, SNN
from ckdsnn.models.outputs import ANNOutput, SNNOutput, by_pixel, resolve_stage
from ckdsnn.option_types import Share, Within
from ckdsnn.registry import Registry

MethodType = TypeVar("MethodType", bound="type[Method]")


class Method(nn.Module):
    """Base of all methods: cross-entropy with the labels, plus what a subclass adds in :meth:`distill`.

    A subclass has its options as a dataclass in it, ``Options``, says what it needs by the attributes below,
    implements :meth:`distill`, and registers itself; nothing else has to know of it.  Its parameters (projections,
    learnable scales) train with the student.

    Args:
        options: of the class's own ``Options``; None: their defaults.

    Raises:
        TypeError: options of another class.

    Attributes:
        name: under which it is registered.
        needs_teacher: whether there is a teacher at all.
        capturable: whether the loss and its gradients can be captured in a CUDA graph and replayed: nothing in
            :meth:`forward` waits for the device (``item``, ``tolist``, ``cpu``, an ``if`` on a tensor), makes a tensor
            whose shape depends on values (``nonzero``, indexing by a mask), brings one from the host, or counts its
            calls in Python; random numbers come from a :class:`NoiseSource`, and ``epoch`` may be a tensor.  A method
            of which this is not true says False, and is trained without a graph.
        sam_stages: stages whose spike activation map the student must return; build it with them.
        teacher_map: which saliency map of the teacher, see :func:`~ckdsnn.losses.saliency_map`.
        teacher_map_stages, teacher_feature_stages: stages of the teacher whose maps and features are needed.  Negative
            stages count from the end.
        teacher_mode: ``"eval"`` or ``"train"``.
        student_options: options of the student that belong to the method's preset.
    """

    name: ClassVar[str]
    needs_teacher: ClassVar[bool] = True
    capturable: ClassVar[bool] = True
    sam_stages: tuple[int, ...] = ()
    student_feature_stages: tuple[int, ...] = ()
    teacher_map: str = "grad_cam"
    teacher_map_stages: tuple[int, ...] = ()
    teacher_feature_stages: tuple[int, ...] = ()
    teacher_mode: str = "eval"

    @dataclass(frozen=True)
    class Options(registry.Options):
        """Options of all methods.

        Attributes:
            label_smoothing: of the cross-entropy.
        """

        label_smoothing: Share = 0.0

    def __init__(self, options: Options | None = None) -> None:
        super().__init__()
        options = self.Options() if options is None else options
        if not isinstance(options, self.Options):
            raise TypeError(f"options must be {self.Options.__qualname__}, got {options!r:.100}")
        self.options = options
        self.student_options: dict[str, Any] = {}

    def bind(self, student: SNN | ANN, teacher: ANN | None = None) -> Method:
        """Check that student and teacher fit the method and each other, and make the modules that depend on them.

        To be called once, before the optimiser is made.

        Raises:
            ValueError: no teacher where one is needed, other classes, a stage or a map that one of them does not
                return.
            TypeError: a student that does not spike, for a method with a teacher; a teacher that does.
        """
        if not self.needs_teacher:
            return self
        if not isinstance(student, SNN):
            raise TypeError(f"{type(self).__name__} distils into a spiking network, got {type(student).__name__}")
        for stage in self.sam_stages:
            number = resolve_stage(stage, student.num_stages)
            if number not in student.sam_stages:
                raise ValueError(
                    f"the method needs the spike activation map of stage {number}, but the student returns those of "
                    f"{student.sam_stages}; build it with sam_stages={self.sam_stages}"
                )
        for stage in self.student_feature_stages:
            resolve_stage(stage, student.num_stages)
        if teacher is None:
            raise ValueError(f"method {type(self).__name__} needs a teacher, got None")
        if not isinstance(teacher, ANN):
            raise TypeError(f"the teacher must be a conventional network, got {type(teacher).__name__}")
        if student.num_classes != teacher.num_classes:
            raise ValueError(f"the student has {student.num_classes} classes but the teacher {teacher.num_classes}")
        if student.dense != teacher.dense:
            of = {False: "images", True: "pixels"}
            raise ValueError(f"the student classifies {of[student.dense]} but the teacher {of[teacher.dense]}")
        if student.dense and self.teacher_map_stages:
            raise ValueError(
                f"method {type(self).__name__} explains one class an image, but the networks classify pixels; use "
                "samd_dense for maps that keep position"
            )
        if student.num_classes < 2:
            raise ValueError("the networks have one class, whose distribution teaches nothing; use method ce")
        for stage in (*self.teacher_map_stages, *self.teacher_feature_stages):
            resolve_stage(stage, teacher.num_stages)
        self.make_modules(student, teacher)
        return self

    def make_modules(self, student: SNN, teacher: ANN) -> None:
        """Make what depends on the two networks' channels; nothing by default."""

    def forward(
        self, student: SNNOutput, teacher: ANNOutput | None, target: Tensor, *, epoch: float | Tensor = 0.0
    ) -> dict[str, Tensor]:
        """Parts of the loss: scalars by name, the first one ``"ce"``; their sum is the loss.

        Args:
            student: output of the student on the batch.
            teacher: output of the teacher on the same batch; None where ``needs_teacher`` is False.
            target: labels, int64 [B], or [B, H, W] of pixels.
            epoch: epochs done so far, with fraction; for warm-ups.  A number, or a tensor [] on the outputs' device,
                which a captured step needs: a number would be that of the capture for ever.

        Pixels are samples: of networks that classify them, :meth:`distill` gets logits [B*H*W, K], labels [B*H*W], and
        outputs with their ``image_size``.

        Everything is computed outside autocast, and :meth:`distill` gets logits and maps in float32 at least; features
        are what the networks made, maybe of 2 bytes: see :func:`~ckdsnn.losses.precision.mean_over_time` and
        :func:`~ckdsnn.losses.precision.full_precision`.

        Raises:
            TypeError: an output that is none, logits that are no tensor, a target that is not int64.
            ValueError: an output that lacks what the method needs, a target of another shape or (looked at on the CPU
                only) with classes that do not exist.
        """
        if not isinstance(student, SNNOutput if self.needs_teacher else (SNNOutput, ANNOutput)):
            kind = "spiking network" if self.needs_teacher else "network"
            raise TypeError(f"student must be the output of a {kind}, got {type(student).__name__}")
        check_tensor(student.logits, "student.logits")
        if student.logits.dim() not in (2, 4):
            raise ValueError(f"student.logits must be [B, K] or [B, K, H, W], got {list(student.logits.shape)}")
        check_target(target, *student.logits.shape)
        if student.logits.dim() == 4:
            student, target = by_pixel(student), target.flatten()
            if isinstance(teacher, ANNOutput) and teacher.logits.dim() == 4:
                teacher = by_pixel(teacher)
        with outside_autocast(student.logits):
            if not self.needs_teacher:
                return {"ce": self.cross_entropy(student, target)}
            if teacher is None:
                raise ValueError(f"method {type(self).__name__} needs the teacher's output, got None")
            if not isinstance(teacher, ANNOutput):
                raise TypeError(f"teacher must be the output of a conventional network, got {type(teacher).__name__}")
            check_logits(student.logits, teacher.logits)
            # What is small; features are left to those who use them.
            student = dataclasses.replace(
                student,
                logits=full_precision(student.logits),
                step_logits=full_precision(student.step_logits),
                sams={stage: full_precision(sam) for stage, sam in student.sams.items()},
            )
            teacher = dataclasses.replace(
                teacher,
                logits=full_precision(teacher.logits),
                cams={stage: full_precision(cam) for stage, cam in teacher.cams.items()},
            )
            return {"ce": self.cross_entropy(student, target), **self.distill(student, teacher, target, epoch)}

    def cross_entropy(self, student: SNNOutput, target: Tensor) -> Tensor:
        """Cross-entropy of the mean logits."""
        return F.cross_entropy(full_precision(student.logits), target, label_smoothing=self.options.label_smoothing)

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        """The parts that the teacher adds, weighted."""
        raise NotImplementedError(f"{type(self).__name__} needs a teacher and must implement distill")


class NoiseSource(nn.Module):
    """A random generator whose state travels in state_dict, and with it in the checkpoint.

    It starts on the CPU, where the numbers are the same whatever the device of the training; a training step that is
    captured in a CUDA graph needs it on the GPU, see :meth:`to_device`.

    The state of a generator on a GPU means nothing to one on the CPU, and the other way round.  One that was loaded is
    kept until the generator is on that kind of device; until then nothing can be drawn.

    Args:
        seed: of the generator, >= 0.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        check_whole(seed, "seed", low=0)
        self.seed = seed
        self.process = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._state_elsewhere: Tensor | None = None

    @property
    def generator(self) -> torch.Generator:
        """What the numbers are drawn from.

        Raises:
            RunError: the state that was loaded is that of a generator on another kind of device.
        """
        if self._state_elsewhere is not None:
            from ckdsnn.checkpoint import RunError  # here, because it brings Lightning, which losses do without

            raise RunError(
                f"the noise cannot go on: the checkpoint holds the state of a generator on another kind of device than "
                f"{self._generator.device}; go on with the run on the kind of device that it began on"
            )
        return self._generator

    def to_device(self, device: torch.device | str) -> None:
        """Draw on ``device`` from now on.

        Nothing happens where the generator is there already.  On another device of the same kind it goes on with its
        stream; on another kind it goes on from a state of that kind that was loaded, or else starts over with the
        stream of its seed and process there.
        """
        before, loaded = self._generator, self._state_elsewhere
        moved = torch.Generator(device)
        if moved.device == before.device:
            return
        self._generator = moved
        if moved.device.type == before.device.type:
            moved.set_state(before.get_state())
            return
        self.restart(self.process)
        if loaded is not None:
            self.set_extra_state(loaded)

    def restart(self, process: int) -> None:
        """Start over with the stream of process ``process`` of a distributed run; process 0 has that of the seed."""
        self.process = process
        self._state_elsewhere = None
        # A prime beyond the seeds that people choose, so that no two processes of their runs share a stream.
        self._generator.manual_seed(self.seed + 1_000_003 * process)

    def get_extra_state(self) -> Tensor:
        return self._generator.get_state() if self._state_elsewhere is None else self._state_elsewhere

    def set_extra_state(self, state: Tensor) -> None:
        state = state.cpu()
        # Kinds of devices have states of their own sizes: 5,056 bytes on a CPU, 16 on a CUDA GPU.
        if state.numel() == self._generator.get_state().numel():
            self._generator.set_state(state)
            self._state_elsewhere = None
        else:
            self._state_elsewhere = state


@dataclass(frozen=True)
class SeededOptions(Method.Options):
    """Options of methods that draw random numbers.

    Attributes:
        seed: of the random numbers; that of the run where a configuration does not say it.
    """

    seed: Annotated[int, Within(low=0)] = 0


METHODS: Registry[type[Method]] = Registry("method", Method)


def register_method(name: str) -> Callable[[MethodType], MethodType]:
    """Class decorator that makes a method available to :func:`build_method` under ``name``."""

    def add(cls: MethodType) -> MethodType:
        METHODS.register(name)(cls)
        cls.name = name
        return cls

    return add


def build_method(name: str, **options: Any) -> Method:
    """The method registered under ``name``.

    Args:
        name: a key of ``METHODS``, e.g. ``"ckd"``, or ``"MODULE:NAME"``, see :meth:`~ckdsnn.registry.Registry.find`.
        options: of that method, see its ``Options``.

    Raises:
        ValueError: unknown name, or a value that the method refuses.
        TypeError: no name, an option that the method does not have, or a value of another type.

    Example:
        >>> from ckdsnn.losses import build_method
        >>> build_method("kd", tau=2.0).needs_teacher
        True
    """
    return METHODS.find(name)(METHODS.options(name, options))


def step_cross_entropy(student: SNNOutput, target: Tensor, label_smoothing: float) -> Tensor:
    """``mean_t CE(z_t, y)``: cross-entropy of every time step's own logits."""
    steps = len(student.step_logits)
    logits = full_precision(student.step_logits).flatten(0, 1)
    return F.cross_entropy(logits, target.repeat(steps), label_smoothing=label_smoothing)
