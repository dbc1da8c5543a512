"""A distillation method of one's own, in one file, trained by the package's `Distillation` on scikit-learn's digits.

    python examples/new_method.py

The command line trains with it, too, where Python finds this file:

    PYTHONPATH=examples ckdsnn distill --config digits --model.method.name new_method:rkd

The method is relational distillation: the student learns how far the samples of a batch lie from each other in the
teacher's last features, in units of the mean distance (Park et al.: Relational knowledge distillation, CVPR 2019, the
distance-wise loss RKD-D).
"""

import argparse
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch.nn.functional as F
from torch import Tensor

from ckdsnn.checkpoint import AtomicCheckpointIO
from ckdsnn.configuration import MethodConfig, ModelConfig, TeacherConfig
from ckdsnn.data import DigitsCanvas
from ckdsnn.losses import Method, register_method
from ckdsnn.losses.precision import full_precision, mean_over_time
from ckdsnn.models import ANNOutput, SNNOutput
from ckdsnn.models.outputs import pick_stage
from ckdsnn.optimisation import OptimizerConfig
from ckdsnn.option_types import NotNegative
from ckdsnn.train import Distillation

STAGE = -1  # the last one of either network


@register_method("rkd")
class RelationalDistillation(Method):
    """``CE(z_st, y) + weight * mean_ij huber(d_ij(student), d_ij(teacher))``, d the distances of samples i and j over
    their mean.

    Nothing in it waits for the device or depends on values in its shapes, so a GPU replays it in a CUDA graph.
    """

    @dataclass(frozen=True)
    class Options(Method.Options):
        """
        Attributes:
            weight: of the distances' part.
        """

        weight: NotNegative = 5.0

    options: Options
    student_feature_stages = teacher_feature_stages = (STAGE,)

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        mine = mean_over_time(pick_stage(student.features, STAGE, "the student's features"))  # [B, C, H, W]
        wanted = full_precision(pick_stage(teacher.features, STAGE, "the teacher's features"))
        return {"rkd": self.options.weight * F.huber_loss(distances(mine), distances(wanted))}


def distances(features: Tensor) -> Tensor:
    """Distances [B, B] of the spatial means of features [B, C, H, W], over their mean."""
    points = features.mean((2, 3))
    squares = (points[:, None] - points[None]).square().sum(2)
    # The root of 0 has no slope; a sample's distance to itself is a constant.
    apart = squares.clamp_min(1e-12).sqrt()
    return apart / apart.mean().clamp_min(1e-6)


def fit(task: Distillation, data: DigitsCanvas, epochs: int) -> L.Trainer:
    """What `ckdsnn fit` does, without folder, logs and progress bar."""
    trainer = L.Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=epochs,
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(task, data)
    return trainer


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Trains a teacher, and a student by each of three methods; returns what the last epochs' means and validation
    accuracies were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20, help="of the teacher and of each student (20)")
    parser.add_argument("--samples", type=int, default=300, help="training digits (300)")
    parser.add_argument("--widths", type=int, nargs=3, default=[8, 16, 32], help="channels of the stages (8 16 32)")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    args = parser.parse_args(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    options, optimizer = {"widths": args.widths}, OptimizerConfig(name="adamw", lr=0.01, schedule="one_cycle")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.ckpt"
        for method in ("teacher", "ce", "kd", "rkd"):
            L.seed_everything(args.seed, verbose=False)
            data = DigitsCanvas(batch_size=30, train_samples=args.samples, views=4, seed=args.seed)
            network = ModelConfig("snn_resnet_small", {**options, "time_steps": 2})
            config = teacher = None
            if method == "teacher":
                network = ModelConfig("ann_resnet_small", options)
            elif method != "ce":
                config, teacher = MethodConfig(method), TeacherConfig(checkpoint=str(path), cache=True)
            task = Distillation(network, config or MethodConfig("ce"), teacher, optimizer, in_channels=1)
            trainer = fit(task, data, args.epochs)
            if method == "teacher":
                trainer.save_checkpoint(path)
            found[method] = {name: float(value) for name, value in trainer.callback_metrics.items()}
            print(method, "  ".join(f"{name} {value:.4f}" for name, value in found[method].items()), flush=True)
    return found


if __name__ == "__main__":
    main()
