"""SpikingJelly 0.0.0.0.14's neurons, as far as conversion sees them: it cannot be installed beside 2.0.0.

The classes have its names, attributes and arithmetic (its ``backend="torch"``): state in ``_memories``, charges that
are written differently for ``v_reset`` 0 or None, and in ``eval()`` for IFNode and LIFNode code of their own.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, alpha):
        ctx.save_for_backward(x)
        ctx.alpha = alpha
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx, grad):
        sgax = (ctx.saved_tensors[0] * ctx.alpha).sigmoid_()
        return grad * (1.0 - sgax) * sgax * ctx.alpha, None


class Sigmoid(nn.Module):
    def __init__(self, alpha=4.0, spiking=True):
        super().__init__()
        self.alpha, self.spiking = alpha, spiking

    def forward(self, x):
        return _Heaviside.apply(x, self.alpha)


class BaseNode(nn.Module):
    def __init__(self, v_threshold=1.0, v_reset=0.0, detach_reset=False, step_mode="s", store_v_seq=False):
        super().__init__()
        self._memories = {"v": 0.0 if v_reset is None else v_reset}
        self._memories_rv = copy.deepcopy(self._memories)
        self.v_threshold, self.v_reset, self.detach_reset = v_threshold, v_reset, detach_reset
        self.surrogate_function = Sigmoid()
        self.step_mode, self.backend, self.store_v_seq = step_mode, "torch", store_v_seq

    def __getattr__(self, name):
        if name in self.__dict__.get("_memories", {}):
            return self._memories[name]
        return super().__getattr__(name)

    def __setattr__(self, name, value):
        if name in self.__dict__.get("_memories", {}):
            self._memories[name] = value
        else:
            super().__setattr__(name, value)

    def reset(self):
        self._memories = copy.deepcopy(self._memories_rv)

    def forward(self, *args):
        return self.single_step_forward(*args) if self.step_mode == "s" else self.multi_step_forward(*args)

    def single_step_forward(self, x):
        if isinstance(self.v, float):
            self.v = torch.full_like(x.data, self.v)
        if not self.training and type(self).__name__.endswith(("IFNode", "LIFNode")) and not hasattr(self, "w"):
            return self.eval_step(x)
        self.neuronal_charge(x)
        spike = self.surrogate_function(self.v - self.v_threshold)
        spike_d = spike.detach() if self.detach_reset else spike
        if self.v_reset is None:
            self.v = self.v - spike_d * self.v_threshold
        else:
            self.v = (1.0 - spike_d) * self.v + spike_d * self.v_reset
        return spike

    def eval_step(self, x):
        self.eval_charge(x)
        spike = (self.v >= self.v_threshold).to(x)
        if self.v_reset is None:
            self.v = self.v - spike * self.v_threshold
        else:
            self.v = self.v_reset * spike + (1.0 - spike) * self.v
        return spike

    def multi_step_forward(self, x_seq):
        return torch.stack([self.single_step_forward(x) for x in x_seq])


class IFNode(BaseNode):
    def neuronal_charge(self, x):
        self.v = self.v + x

    eval_charge = neuronal_charge


class LIFNode(BaseNode):
    def __init__(self, tau=2.0, decay_input=True, **options):
        super().__init__(**options)
        self.tau, self.decay_input = tau, decay_input

    def neuronal_charge(self, x):
        reset0 = self.v_reset is None or self.v_reset == 0.0
        if self.decay_input:
            self.v = self.v + (x - (self.v if reset0 else self.v - self.v_reset)) / self.tau
        elif reset0:
            self.v = self.v * (1.0 - 1.0 / self.tau) + x
        else:
            self.v = self.v - (self.v - self.v_reset) / self.tau + x

    def eval_charge(self, x):
        if self.v_reset is None or self.decay_input:
            self.neuronal_charge(x)
        else:
            self.v = self.v - (self.v - self.v_reset) / self.tau + x


class ParametricLIFNode(BaseNode):
    def __init__(self, init_tau=2.0, decay_input=True, **options):
        super().__init__(**options)
        self.decay_input = decay_input
        self.w = nn.Parameter(torch.as_tensor(-math.log(init_tau - 1.0)))

    def neuronal_charge(self, x):
        rate, reset0 = self.w.sigmoid(), self.v_reset is None or self.v_reset == 0.0
        if self.decay_input:
            self.v = self.v + (x - (self.v if reset0 else self.v - self.v_reset)) * rate
        elif reset0:
            self.v = self.v * (1.0 - rate) + x
        else:
            self.v = self.v - (self.v - self.v_reset) * rate + x


for _cls in (BaseNode, IFNode, LIFNode, ParametricLIFNode):
    _cls.__module__ = "spikingjelly.activation_based.neuron"
Sigmoid.__module__ = "spikingjelly.activation_based.surrogate"
