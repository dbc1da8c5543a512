"""What a call is: one thing from the door to the kernels, as ``csrc/include/ckd/params.h`` has it.

`Forward`, `Backward` and `Fold` are what a backend is given: tensors that are dense in the call's layout, and outputs
to write into.  ``None``: not given, not wanted.  "Real" is the dtype of state and arithmetic, see `state_dtype`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .neuron import Neuron
from .ops.layout import Layout

# Sequences of more steps keep the potential after every such step, so that a backward kernel can hold one chunk's
# potentials on chip and still read x once.
CHECKPOINT_EVERY = 16


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Membrane potential and arithmetic: float32, or float64 for float64 storage."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def checkpoint_count(time_steps: int) -> int:
    """Membrane potentials that a sequence keeps for its backward pass: after step 16, 32, ..."""
    return (time_steps - 1) // CHECKPOINT_EVERY if time_steps > 0 else 0


class Affine(NamedTuple):
    """What charges a neuron behind batch normalisation: ``x[t] = y[t]*scale + shift (+ residual[t])``."""

    folded: Tensor  # real [4 or 6, channels]: see Fold
    residual: Tensor | None  # as spikes


class Forward(NamedTuple):
    """A neuron over all time steps of x, or of what ``affine`` makes of it; x is y then."""

    neuron: Neuron
    layout: Layout
    x: Tensor  # storage [outer, steps or 1, frame]
    v_init: Tensor | None  # real [outer, frame]
    leak: Tensor | None  # real: decay or tau, one value or one a channel
    affine: Affine | None
    spikes: Tensor  # storage [outer, steps, frame]
    v_last: Tensor | None  # real [outer, frame]
    sam: Tensor | None  # float32 [outer, rows, inner]
    checkpoints: Tensor | None  # real [checkpoint_count(steps), outer, frame]


class Backward(NamedTuple):
    """The backward pass of a `Forward`.

    With ``affine`` there are two.  The first one is given ``sums`` and writes these alone: dL/dx and dL/dx*(y - mean),
    summed over all but channels.  The second one is given the ``coefficients`` that follow from them (None where the
    statistics do not depend on y), and writes gradients.
    """

    neuron: Neuron
    layout: Layout
    x: Tensor
    v_init: Tensor | None
    leak: Tensor | None
    affine: Affine | None
    checkpoints: Tensor | None
    grad_spikes: Tensor | None  # storage [outer, steps, frame]
    grad_v: Tensor | None  # real [outer, frame]
    grad_sam: Tensor | None  # float32 [outer, rows, inner]
    coefficients: Tensor | None = None  # real [2 or more, channels]: offset, slope
    grad_x: Tensor | None = None  # storage, x's shape: of a repeated frame, summed over time
    grad_residual: Tensor | None = None  # storage [outer, steps, frame]
    grad_v_init: Tensor | None = None  # real [outer, frame]
    grad_leak: Tensor | None = None  # real, leak's shape
    sums: Tensor | None = None  # float64 [2, channels]


class Fold(NamedTuple):
    """What a channel's statistics are folded into: the vectors that `Affine` and the running statistics take."""

    moments: Tensor  # float64 [2, channels]: mean and biased variance
    weight: Tensor | None  # real [channels]; None: ones
    bias: Tensor | None  # real [channels]; None: zeros
    running_mean: Tensor | None  # real [channels], both or neither
    running_var: Tensor | None
    total: Tensor | None  # float64, one value; times ``values``, how many values of a channel there were
    values: int
    momentum: float
    eps: float

    @property
    def rows(self) -> int:
        """Rows of the result: mean, 1/sqrt(var + eps), scale, shift, and the next running mean and variance."""
        return 4 if self.running_mean is None else 6


class Plan(NamedTuple):
    """All of a call but its tensors."""

    # The neuron's text, and not the neuron: torch.compile takes text for a constant, and numbers in what an autograd
    # function is given for inputs of the graph, until it finds no use for them there and starts all over.
    spec: str
    backend: str  # as asked for: "auto", or one of them
    time_dim: int
    time_steps: int
    channel_dim: int  # -1: channels are not told apart
    return_v: bool
    return_sam: bool
    save_checkpoints: bool
    way: str  # who computes it, see ops/library.py

    @property
    def neuron(self) -> Neuron:
        return Neuron.from_spec(self.spec)


class Norm(NamedTuple):
    """How `bn_lif` normalises y."""

    folded: Tensor | None  # see Fold; None: the op folds the batch's own statistics
    total: Tensor | None  # values of a channel that all processes of the group have
    running_mean: Tensor | None  # real [channels]
    running_var: Tensor | None
    moves: bool  # whether the running statistics are moved towards the batch's
    momentum: float
    eps: float
    by_batch: bool  # by the batch's statistics; else by the running ones
    group: Any  # of processes that share the batch's statistics


class Call(NamedTuple):
    """A call of `lif`, or with ``norm`` of `bn_lif`, whose x is y: what autograd functions are applied to."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    v_init: Tensor | None
    leak: Tensor | None
    norm: Norm | None
    plan: Plan
    layout: Layout | None  # of x; None where the op finds it, or nobody needs it


class Outputs(NamedTuple):
    """What a call gives; None where it was not wanted."""

    folded: Tensor | None  # where the op made it
    spikes: Tensor
    v: Tensor | None
    sam: Tensor | None
    checkpoints: Tensor | None


class Needs(NamedTuple):
    """Which gradients a backward pass is to give."""

    x: bool
    affine: bool  # of weight or bias
    residual: bool
    v_init: bool
    leak: bool


class GradientCall(NamedTuple):
    """The backward pass of a `Call`."""

    x: Tensor
    v_init: Tensor | None
    leak: Tensor | None
    checkpoints: Tensor | None
    grad_spikes: Tensor | None
    grad_v: Tensor | None
    grad_sam: Tensor | None
    coefficients: Tensor | None  # None: the op computes them, of this process alone
    affine: Affine | None
    by_batch: bool
    plan: Plan
    needs: Needs
    layout: Layout | None  # of x; None where the op finds it

    # Methods: PyTorch 2.10's torch.compile has no properties of a named tuple that is made in the graph.
    def makes_coefficients(self) -> bool:
        """Whether a first pass sums what weight, bias and, through its statistics, y need."""
        needed = self.needs.affine or (self.by_batch and self.needs.x)
        return self.affine is not None and self.coefficients is None and needed

    def writes_gradients(self) -> bool:
        """Whether there is anything for the pass that writes gradients."""
        needs = self.needs
        return needs.x or needs.residual or needs.v_init or needs.leak


class Gradients(NamedTuple):
    """What a `GradientCall` gives; None where it was not needed."""

    coefficients: Tensor | None  # where the op made them
    x: Tensor | None
    residual: Tensor | None
    v_init: Tensor | None
    leak: Tensor | None
