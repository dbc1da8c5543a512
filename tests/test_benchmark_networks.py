"""The networks that the benchmarks time against each other are one network."""

from __future__ import annotations

import networks
import peers
import pytest
import torch

PARAMETERS = 12_569_226  # of ResNet-19 with 10 classes


def available(name: str, **options: object) -> torch.nn.Module:
    try:
        return networks.build(name, **options)
    except peers.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", networks.NAMES)
def test_parameters_are_those_of_resnet19(name):
    assert sum(p.numel() for p in available(name).parameters()) == PARAMETERS


@pytest.mark.parametrize("name", ["paper", "spikingjelly"])
def test_logits_and_maps_are_ours(name):
    """In double precision, where rounding moves no neuron across its threshold."""
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs = [available(n, width=1 / 16, sam=True).double()(images) for n in (name, "ours")]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, check_dtype=False)
    torch.testing.assert_close(outputs[0].step_logits, outputs[1].step_logits)
    torch.testing.assert_close(outputs[0].sams[3], outputs[1].sams[3], rtol=0, atol=1e-7)


def test_relu_takes_every_time_step_for_an_image():
    step = networks.Step("relu", batch=2, width=1 / 16, time_steps=3)
    assert step.images.shape == (6, 3, 32, 32)
    assert step.network(step.images).logits.shape == (6, 10)


@pytest.mark.parametrize("name", networks.NAMES)
def test_steps_train(name):
    available(name, width=1 / 16)
    step = networks.Step(name, batch=4, width=1 / 16)
    first, *_, last = (step().item() for _ in range(8))
    assert last < first


def test_one_bit_spikes_change_no_step():
    steps = [networks.Step("ours", batch=2, width=1 / 16, one_bit=one_bit) for one_bit in (False, True)]
    assert [steps[0]() for _ in range(3)] == [steps[1]() for _ in range(3)]
