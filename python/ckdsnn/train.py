"""Training: a network with labels alone (a teacher, a baseline) or distilled from a frozen teacher (a student)."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

import ckd_kernels
from ckdsnn.analysis import FiringRate
from ckdsnn.checkpoint import SCHEMA, RunError, check_training_state, provenance, random_state, restore_random_state
from ckdsnn.configuration import MethodConfig, ModelConfig, TeacherConfig, as_plain
from ckdsnn.data import ArrayDataModule, Batch
from ckdsnn.losses import FrozenTeacher, Method, NoiseSource
from ckdsnn.models import ANNOutput, SNNOutput
from ckdsnn.models.ann_resnet import ANNResNet
from ckdsnn.optimisation import OptimizerConfig, Schedule
from ckdsnn.resume import changed_network, changed_run
from ckdsnn.teacher import TeacherCache, load_teacher
from ckdsnn.training import EagerRunner, GraphRunner, Telemetry, TrainStep
from ckdsnn.training.evaluation import Evaluation
from ckdsnn.training.feed import Feed
from ckdsnn.training.lightning import (
    check_capture,
    check_classified,
    gathered,
    loss_scaler,
    make_feed,
    own_backward,
    share_buffers,
    share_state,
)
from ckdsnn.training.writer import is_finished
from ckdsnn.weights import fingerprint, start_from, to_evaluate


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
        graph: capture the training step in a CUDA graph and replay it, which a GPU needs to be kept busy: "auto" does
            where it is possible and says why where it is not, true insists, false never does.

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
        graph: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        if graph not in (True, False, "auto"):
            raise ValueError(f"model.graph must be auto, true or false, got {graph!r}")
        if compile and one_bit_spikes:
            raise ValueError("one_bit_spikes has no effect on what torch.compile keeps: set one of the two to false")
        self.method: Method = method.build(seed)
        if self.method.needs_teacher and teacher is None:
            raise ValueError(f"method {method.name} needs a teacher: give teacher.checkpoint")
        if not self.method.needs_teacher and teacher is not None:
            raise ValueError(f"method {method.name} uses no teacher: leave teacher out")
        self.optimizer_config = optimizer
        self.network = network.build(num_classes, in_channels, self.method)
        self._network_config = {
            "name": network.name,
            # With what the method made of the network: weights fit a ReLU where a neuron was, accuracies do not.
            "options": as_plain(self.method.student_options) | as_plain(network.options),
            "num_classes": num_classes,
            "in_channels": in_channels,
        }
        # What the weights depend on: going on with a run under another configuration is refused. Weights that come from
        # files are known by what they are, not where they lie.
        self.run_config: dict[str, Any] = {
            "network": self._network_config,
            "weights": network.weights and start_from(self.network, network.weights),
            "method": as_plain(method),
            "teacher": as_plain(teacher),
            "optimizer": as_plain(optimizer),
            "channels_last": channels_last,
            "compile": compile,
        }
        # In a list, so that it is not registered: see the class docstring.
        self._frozen: list[FrozenTeacher] = []
        self._teacher_config = teacher
        self._cache: TeacherCache | None = None
        if teacher is not None:
            model = load_teacher(teacher, num_classes, in_channels)
            self.run_config["teacher"]["weights"] = fingerprint(model.state_dict())
            self.method.bind(self.network, model)
            if self.method.teacher_mode == "eval" and isinstance(model, ANNResNet):
                model.fold()
            if channels_last:
                model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._frozen.append(FrozenTeacher(model, self.method))
        else:
            self.method.bind(self.network)
        self.channels_last, self.one_bit_spikes, self.graph = channels_last, one_bit_spikes, graph
        if channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compile:
            self.network.compile()
        self._evaluation = Evaluation(self.method, self.teacher, num_classes if self.network.dense else None)
        self.schedule = Schedule([])
        self.feed: Feed | None = None
        self.telemetry: Telemetry | None = None
        self._runner: EagerRunner | None = None
        self._captured = False
        self._restored: dict[str, Any] | None = None
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

    # Training. The step is `ckdsnn.training.TrainStep`; Lightning's loop around it counts, validates, logs and saves.

    def setup(self, stage: str) -> None:
        check_classified(getattr(self.trainer, "datamodule", None), self.network)
        if stage != "fit":
            return
        if self.global_rank > 0:  # equal noise on all processes would be noise on fewer samples
            for source in noise_sources(self.method):
                source.restart(self.global_rank)
        own_backward(self.trainer)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trainer = self.trainer
        trainer.fit_loop.setup_data()  # without it, a training without an end of its epochs knows no length of them
        steps = trainer.estimated_stepping_batches
        an_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        parameters = [p for p in (*self.network.parameters(), *self.method.parameters()) if p.requires_grad]
        try:
            self.schedule = self.optimizer_config.build_schedule(steps, an_epoch)
        except ValueError as error:  # a warm-up longer than the training, or a training without an end
            raise RunError(str(error)) from error
        return self.optimizer_config.build(parameters)

    def on_fit_start(self) -> None:
        self._evaluation.forget()  # what a training that was broken off has left
        share_state((self.network, self.method))
        for source in noise_sources(self.method):
            source.to_device(self.device)
        reason = check_capture(self.trainer, self.network, self.method, self.schedule, self.graph)
        if reason is not None and self.graph == "auto" and self.device.type == "cuda":
            rank_zero_info(f"the training step runs eagerly, not as a CUDA graph: {reason}")
        self._captured = reason is None and self.graph is not False
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
        self._restored = self._state_to_restore
        if self._state_to_restore is not None:
            mine = self._state_to_restore["random_state"][self.global_rank]
            restore_random_state(mine["global"])
            for source, state in zip(noise_sources(self.method), mine["noise"], strict=True):
                source.set_extra_state(state)
            # Lightning restores the loader too, but not where the number of steps was asked for before, as it is here.
            loader: Any = self.trainer.train_dataloader
            loader.load_state_dict(self._state_to_restore["train_loader"])
            self._state_to_restore = None
        self.feed = make_feed(self.trainer, self.device, channels_last=self.channels_last)
        self.telemetry = Telemetry(self.device)
        if self._restored is not None and "telemetry" in self._restored:  # not in the first ones
            self.telemetry.load_state_dict(self._restored["telemetry"])
        self._runner = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._runner = self._runner or self._make_runner()
        assert self.feed is not None
        assert self.telemetry is not None
        if self.feed.started != self.current_epoch:
            self.feed.start(self.current_epoch, batch_idx)
            if batch_idx == 0:
                self.telemetry.restart()
        self.feed.load(batch)
        accumulate = self.trainer.accumulate_grad_batches
        last = (batch_idx + 1) % accumulate == 0 or self.trainer.is_last_batch
        self._runner(self.global_step, first=batch_idx % accumulate == 0, last=last)
        self.telemetry.poll(self.current_epoch)
        return self._runner.step.loss

    def _make_runner(self) -> EagerRunner:
        """At the first step, in whose surroundings Lightning has set the precision."""
        trainer, kind = self.trainer, self.device.type
        assert self.feed is not None
        assert self.telemetry is not None
        clip = trainer.gradient_clip_val or None
        by_value = trainer.gradient_clip_algorithm == GradClipAlgorithmType.VALUE
        step = TrainStep(
            self._converted,
            self.method,
            self._answers,
            trainer.optimizers[0],
            self.schedule,
            self.feed,
            self.telemetry,
            accumulate=trainer.accumulate_grad_batches,
            clip_norm=None if by_value else clip,
            clip_value=clip if by_value else None,
            autocast=torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
            scaler=loss_scaler(trainer),
        )
        step.updates.fill_(self.global_step)
        return GraphRunner(step) if self._captured else EagerRunner(step)

    def _converted(self, images: Tensor) -> ANNOutput | SNNOutput:
        return self(self.trainer.precision_plugin.convert_input(images))

    def _answers(self, batch: Batch) -> ANNOutput | None:
        if self._cache is not None:
            return self._cache(batch)
        if self.teacher is None:
            return None
        images = self.trainer.precision_plugin.convert_input(batch.images)
        return self.teacher(self._in_memory_format(images), batch.targets)

    # The step has done all of this.

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        pass

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer_closure()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        pass

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        trainer = self.trainer
        if trainer.is_last_batch or 0 < trainer.max_steps <= trainer.global_step:
            assert self.telemetry is not None
            self.telemetry.wait(self.current_epoch)
            means = {f"train/{name}": value for name, value in self.telemetry.means().items()}
            self.log_dict(means, on_step=False, on_epoch=True, batch_size=1, sync_dist=trainer.world_size > 1)
            share_buffers(self.network)

    def on_fit_end(self) -> None:
        self._runner = self.feed = None  # and with them, the memory of an epoch and of a graph
        self._evaluation.forget()

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        share_buffers(self.network)  # callbacks come first: with WeightEMA it is the average by now
        # After every epoch of a training come the same batches.
        self._evaluation.start(self.device, again=self.trainer.state.fn == TrainerFn.FITTING)

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_start(self) -> None:
        self._firing_rate = FiringRate(self.network).__enter__()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")
        assert self._firing_rate is not None
        self._firing_rate.__exit__(None, None, None)
        if self._firing_rate.mean is not None:
            self.log("test/firing_rate", self._firing_rate.mean, sync_dist=True)

    def _evaluate(self, batch: Batch, number: int | None = None) -> None:
        images = self._in_memory_format(batch.images)
        self._evaluation.add(self(images).logits, images, batch.targets, number)

    def _log_evaluation(self, part: str) -> None:
        sums = self.trainer.strategy.reduce(self._evaluation.sums, reduce_op="sum")
        for name, value in self._evaluation.means(sums).items():  # type: ignore[arg-type]
            self.log(f"{part}/{name}", value, batch_size=1, sync_dist=self.trainer.world_size > 1)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Indices [B], and targets, predicted classes and their probabilities, each [B] or [B, H, W]."""
        confidence, predicted = self(batch.images).logits.float().softmax(1).max(1)
        return {"index": batch.indices, "target": batch.targets, "prediction": predicted, "confidence": confidence}

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ckdsnn"] = {
            "schema": SCHEMA,
            "network": self._network_config,
            "config": self.run_config,
            "finished": is_finished(self.trainer),
            **provenance(),
        }
        noise = [source.get_extra_state() for source in noise_sources(self.method)]
        # Every process has its own. Lightning calls this on all of them and writes what the first one returns.
        checkpoint["random_state"] = gathered({"global": random_state(), "noise": noise})
        loader: Any = self.trainer.train_dataloader
        if loader is not None:
            checkpoint["train_loader"] = loader.state_dict()
        if self.telemetry is not None:
            checkpoint["telemetry"] = self.telemetry.state_dict()
        if self.teacher is not None and self.teacher.mode == "train":
            # Its running statistics move with training, so the file that it came from does not tell them.
            checkpoint["teacher_buffers"] = dict(self.teacher.named_buffers())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_checkpoint(checkpoint)
        if self.trainer.state.fn != TrainerFn.FITTING:
            checkpoint["state_dict"] = to_evaluate(checkpoint["state_dict"], self.state_dict())
            return
        self.check_resumable(checkpoint, self.trainer.world_size)
        self._state_to_restore = {
            name: checkpoint[name] for name in ("random_state", "train_loader", "telemetry") if name in checkpoint
        }
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
