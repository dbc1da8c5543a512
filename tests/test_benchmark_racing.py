"""What the benchmarks race against."""

from __future__ import annotations

import itertools

import pytest
import racing
import torch


@pytest.mark.parametrize("tensors", range(1, 9))
def test_floor_moves_as_many_bytes_as_it_says(tensors):
    x = torch.rand(6, 4)
    moved = 0

    class Counting(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal moved
            if function is torch.Tensor.copy_:
                moved += args[0].nbytes + args[1].nbytes
            return function(*args, **(kwargs or {}))

    call = racing.floor(x, tensors=tensors)
    with Counting():
        call()
    assert moved == tensors * x.nbytes


def test_a_slow_contestant_runs_in_fewer_rounds_that_are_spread_over_the_race(monkeypatch):
    seconds, order = {"slow": 0.5, "fast": 1e-3}, []
    monkeypatch.setattr(racing, "_seconds", lambda call, device: call())

    def contestant(name):
        def call():
            order.append(name)
            return seconds[name]

        return call

    times = racing.race({name: contestant(name) for name in seconds}, "cpu")
    assert times == {"slow": [0.5] * racing.FEWEST_ROUNDS, "fast": [1e-3] * racing.ROUNDS}
    turns = [i for i, name in enumerate(order) if name == "slow"][2:]  # two calls come before the race
    gaps = [b - a for a, b in itertools.pairwise(turns)]
    assert len(gaps) == racing.FEWEST_ROUNDS - 1
    assert min(gaps) > racing.ROUNDS // 4


def test_everyone_follows_everyone(monkeypatch):
    order = []
    monkeypatch.setattr(racing, "_seconds", lambda call, device: call() or 1e-3)
    calls = {name: lambda name=name: order.append(name) for name in "abcd"}
    racing.race(calls, "cpu")
    race = order[2 * len(calls) :]  # two calls of each come before it
    assert all(sorted(race[i : i + 4]) == list("abcd") for i in range(0, len(race), 4))
    assert set(itertools.pairwise(race)) >= set(itertools.permutations("abcd", 2))


def test_peak_is_of_what_is_held_at_once():
    def one_after_the_other():
        for _ in range(5):
            torch.ones(1000, 1000)

    def both():
        return torch.ones(1000, 1000), torch.ones(1000, 1000)

    assert 4e6 <= racing.peak_bytes(one_after_the_other, "cpu") < 5e6
    assert 8e6 <= racing.peak_bytes(both, "cpu") < 9e6


def test_peak_is_beyond_what_an_earlier_call_left():
    left = {}

    def replace():
        left.clear()
        torch.ones(500, 1000)
        left["gradient"] = torch.ones(1000, 1000)

    assert racing.peak_bytes(replace, "cpu") < 1e6


def test_share_of_the_convolutions():
    x = torch.randn(8, 64, 32, 32)
    weight = torch.randn(128, 64, 3, 3, requires_grad=True)
    convolve = lambda: torch.nn.functional.conv2d(x, weight).sum().backward()  # noqa: E731
    assert racing.convolution_share(convolve, "cpu") > 0.2
    with torch.autocast("cpu", torch.bfloat16):  # which records a convolution inside of itself
        assert 0.0 < racing.convolution_share(lambda: torch.nn.functional.conv2d(x, weight), "cpu") <= 1.0
    assert racing.convolution_share(lambda: x * 2, "cpu") == 0
