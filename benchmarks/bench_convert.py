"""One optimiser step of SpikingJelly's own spiking ResNet-18, as it is and after `ckd_kernels.convert`.

Its model zoo, images of 32x32, T = 4, batch 32, LIFNode with its defaults.

``ours``                 ``convert(net, fuse=True)``
``ours channels-last``   and ``net.to(memory_format=torch.channels_last)``
``ours one-bit``         and `one_bit_spikes` around the forward pass
``ours unfused``         ``convert(net)``
"""

from __future__ import annotations

import contextlib
import sys
import types

import pytest
import torch
from peers import Unavailable
from racing import DEVICES
from torch import nn

import ckd_kernels

PRECISIONS = {"float32": None, "bfloat16 autocast": torch.bfloat16}
OURS = ("ours", "ours channels-last", "ours one-bit", "ours unfused")
NAMES = (*OURS, "spikingjelly", "spikingjelly channels-last")
TIME_STEPS, BATCH = 4, 32


def zoo() -> types.ModuleType:
    """SpikingJelly's spiking ResNets, whose module wants a downloader of weights from torchvision."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        stub = types.ModuleType("torchvision.models.utils")
        stub.load_state_dict_from_url = None
        for module in (types.ModuleType("torchvision"), types.ModuleType("torchvision.models"), stub):
            sys.modules[module.__name__] = module
    try:
        from spikingjelly.activation_based.model import spiking_resnet
    except ImportError as error:
        raise Unavailable(f"spikingjelly: {error}") from None
    return spiking_resnet


class Step:
    """Old gradients freed, forward, cross-entropy of the mean over time, backward, SGD, and the reset of the state."""

    def __init__(self, name: str, device: str, autocast: torch.dtype | None) -> None:
        spiking_resnet = zoo()
        from spikingjelly.activation_based import functional, neuron

        torch.manual_seed(0)
        self.net = spiking_resnet.spiking_resnet18(spiking_neuron=neuron.LIFNode, num_classes=10).to(device)
        functional.set_step_mode(self.net, "m")
        whose, *options = name.split()
        if whose == "ours":
            ckd_kernels.convert(self.net, fuse="unfused" not in options, strict=True)
        if "channels-last" in options:
            self.net.to(memory_format=torch.channels_last)
        self.saving = ckd_kernels.one_bit_spikes if "one-bit" in options else contextlib.nullcontext
        self.reset = functional.reset_net
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        self.x = torch.randn(TIME_STEPS, BATCH, 3, 32, 32, device=device)
        self.target = torch.arange(BATCH, device=device) % 10
        self.device, self.autocast = device, autocast

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.device, self.autocast, enabled=self.autocast is not None), self.saving():
            loss = nn.functional.cross_entropy(self.net(self.x).mean(0), self.target)
        loss.backward()
        self.optimizer.step()
        self.reset(self.net)


@pytest.mark.parametrize(
    ("device", "dtype", "work", "contestant"),
    [(device, dtype, "step", name) for device in DEVICES for dtype in PRECISIONS for name in NAMES],
)
def test_spikingjelly_resnet18(device, dtype, work, contestant, enter):
    """The whole step, convolutions included."""
    enter(
        lambda name: Step(name, device, PRECISIONS[dtype]),
        split=True,
        shape=f"[{TIME_STEPS}, {BATCH}, 3, 32, 32]",
    )
