"""The trained teacher: where it comes from, and a table of its answers where they never change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch

from ckdsnn.checkpoint import load_run
from ckdsnn.configuration import TeacherConfig, as_plain
from ckdsnn.data import Batch
from ckdsnn.losses import FrozenTeacher
from ckdsnn.models import ANN, ANNOutput, build_model
from ckdsnn.run_folder import check_finished


def load_teacher(config: TeacherConfig, num_classes: int, in_channels: int) -> ANN:
    """The teacher with its trained weights, from its checkpoint or, for an external model, from where it came.

    Raises:
        ValueError: no checkpoint, or it holds another model, a spiking one, or one for other classes or channels.
    """
    if config.checkpoint is None and config.comes_trained:
        assert config.name is not None
        return cast(ANN, build_model(config.name, num_classes, in_channels=in_channels, **config.options))
    if config.checkpoint is None:
        raise ValueError(
            "teacher.checkpoint is missing: train one with `ckdsnn teacher` (or both with `ckdsnn distill`)"
        )
    checkpoint = load_run(config.checkpoint)
    if not config.unfinished:
        check_finished(checkpoint, config.checkpoint)
    made = checkpoint["ckdsnn"]["network"]
    if config.name is not None and (config.name, as_plain(config.options)) != (made["name"], made["options"]):
        raise ValueError(
            f"teacher.checkpoint {config.checkpoint} holds {made['name']} with options {made['options']}, the "
            f"configuration asks for {config.name} with {config.options}: name the right file or the right model"
        )
    if made["num_classes"] != num_classes:
        raise ValueError(
            f"teacher.checkpoint {config.checkpoint} has {made['num_classes']} classes, the data has {num_classes}: "
            "use a teacher that was trained on this data set"
        )
    if made["in_channels"] != in_channels:
        raise ValueError(
            f"teacher.checkpoint {config.checkpoint} takes images of {made['in_channels']} channel(s), the data has "
            f"{in_channels}: use a teacher that was trained on this data set"
        )
    model = build_model(made["name"], num_classes=num_classes, in_channels=in_channels, **made["options"])
    if not isinstance(model, ANN):
        raise ValueError(
            f"teacher.checkpoint {config.checkpoint} holds {made['name']}, a spiking network; the teacher is a "
            "conventional one: name its checkpoint"
        )
    prefix = "network."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    model.load_state_dict(weights)
    return model


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
