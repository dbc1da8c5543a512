"""The trained teacher: where it comes from, and a table of its answers where they never change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ckdsnn.checkpoint import RunError, load_run
from ckdsnn.configuration import TeacherConfig, as_plain
from ckdsnn.data import Batch
from ckdsnn.losses import FrozenTeacher
from ckdsnn.models import ANN, MODELS, SNN, ANNOutput, make_model
from ckdsnn.models.external import External, untrained_parameters
from ckdsnn.resume import changed_network
from ckdsnn.run_folder import check_finished


def load_teacher(config: TeacherConfig, num_classes: int, in_channels: int) -> ANN:
    """The teacher with its trained weights, from its checkpoint or, for an external model, from where it came.

    What is imported and built is up to `config`. A checkpoint that it names without a model may say which of this
    package's own conventional networks it holds; one that needs code from elsewhere has to be named in `config` too.

    Args:
        config: names the checkpoint or the external model.
        num_classes: of the data.
        in_channels: of the data.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: no checkpoint, or it holds another model, a spiking one, or one for other classes or channels; an
            external model that does not bring trained weights for all of its parameters.
        RunError: the checkpoint cannot be read, is unfinished though `config.unfinished` is false, or its weights do
            not fit its model or are not finite.
    """
    if config.checkpoint is not None:
        model = _from_checkpoint(config, f"teacher.checkpoint {config.checkpoint}", num_classes, in_channels)
    elif config.comes_trained:
        model = _from_elsewhere(config, num_classes, in_channels)
    else:
        raise ValueError(
            "teacher.checkpoint is missing: train one with `ckdsnn teacher` (or both with `ckdsnn distill`)"
        )
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and not value.isfinite().all():
            raise RunError(f"the teacher's {name} has NaN or infinite values, which cannot teach: train it again")
    return model


def _from_elsewhere(config: TeacherConfig, num_classes: int, in_channels: int) -> ANN:
    """An external model that brings its weights."""
    options: External = MODELS.options("external", config.options)
    model = options.build(num_classes, in_channels)
    if options.weights is not None:
        return model  # all of them are in that file
    with torch.random.fork_rng(devices=[]):  # the generator stands elsewhere now, and goes on from here afterwards
        again = options.build(num_classes, in_channels)
    if random := untrained_parameters(model.model, again.model):
        raise ValueError(
            f"the teacher {options.source} brings no trained {', '.join(random[:6])}: its pretraining was for "
            f"another head than that of the data's {num_classes} classes, and what is random cannot teach. Train it on "
            "the data first, with `ckdsnn teacher` (teacher.options.trainable names the layers, e.g. the head alone), "
            "or set teacher.options.weights to a file with all of its weights"
        )
    return model


def _from_checkpoint(config: TeacherConfig, where: str, num_classes: int, in_channels: int) -> ANN:
    assert config.checkpoint is not None
    checkpoint = load_run(config.checkpoint)
    if not config.unfinished:
        check_finished(checkpoint, config.checkpoint)
    made = checkpoint["ckdsnn"]["network"]
    asked = {**made, "name": config.name, "options": as_plain(config.options)}
    if config.name is not None and changed_network(made, asked):
        raise ValueError(
            f"{where} holds {made['name']} with options {made['options']}, the configuration asks for {config.name} "
            f"with {config.options}: name the right file or the right model"
        )
    if made["num_classes"] != num_classes:
        raise ValueError(
            f"{where} has {made['num_classes']} classes, the data has {num_classes}: use a teacher that was trained on "
            "this data set"
        )
    if made["in_channels"] != in_channels:
        raise ValueError(
            f"{where} takes images of {made['in_channels']} channel(s), the data has {in_channels}: use a teacher that "
            "was trained on this data set"
        )
    prefix = "network."
    state = checkpoint["state_dict"]
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if config.name is None:
        model = _own_network(made, weights, where)
    else:
        model = make_model(config.name, num_classes, in_channels, config.options)
    if not isinstance(model, ANN):
        raise ValueError(
            f"{where} holds {made['name']}, a spiking network; the teacher is a conventional one: name its checkpoint"
        )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"the weights in {where} do not fit {made['name']}: {error}") from error
    return model


def _own_network(made: dict[str, Any], weights: dict[str, Tensor], where: str) -> ANN | SNN:
    """The network that a checkpoint names, which must be one of this package's own and of the size of its weights.

    The file may come from anyone: it chooses neither what is imported or called nor how much memory is taken.
    """
    name, options = made["name"], made["options"]
    kind = MODELS.get(name)
    if kind is None or kind is External or not kind.__module__.startswith("ckdsnn.models."):
        raise ValueError(
            f"{where} names the network {name!r:.100} with options {options!r:.300}, which is not this package's own, "
            "and a checkpoint does not decide what is imported: if you trust them, set teacher.name and "
            "teacher.options to the same"
        )
    if not _is_plain(options):
        raise ValueError(f"{where} has options of {name} that are no plain data: {options!r:.300}")

    def built() -> ANN | SNN:
        return make_model(name, made["num_classes"], made["in_channels"], options)

    try:
        with torch.device("meta"):  # takes no memory
            model = built()
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise RunError(f"{where} names {name} with options {options!r:.300}, which cannot be built: {error}") from error
    if isinstance(model, SNN):
        return model  # no teacher, whatever its weights
    wanted = {key: value.shape for key, value in model.state_dict().items()}
    if wanted != {key: getattr(value, "shape", None) for key, value in weights.items()}:
        raise RunError(f"the weights in {where} do not fit {name} with options {options!r:.300}, which it names")
    return built()


def _is_plain(value: Any) -> bool:
    """Whether `value` is what YAML holds."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


class TeacherCache:
    """A frozen teacher's answers to all training samples, computed once.

    They are computed in the data set's order before training starts, not as training meets them: which samples share
    a batch can change the last bits of a sum, and a resumed run must not see other bits than an uninterrupted one.

    Args:
        teacher: in eval mode; in train mode its answers depend on the batch and cannot be kept.
        batches: every training sample once, in the data set's order, not augmented.

    Raises:
        ValueError: the teacher is in train mode.
    """

    def __init__(self, teacher: FrozenTeacher, batches: Iterable[Batch]) -> None:
        if teacher.mode != "eval":
            raise ValueError("teacher.cache needs a teacher in eval mode, but this method runs it in train mode")
        outputs = [teacher(batch.images, batch.targets) for batch in batches]
        first = outputs[0]
        self._classifier_weight = first.classifier_weight
        self._logits = torch.cat([out.logits for out in outputs])
        self._features = {s: torch.cat([out.features[s] for out in outputs]) for s in first.features}
        self._cams = {s: torch.cat([out.cams[s] for out in outputs]) for s in first.cams}

    def __call__(self, batch: Batch) -> ANNOutput:
        """What the teacher says of the batch; `cams` and `features` as the teacher gives them."""
        where = batch.indices
        return ANNOutput(
            self._logits[where],
            {stage: table[where] for stage, table in self._features.items()},
            self._classifier_weight,
            {stage: table[where] for stage, table in self._cams.items()},
        )
