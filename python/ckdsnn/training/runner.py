"""Who runs the training step: the interpreter, or a CUDA graph of it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from ckd_kernels.layers import BatchNormLIF
from ckdsnn.losses import Method, NoiseSource
from ckdsnn.optimisation import Schedule
from ckdsnn.training.step import TrainStep

WARM_UP = 3  # steps before the capture, in which libraries choose their algorithms and optimisers make their state


def why_not_captured(
    device: torch.device,
    network: nn.Module,
    method: Method,
    schedule: Schedule,
    *,
    accumulate: int = 1,
    scaler: bool = False,
) -> str | None:
    """What keeps the step from being captured in a CUDA graph, in words; None if nothing does.

    Args:
        device: of the step.
        network: what is trained.
        method: the loss.
        schedule: of the learning rate.
        accumulate: batches an optimiser step.
        scaler: whether the loss is scaled, as for float16.
    """
    if device.type != "cuda":
        return f"it runs on the {'CPU' if device.type == 'cpu' else device.type}, and CUDA graphs need an NVIDIA GPU"
    if scaler:
        return "precision 16-mixed scales the loss by what the host knows (bf16-mixed does not)"
    if accumulate > 1:
        return f"accumulate_grad_batches is {accumulate}"
    if not method.capturable:
        return f"method {method.name} says that it cannot be (capturable is False)"
    if schedule.momenta is not None:
        return "schedule one_cycle changes the momentum, a number of the host, at every step"
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for name, module in network.named_modules():
            shared = isinstance(module, BatchNormLIF) and module.process_group is not None
            if shared or isinstance(module, nn.SyncBatchNorm):
                return f"{name} shares its statistics with other processes in the forward pass"
    return None


class EagerRunner:
    """Runs every operation of the step anew."""

    def __init__(self, step: TrainStep) -> None:
        self.step = step

    def __call__(self, update: int, *, first: bool = True, last: bool = True) -> None:
        """One batch.

        Args:
            update: number of the optimiser step.
            first, last: of the batches of that optimiser step.
        """
        self.step.set_momentum(update)
        self.step.gradients(first=first)
        if last:
            self.step.pack()
            self.step.all_reduce()
            self.step.unpack()
            self.step.update()


class GraphRunner(EagerRunner):
    """Runs the first steps eagerly on a stream of their own, captures one, and replays it from then on.

    With several processes there are two graphs, and the all-reduce of the gradients runs between them: NCCL inside of a
    graph can stall when the host waits for something else (PyTorch issue 196133).
    """

    def __init__(self, step: TrainStep) -> None:
        super().__init__(step)
        self._stream = torch.cuda.Stream()
        self._warm = 0
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def __call__(self, update: int, *, first: bool = True, last: bool = True) -> None:
        if self._warm < WARM_UP:
            self._warm += 1
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                super().__call__(update)
            torch.cuda.current_stream().wait_stream(self._stream)
            return
        if not self._graphs:
            self._capture()
        self._graphs[0].replay()
        if len(self._graphs) > 1:
            self.step.all_reduce()
            self._graphs[1].replay()

    def _capture(self) -> None:
        self.step.optimizer.zero_grad(set_to_none=True)  # gradients of the graph lie in the graph's memory
        before, after = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        for module in self.step.method.modules():
            if isinstance(module, NoiseSource):
                before.register_generator_state(module.generator)
        # Other threads may go on: one writes checkpoints.
        with torch.cuda.graph(before, stream=self._stream, capture_error_mode="thread_local"):
            self.step.gradients()
            self.step.pack()
            if self.step.world == 1:
                self.step.update()
        self._graphs = [before]
        if self.step.world > 1:
            with torch.cuda.graph(after, pool=before.pool(), stream=self._stream, capture_error_mode="thread_local"):
                self.step.unpack()
                self.step.update()
            self._graphs.append(after)
