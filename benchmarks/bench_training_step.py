"""One optimiser step of a spiking ResNet-19, its convolutions included; and of the same network with ReLU.

By default at a quarter of the width, batch 16; `--full-width` has the network as published, batch 8.
"""

from __future__ import annotations

import networks
import pytest
import torch
from racing import DEVICES

# Both in either format: the paper's loop slices and stacks over time, for which channels-last has no good order.
CONTESTANTS = [
    *("ours", "ours channels-last", "ours one-bit", "paper", "paper channels-last"),
    *("spikingjelly", "relu", "relu channels-last"),
]
PRECISIONS = {"float32": None, "bfloat16 autocast": torch.bfloat16}


def cases():
    for device in DEVICES:
        for dtype in PRECISIONS:
            for contestant in CONTESTANTS:
                yield device, dtype, "step", contestant


@pytest.mark.parametrize(("device", "dtype", "work", "contestant"), list(cases()))
def test_training_step(device, dtype, work, contestant, enter, size):
    """Forward, cross-entropy, backward, SGD; convolutions apart."""

    def build(name):
        network, _, option = name.partition(" ")
        return networks.Step(
            network,
            device=device,
            autocast=PRECISIONS[dtype],
            channels_last=option == "channels-last",
            one_bit=option == "one-bit",
            **size,
        )

    enter(build, split=True, shape=networks.describe(size))
