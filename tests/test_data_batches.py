"""Order, sharding, resumption and augmentation of in-memory batches."""

from itertools import chain, product

import pytest
import torch

from ckdsnn.data.augment import Augmentation
from ckdsnn.data.batches import BatchLoader, EpochSampler, counter_generator


def batches(sampler, epoch):
    sampler.set_epoch(epoch)
    return [indices.tolist() for _, indices in sampler]


def loader(augment=None, **options):
    images = torch.arange(20 * 3 * 8 * 8, dtype=torch.uint8).reshape(20, 3, 8, 8)
    sampler = EpochSampler(20, 4, shuffle=True, drop_last=True, seed=5)
    return BatchLoader(images, torch.arange(20), sampler, augment=augment, **options)


def test_every_epoch_is_a_new_permutation_that_the_seed_decides():
    a, b = (EpochSampler(50, 8, shuffle=True, seed=1) for _ in range(2))
    first, second = batches(a, 0), batches(a, 1)
    assert sorted(chain(*first)) == list(range(50)) == sorted(chain(*second))
    assert first != second
    assert batches(b, 1) == second  # without having passed epoch 0
    assert batches(EpochSampler(50, 8, shuffle=True, seed=2), 0) != first


@pytest.mark.parametrize("length", [64, 67, 49])  # 49: one process has 17 samples, which is a batch more than 16
def test_processes_share_the_samples(length):
    training = [EpochSampler(length, 8, shuffle=True, drop_last=True, rank=r, world_size=3) for r in range(3)]
    assert len({len(sampler) for sampler in training}) == 1
    assert [len(batches(sampler, 4)) for sampler in training] == [len(training[0])] * 3
    seen = [i for sampler in training for batch in batches(sampler, 4) for i in batch]
    assert len(seen) == len(set(seen))
    testing = [EpochSampler(length, 8, shuffle=False, rank=r, world_size=3) for r in range(3)]
    assert sorted(i for s in testing for batch in batches(s, 0) for i in batch) == list(range(length))
    assert len({len(sampler) for sampler in testing}) == 1
    assert [len(batches(sampler, 0)) for sampler in testing] == [len(testing[0])] * 3
    assert all(0 < len(batch) <= 8 for sampler in testing for batch in batches(sampler, 0))


def test_resumes_in_the_middle_of_an_epoch():
    whole = loader(Augmentation(shift=2, flip=True))
    whole.sampler.set_epoch(3)
    expected = [batch.images for batch in whole]

    interrupted = loader(Augmentation(shift=2, flip=True))
    interrupted.sampler.set_epoch(3)
    iterator = iter(interrupted)
    for _ in range(2):
        next(iterator)
    state = interrupted.state_dict()

    resumed = loader(Augmentation(shift=2, flip=True))
    resumed.load_state_dict(state)
    resumed.sampler.set_epoch(3)
    rest = [batch.images for batch in resumed]
    assert len(rest) == 3
    assert all(torch.equal(a, b) for a, b in zip(rest, expected[2:], strict=True))
    resumed.sampler.set_epoch(4)
    assert len(list(resumed)) == 5  # the next epoch is whole


def test_a_state_from_another_epoch_does_not_shorten_this_one():
    resumed = loader()
    resumed.load_state_dict({"epoch": 2, "batch": 5})
    resumed.sampler.set_epoch(3)
    assert len(list(resumed)) == 5


def test_batches_are_normalised_and_indexed():
    made = loader(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    batch = next(iter(made))
    raw = made.images[batch.indices].double() / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    torch.testing.assert_close(batch.images.double(), (raw - mean) / std, rtol=1e-6, atol=1e-6)
    assert torch.equal(batch.targets, batch.indices)


def test_frames_come_time_first():
    frames = torch.rand(6, 5, 2, 4, 4)
    made = BatchLoader(frames, torch.zeros(6, dtype=torch.long), EpochSampler(6, 3, shuffle=False))
    batch = next(iter(made))
    assert batch.images.shape == (5, 3, 2, 4, 4)
    assert torch.equal(batch.images[:, 1], frames[1])


def test_counter_generators_are_unrelated():
    numbers = [(s, *counters) for s in range(4) for n in range(3) for counters in product(range(4), repeat=n)]
    firsts = {torch.rand(1, generator=counter_generator(*seed_and_counters)).item() for seed_and_counters in numbers}
    assert len(firsts) == len(numbers) == 84


def test_a_sample_is_augmented_alike_in_any_batch_and_process():
    augmentation = Augmentation(auto_augment="cifar10", shift=2, flip=True, erase=0.5)
    images = torch.randint(256, (24, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = augmentation.apply(images, torch.arange(24), 5, 3, (0.5,), (0.25,))
    for size, processes in ((24, 1), (5, 1), (4, 3)):
        for rank in range(processes):
            sampler = EpochSampler(24, size, shuffle=True, seed=5, rank=rank, world_size=processes)
            sampler.set_epoch(3)
            options = {"mean": (0.5,), "std": (0.25,), "augment": augmentation}
            for batch in BatchLoader(images, torch.arange(24), sampler, **options):
                assert torch.equal(batch.images, whole[batch.indices])


def test_too_small_a_data_set_for_one_batch():
    with pytest.raises(ValueError, match=r"10 training samples do not fill one batch of 16.*lower batch_size to 10"):
        EpochSampler(10, 16, shuffle=True, drop_last=True)
