"""SpikingJelly's ``clock_driven`` neurons (0.0.0.0.12 and 0.0.0.0.14), as far as conversion sees them.

Neither version can be installed beside 2.0.0.  The classes have their names, attributes and arithmetic (the backend
"torch"): state, threshold and reset in ``_memories``, and multi-step neurons that are classes of their own.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

import spikingjelly_14


class Sigmoid(spikingjelly_14.Sigmoid):
    pass


class MemoryModule(nn.Module):
    def __init__(self):
        super().__init__()
        self._memories, self._memories_rv = {}, {}

    def register_memory(self, name, value):
        self._memories[name] = value
        self._memories_rv[name] = copy.deepcopy(value)

    def reset(self):
        for key in self._memories:
            self._memories[key] = copy.deepcopy(self._memories_rv[key])

    def __getattr__(self, name):
        if name in self.__dict__.get("_memories", {}):
            return self._memories[name]
        return super().__getattr__(name)

    def __setattr__(self, name, value):
        if name in self.__dict__.get("_memories", {}):
            self._memories[name] = value
        else:
            super().__setattr__(name, value)


class BaseNode(MemoryModule):
    def __init__(self, v_threshold=1.0, v_reset=0.0, surrogate_function=None, detach_reset=False):
        super().__init__()
        self.register_memory("v", 0.0 if v_reset is None else v_reset)
        self.register_memory("v_threshold", v_threshold)
        self.register_memory("v_reset", v_reset)
        self.detach_reset = detach_reset
        self.surrogate_function = surrogate_function or Sigmoid()

    def forward(self, x):
        self.neuronal_charge(x)
        spike = self.surrogate_function(self.v - self.v_threshold)
        spike_d = spike.detach() if self.detach_reset else spike
        if self.v_reset is None:
            self.v = self.v - spike_d * self.v_threshold
        else:
            self.v = (1.0 - spike_d) * self.v + spike_d * self.v_reset
        return spike


class IFNode(BaseNode):
    def neuronal_charge(self, x):
        self.v = self.v + x


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


class _MultiStep:
    def __init__(self, *arguments, backend="torch", **options):
        super().__init__(*arguments, **options)
        self.register_memory("v_seq", None)
        self.backend = backend

    def forward(self, x_seq):
        assert x_seq.dim() > 1
        spikes, v_seq = [], []
        for x in x_seq:
            spikes.append(super().forward(x))
            v_seq.append(self.v)
        self.v_seq = torch.stack(v_seq)
        return torch.stack(spikes)


class MultiStepIFNode(_MultiStep, IFNode):
    pass


class MultiStepLIFNode(_MultiStep, LIFNode):
    pass


class MultiStepParametricLIFNode(_MultiStep, ParametricLIFNode):
    pass


class MultiStepEIFNode(_MultiStep, LIFNode):
    pass


for _cls in (BaseNode, IFNode, LIFNode, ParametricLIFNode):
    _cls.__module__ = "spikingjelly.clock_driven.neuron"
for _cls in (MultiStepIFNode, MultiStepLIFNode, MultiStepParametricLIFNode, MultiStepEIFNode):
    _cls.__module__ = "spikingjelly.clock_driven.neuron"
Sigmoid.__module__ = "spikingjelly.clock_driven.surrogate"
