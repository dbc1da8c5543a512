"""Training: a network with labels alone (a teacher, a baseline) or distilled from a frozen teacher (a student)."""

from __future__ import annotations

import inspect
import math
from contextlib import nullcontext
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

import ckd_kernels
from ckdsnn.analysis import FiringRate
from ckdsnn.checkpoint import SCHEMA, RunError, check_training_state, provenance, random_state, restore_random_state
from ckdsnn.configuration import MethodConfig, ModelConfig, TeacherConfig, as_plain
from ckdsnn.data import ArrayDataModule, Batch
from ckdsnn.losses import METHODS, FrozenTeacher, Method, NoiseSource, build_method
from ckdsnn.models import MODELS, ANNOutput, SNNOutput, build_model
from ckdsnn.optimisation import OptimizerConfig
from ckdsnn.resume import changed_network, changed_run
from ckdsnn.teacher import TeacherCache, load_teacher, weights_digest


class Distillation(L.LightningModule):
    """Trains `network` by `method`, from the labels and, where the method wants one, a frozen teacher.

    The teacher is no part of this module: it is in eval mode (unless the method says otherwise), without gradients,
    outside the optimiser, and outside the checkpoints, which name it.

    Args:
        network: what is trained: the student, or with method ce any model.
        method: the loss.
        teacher: where the teacher comes from; None with methods that need none.
        optimizer: optimiser and schedule.
        num_classes: of the data.
        in_channels: of the data.
        seed: of the method's noise, where it draws any and its options do not say otherwise.
        channels_last: memory format of images and of the weights of student and teacher.
        compile: run the network through torch.compile.
        one_bit_spikes: keep spikes at one bit each from forward to backward, see `ckd_kernels.one_bit_spikes`: less
            memory for some time, and the same weights bit for bit.

    Raises:
        ValueError: a method that needs a teacher without one, a teacher for a method that uses none, one_bit_spikes
            with compile, or what the model, the method or the teacher's checkpoint refuse.
    """

    def __init__(
        self,
        network: ModelConfig,
        method: MethodConfig = MethodConfig(),
        teacher: TeacherConfig | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),
        num_classes: int = 10,
        in_channels: int = 3,
        seed: int = 0,
        channels_last: bool = False,
        compile: bool = False,
        one_bit_spikes: bool = False,
    ) -> None:
        super().__init__()
        if compile and one_bit_spikes:
            raise ValueError("one_bit_spikes has no effect on what torch.compile keeps: set one of the two to false")
        self.method: Method = _build_method(method, seed)
        if self.method.needs_teacher and teacher is None:
            raise ValueError(f"method {method.name} needs a teacher: give teacher.checkpoint")
        if not self.method.needs_teacher and teacher is not None:
            raise ValueError(f"method {method.name} uses no teacher: leave teacher out")
        self.optimizer_config = optimizer
        options = _with_method_options(network, self.method)
        self.network = build_model(network.name, num_classes=num_classes, in_channels=in_channels, **options)
        self._network_config = {
            "name": network.name,
            # With what the method made of the network: weights fit a ReLU where a neuron was, accuracies do not.
            "options": as_plain(self.method.student_options | network.options),
            "num_classes": num_classes,
            "in_channels": in_channels,
        }
        # What the weights depend on: going on with a run under another configuration is refused.
        self.run_config: dict[str, Any] = {
            "network": self._network_config,
            "method": as_plain(method),
            "teacher": as_plain(teacher),
            "optimizer": as_plain(optimizer),
        }
        # In a list, so that it is not registered: see the class docstring.
        self._frozen: list[FrozenTeacher] = []
        self._teacher_config = teacher
        self._cache: TeacherCache | None = None
        if teacher is not None:
            model = load_teacher(teacher, num_classes, in_channels)
            self.run_config["teacher"]["weights"] = weights_digest(model)
            self.method.bind(self.network, model)
            if channels_last:
                model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._frozen.append(FrozenTeacher(model, self.method))
        else:
            self.method.bind(self.network)
        self.channels_last, self.one_bit_spikes = channels_last, one_bit_spikes
        if channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compile:
            self.network.compile()
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.eval_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self._firing_rate: FiringRate | None = None
        self._state_to_restore: dict[str, Any] | None = None

    @property
    def teacher(self) -> FrozenTeacher | None:
        """The frozen teacher, if there is one."""
        return self._frozen[0] if self._frozen else None

    def forward(self, images: Tensor) -> ANNOutput | SNNOutput:
        with ckd_kernels.one_bit_spikes() if self.one_bit_spikes else nullcontext():
            return self.network(self._in_memory_format(images))

    def _in_memory_format(self, images: Tensor) -> Tensor:
        if self.channels_last and images.ndim == 4:
            return images.contiguous(memory_format=torch.channels_last)
        return images

    # Training

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.global_rank > 0:  # equal noise on all processes would be noise on fewer samples
            for source in noise_sources(self.method):
                source.restart(self.global_rank)

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        parameters = [p for p in (*self.network.parameters(), *self.method.parameters()) if p.requires_grad]
        try:
            return self.optimizer_config.lightning(parameters, steps, steps / max(1, self.trainer.max_epochs or 1))
        except ValueError as error:  # a warm-up longer than the training
            raise RunError(str(error)) from error

    def on_fit_start(self) -> None:
        if self.teacher is None:
            return
        self.teacher.to(self.device)
        assert self._teacher_config is not None
        if self._teacher_config.cache:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            if not isinstance(data, ArrayDataModule) or data.augmentation.active:
                raise RunError(
                    "teacher.cache keeps one answer a sample, but the data is augmented or not in memory: set "
                    "teacher.cache to false or switch data.augmentation off"
                )
            self._cache = TeacherCache(self.teacher, data.in_order("train"))

    def on_train_start(self) -> None:
        # As late as possible: whatever drew random numbers on the way here would otherwise show.
        if self._state_to_restore is not None:
            mine = self._state_to_restore["random_state"][self.global_rank]
            restore_random_state(mine["global"])
            for source, state in zip(noise_sources(self.method), mine["noise"], strict=True):
                source.set_extra_state(state)
            # Lightning restores the loader too, but not where the number of steps was asked for before, as it is here.
            loader: Any = self.trainer.train_dataloader
            loader.load_state_dict(self._state_to_restore["train_loader"])
            self._state_to_restore = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, teacher = self._in_memory_format(batch.images), None
        if self._cache is not None:
            teacher = self._cache(batch)
        elif self.teacher is not None:
            teacher = self.teacher(images, batch.targets)
        output = self(images)
        epoch = self.current_epoch + batch_idx / self.trainer.num_training_batches
        parts = self.method(output, teacher, batch.targets, epoch=epoch)
        loss = torch.stack(list(parts.values())).sum()
        if not math.isfinite(loss.item()):
            raise RunError(self._not_finite(parts))
        size = len(batch.targets)
        self.train_accuracy(output.logits, batch.targets)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True, batch_size=size)
        accuracy = (output.logits.argmax(1) == batch.targets).float().mean()
        self.log("accuracy", accuracy, prog_bar=True, logger=False, batch_size=size)
        for name, part in (("loss", loss), *parts.items()):
            self.log(f"train/{name}", part.detach(), on_step=False, on_epoch=True, batch_size=size)
            self.log(name, part.detach(), prog_bar=True, logger=False, batch_size=size)
        return loss

    def _not_finite(self, parts: dict[str, Tensor]) -> str:
        values = ", ".join(f"{name} {float(part.detach()):g}" for name, part in parts.items())
        return (
            f"the loss is not finite at step {self.global_step} (epoch {self.current_epoch}): {values}. The weights of "
            "the last checkpoint are from before this step; lower optimizer.lr, set trainer.gradient_clip_val, or use "
            "trainer.precision 32-true"
        )

    # Evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val/accuracy")

    def on_test_start(self) -> None:
        self._firing_rate = FiringRate(self.network).__enter__()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test/accuracy")

    def on_test_epoch_end(self) -> None:
        assert self._firing_rate is not None
        self._firing_rate.__exit__(None, None, None)
        if self._firing_rate.mean is not None:
            self.log("test/firing_rate", self._firing_rate.mean, sync_dist=True)

    def _evaluate(self, batch: Batch, name: str) -> None:
        self.eval_accuracy(self(batch.images).logits, batch.targets)
        self.log(name, self.eval_accuracy, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch.targets))

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Indices, targets, predicted classes and their probabilities, each [B]."""
        confidence, predicted = self(batch.images).logits.float().softmax(1).max(1)
        return {"index": batch.indices, "target": batch.targets, "prediction": predicted, "confidence": confidence}

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ckdsnn"] = {
            "schema": SCHEMA,
            "network": self._network_config,
            "config": self.run_config,
            "finished": 0 < (self.trainer.max_epochs or 0) <= self.current_epoch + 1 and self.trainer.is_last_batch,
            **provenance(),
        }
        noise = [source.get_extra_state() for source in noise_sources(self.method)]
        # Every process has its own. Lightning calls this on all of them and writes what the first one returns.
        checkpoint["random_state"] = _gathered({"global": random_state(), "noise": noise})
        loader: Any = self.trainer.train_dataloader
        if loader is not None:
            checkpoint["train_loader"] = loader.state_dict()
        if self.teacher is not None and self.teacher.mode == "train":
            # Its running statistics move with training, so the file that it came from does not tell them.
            checkpoint["teacher_buffers"] = dict(self.teacher.named_buffers())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_checkpoint(checkpoint)
        if self.trainer.state.fn != TrainerFn.FITTING:
            return
        self.check_resumable(checkpoint, self.trainer.world_size)
        self._state_to_restore = {name: checkpoint[name] for name in ("random_state", "train_loader")}
        if self.teacher is not None and "teacher_buffers" in checkpoint:
            self.teacher.load_state_dict(checkpoint["teacher_buffers"], strict=False)

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises RunError unless `checkpoint` holds this network."""
        written = checkpoint["ckdsnn"]["network"]
        if changed_network(written, self._network_config):
            raise RunError(
                f"the checkpoint holds {written}, the configuration asks for {self._network_config}: use "
                "the configuration that it was trained with"
            )

    def check_resumable(self, checkpoint: dict[str, Any], processes: int) -> None:
        """Raises RunError unless `processes` can go on from `checkpoint` as if training had never stopped."""
        self.check_checkpoint(checkpoint)
        check_training_state(checkpoint)
        if changed := changed_run(checkpoint["ckdsnn"]["config"], self.run_config, type(self)):
            raise RunError(
                "this run was started with another configuration; resuming would mix the two. Different: "
                + "; ".join(changed)
                + ". Choose another folder for the new run, or go on with the old configuration"
            )
        before = len(checkpoint["random_state"])
        if processes != before:
            raise RunError(
                f"this run was started with {before} process(es), now there are {processes}, which would see other "
                f"batches: set trainer.devices and trainer.num_nodes to make {before} again"
            )


def noise_sources(method: Method) -> list[NoiseSource]:
    """The random generators of a method, in the order of its modules."""
    return [module for module in method.modules() if isinstance(module, NoiseSource)]


def _gathered(mine: Any) -> list[Any]:
    """`mine` of every process, in the order of their ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    return everyones


def _with_method_options(network: ModelConfig, method: Method) -> dict[str, Any]:
    """The network's options, completed by what the method asks of a student; what the user said stays."""
    if network.name not in MODELS:
        return network.options  # build_model has the words for it
    asked = dict(method.student_options)
    if method.sam_stages:
        asked["sam_stages"] = method.sam_stages
    known = inspect.signature(MODELS[network.name]).parameters
    if missing := {name: value for name, value in asked.items() if name not in known}:
        raise ValueError(
            f"method {method.name} asks its student for "
            + ", ".join(f"{name}={value!r}" for name, value in missing.items())
            + f", and {network.name} has no such option: choose another network, method or preset"
        )
    return asked | network.options


def _build_method(method: MethodConfig, seed: int) -> Method:
    options = dict(method.options)
    if method.name in METHODS and "seed" in inspect.signature(METHODS[method.name]).parameters:
        options.setdefault("seed", seed)
    return build_method(method.name, **options)
