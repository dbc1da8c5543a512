"""One time step of a neuron, forward and backward, in PyTorch.

The order of operations is the numerics contract: every other backend computes exactly
these, in this order, each rounded once.  Scalars take part as tensors where PyTorch would
otherwise replace a division by a product with the reciprocal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...neuron import Neuron


class Step:
    """A neuron with its constants in the arithmetic's dtype; ``leak`` overrides its decay or tau."""

    leak: Tensor  # unset where the charge is "integrate", which has none

    def __init__(self, neuron: Neuron, leak: Tensor | None, like: Tensor) -> None:
        self.neuron = neuron
        self.rest = neuron.rest
        self.fire_level = torch.full((), neuron.fire_level(like.dtype), dtype=like.dtype, device=like.device)
        self.threshold = torch.full((), neuron.threshold, dtype=like.dtype, device=like.device)
        if leak is None and neuron.leak_name is not None:
            leak = torch.full((), getattr(neuron, neuron.leak_name), dtype=like.dtype, device=like.device)
        if leak is not None:
            self.leak = leak

    def fires(self, h: Tensor) -> Tensor:
        return h >= self.fire_level

    def charge(self, v: Tensor, x: Tensor) -> Tensor:
        """h[t] from v[t-1] and x[t]."""
        kind, n = self.neuron.charge, self.neuron
        if kind == "decay":
            h = v * self.leak + x
        elif kind == "leak":
            h = v - torch.div(v - self.rest, self.leak) + x
        elif kind == "leak_input":
            h = v + torch.div(x - (v - self.rest), self.leak)
        else:
            h = v + x
        if n.reset == "soft_delayed":
            h = h - self.lost(v)
        return h

    def reset(self, h: Tensor) -> Tensor:
        """v[t] from h[t]."""
        n = self.neuron
        if n.reset == "hard":
            return self.to_rest(h)
        if n.reset == "soft":
            return h - self.lost(h)
        return h

    def lost(self, h: Tensor) -> Tensor:
        """What a reset by subtraction takes from the potential."""
        return torch.where(self.fires(h), self.threshold, 0.0)

    def to_rest(self, h: Tensor) -> Tensor:
        """The potential after a hard reset."""
        return torch.where(self.fires(h), torch.full_like(h, self.rest), h)

    def fire_backward(self, h: Tensor, grad_spikes: Tensor, grad_v: Tensor) -> Tensor:
        """gh = gs*sg(u) + gv*R."""
        n = self.neuron
        sg = n.surrogate.derivative(h - n.threshold)
        gh = grad_spikes * sg
        if n.reset == "hard":
            r = 1.0 - self.fires(h).to(h.dtype)
            if not n.detach_reset:
                r = r + (self.rest - h) * sg
            return gh + grad_v * r
        if n.reset == "soft" and not n.detach_reset:
            return gh + grad_v * (1.0 - sg * n.threshold)
        return gh + grad_v

    def charge_backward(self, gh: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients of x[t], v[t-1] and, elementwise, the leak; ``v`` is v[t-1]."""
        kind = self.neuron.charge
        if kind == "integrate":
            return gh, gh, None
        leak = self.leak
        if kind == "decay":
            return gh, gh * leak, gh * v
        if kind == "leak":
            keep = 1.0 - torch.div(torch.ones_like(leak), leak)
            return gh, gh * keep, gh * torch.div(v - self.rest, leak * leak)
        keep = 1.0 - torch.div(torch.ones_like(leak), leak)
        return torch.div(gh, leak), gh * keep, gh * torch.div((v - self.rest) - x, leak * leak)

    def delayed_reset_gradient(self, gh: Tensor) -> Tensor | None:
        """What dL/ds[t] gets from h[t+1], whose gradient is ``gh``."""
        n = self.neuron
        if n.reset != "soft_delayed" or n.detach_reset:
            return None
        return gh * n.threshold
