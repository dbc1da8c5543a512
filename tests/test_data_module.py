"""What a data module's loaders are: of which part, in which order, augmented or not, where, and in which batches."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch

from ckdsnn.data import CIFAR, ArrayDataModule, Augmentation, DigitsCanvas, DVSFrames
from ckdsnn.data.module import Arrays

SIZES = {"train": 24, "validation": 10, "test": 14}


class Numbers(ArrayDataModule):
    """Images of one value, which tells the part and the sample."""

    num_classes, in_channels, mean, std = 2, 1, (0.5,), (2.0,)

    def load(self, part):
        count = SIZES[part]
        values = torch.arange(count, dtype=torch.float32) + 100 * list(SIZES).index(part)
        return Arrays(values.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone(), torch.arange(count) % 2)


def module(trainer=None, **options):
    data = Numbers(**{"batch_size": 8, "seed": 3, **options})
    data.trainer = trainer
    for stage in ("fit", "test"):
        data.setup(stage)
    return data


def values(loader):
    """The value of each image before normalisation, in order."""
    return [round(value) for batch in loader for value in (batch.images.amax((1, 2, 3)) * 2 + 0.5).tolist()]


def others(data):
    return {"validation": data.val_dataloader(), "test": data.test_dataloader(), "predict": data.predict_dataloader()}


def test_each_loader_has_its_part_in_its_order():
    data = module()
    train = values(data.train_dataloader())
    assert sorted(train) == list(range(24)) != train
    assert train != values(module(seed=4).train_dataloader())
    shown = {part: values(loader) for part, loader in others(data).items()}
    assert shown["validation"] == list(range(100, 110))
    assert shown["test"] == shown["predict"] == list(range(200, 214))
    assert values(data.in_order("train")) == list(range(24))


def test_only_training_is_augmented():
    data = module(augmentation=Augmentation(erase=1.0))
    assert any((batch.images == 0).any() for batch in data.train_dataloader())
    for loader in (*others(data).values(), data.in_order("train")):
        assert not any((batch.images == 0).any() for batch in loader)
    quiet = module()
    assert not any((batch.images == 0).any() for batch in quiet.train_dataloader())


def test_every_epoch_is_augmented_anew():
    loader = module(augmentation=Augmentation(shift=2)).train_dataloader()
    epochs = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        order = torch.cat([batch.indices for batch in batches]).argsort()
        epochs.append(torch.cat([batch.images for batch in batches])[order])
        out = torch.empty(24, 1, 4, 4)
        loader.fill(torch.arange(24), epoch, out)
        assert torch.equal(out, epochs[-1])
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])


def test_sizes_of_batches():
    data = module(eval_batch_size=5)
    assert [len(batch.targets) for batch in module(batch_size=9).train_dataloader()] == [9, 9]  # the rest is left out
    assert [len(batch.targets) for batch in data.val_dataloader()] == [5, 5]
    assert [len(batch.targets) for batch in data.test_dataloader()] == [5, 5, 4]
    assert [len(batch.targets) for batch in data.in_order("train")] == [5, 5, 5, 5, 4]
    assert module()._evaluated_at_once == 256
    on_device = module()
    on_device.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    assert on_device._evaluated_at_once == 1000


def test_renderings_come_one_an_epoch():
    data = module()
    data.views = 3
    loader = data.train_dataloader()
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        first = 8 * (epoch % 3)
        assert sorted(values(loader)) == list(range(first, first + 8))
    assert len(values(data.val_dataloader())) == 10


def test_processes_share_the_samples():
    shown = []
    for rank in range(2):
        trainer = SimpleNamespace(
            global_rank=rank, world_size=2, strategy=SimpleNamespace(root_device=torch.device("cpu"))
        )
        data = module(trainer, batch_size=4)
        shown.append((values(data.train_dataloader()), values(data.test_dataloader())))
    assert sorted(shown[0][0] + shown[1][0]) == list(range(24))
    assert sorted(shown[0][1] + shown[1][1]) == list(range(200, 214))


@pytest.mark.parametrize(("where", "lies"), [("device", "meta"), ("host", "cpu")])
def test_where_the_data_lies(where, lies):
    """And that batches are wanted on the trainer's device all the same."""
    data = Numbers(batch_size=8, where=where)
    data.trainer = SimpleNamespace(
        global_rank=0, world_size=1, strategy=SimpleNamespace(root_device=torch.device("meta"))
    )
    data._check_targets = lambda part, targets: None
    data.setup("fit")
    assert {part.device.type for part in data.arrays("train")} == {lies}
    for loader in (data.train_dataloader(), data.val_dataloader(), data.in_order("train")):
        assert loader.images.device.type == lies
        assert loader.device.type == "meta"


def test_labels_are_looked_at():
    data = Numbers(batch_size=8)
    for targets in (torch.tensor([0, 2]), torch.tensor([-1, 0])):
        with pytest.raises(ValueError, match=r"with 2 classes they must lie in \[0, 1\]"):
            data._check_targets("test", targets)


@pytest.mark.parametrize("kind", [CIFAR, DVSFrames, DigitsCanvas])
def test_data_sets_in_memory_have_all_options_of_the_base(kind):
    base, own = (inspect.signature(module).parameters for module in (ArrayDataModule, kind))
    assert {name: own[name].annotation for name in base if name in own} == {n: p.annotation for n, p in base.items()}
