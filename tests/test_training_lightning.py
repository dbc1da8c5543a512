"""How the training step's own loop and Lightning's strategies get along."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from ckdsnn.checkpoint import RunError
from ckdsnn.training import lightning


def test_only_what_shares_out_batches_is_a_strategy():
    with pytest.raises(RunError, match=r"trainer\.strategy SimpleNamespace is not supported"):
        lightning.own_backward(SimpleNamespace(strategy=SimpleNamespace()))


def test_lightning_on_gpus_asks_for_no_wrapped_network_either():
    strategy = DDPStrategy(parallel_devices=[torch.device("cuda", 0)], cluster_environment=LightningEnvironment())
    strategy.model = network = L.LightningModule()
    loop = SimpleNamespace(epoch_loop=SimpleNamespace())
    lightning.own_backward(SimpleNamespace(strategy=strategy, fit_loop=loop))
    strategy.configure_ddp()
    assert strategy.model is network
