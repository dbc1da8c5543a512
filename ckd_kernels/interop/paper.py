"""Neurons of the CKDSNN paper's shape: ``LIFSpike`` over ``[B, T, ...]``, as in many code bases of its kind."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..functional import lif
from ..neuron import Neuron, cached_neuron
from ..surrogate import Triangle
from .adopt import Adopted, Unsupported

_WIDTHS = ("gamma", "gama")  # half the width of the triangle; the second is how the code bases spell it


def is_paper_neuron(module: nn.Module) -> bool:
    """Named and furnished like the paper's neuron; whether it computes the same, only running it says."""
    return type(module).__name__ == "LIFSpike" and hasattr(module, "thresh") and hasattr(module, "tau")


def _neuron_of(module: Any, strict: bool, detach_reset: bool) -> Neuron:
    width = next((getattr(module, name) for name in _WIDTHS if hasattr(module, name)), 1.0)
    try:
        return cached_neuron(
            *(Triangle, 1.0 / width),
            charge="decay",
            decay=module.tau,
            threshold=module.thresh,
            strict=strict,
            detach_reset=detach_reset,
        )
    except (TypeError, ValueError) as error:
        raise Unsupported(str(error)) from None


def plan_paper_neuron(module: Any) -> type[Adopted]:
    """What to put before a paper's neuron's class; or Unsupported."""
    if next(module.parameters(), None) is not None or next(module.buffers(), None) is not None:
        raise Unsupported("it has parameters or buffers of its own, which the paper's neuron has not")
    for (strict, detach_reset), front in _FRONTS.items():
        if _computes(module, _neuron_of(module, strict, detach_reset)):
            return front
    raise Unsupported("on a test input it does not compute what the paper's LIFSpike does")


def _computes(module: nn.Module, neuron: Neuron) -> bool:
    """Whether a module's spikes and gradients on ``[B, T, ...]`` are a neuron's, at the threshold too."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, 32, generator=generator) * 2.0 * neuron.threshold
    x[0, 0] = neuron.threshold
    weights = torch.randn(x.shape, generator=generator)
    results = []
    for run in (copy.deepcopy(module).forward, lambda x: lif(x, neuron, time_dim=1)):
        leaf = x.clone().requires_grad_()
        try:
            with torch.enable_grad(), torch.autocast("cpu", enabled=False):
                spikes = run(leaf)
                (gradient,) = torch.autograd.grad(spikes, leaf, weights)
        except Exception:  # somebody's code, on an input that it may not be made for
            return False
        results.append((spikes.detach(), gradient))
    (spikes, gradient), (our_spikes, our_gradient) = results
    return torch.equal(spikes, our_spikes) and torch.allclose(gradient, our_gradient, rtol=1e-5, atol=1e-5)


if TYPE_CHECKING:
    _Base = nn.Module
else:
    _Base = object


class _BatchFirst(Adopted, _Base):
    """A neuron over ``[B, T, ...]`` in one call of `lif`; its thresh, tau and gamma are read at every call."""

    strict: bool
    detach_reset: bool

    def current_neuron(self) -> tuple[Neuron, dict[str, Tensor]]:
        """Its neuron, and no learnable leak."""
        return _neuron_of(self, self.strict, self.detach_reset), {}

    def forward(self, x: Tensor) -> Tensor:
        """Spikes of ``[B, T, ...]`` currents."""
        return lif(x, self.current_neuron()[0], time_dim=1)


# One class a combination, so that what was found out on the test input is no attribute that a user could lose.
_FRONTS: dict[tuple[bool, bool], type[Adopted]] = {
    flags: type("BatchFirst", (_BatchFirst,), {"strict": flags[0], "detach_reset": flags[1], "__module__": __name__})
    for flags in ((True, False), (True, True), (False, False), (False, True))
}
