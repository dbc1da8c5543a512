"""One-bit saved spikes with what PyTorch has around a network: checkpoints, threads, the compiler, processes."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ckd_kernels import lif, one_bit_spikes
from memory_checks import PAPER, Network, assert_same_gradients, currents, gradients


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_checkpointing(use_reentrant, inside):
    """Around a checkpoint and within one."""
    module, x = Network(), currents(3, 2, 3, 8, 8)
    plain = gradients(module, x)

    def part(x):
        if not inside:
            return module(x)
        with one_bit_spikes():
            return module(x)

    run = functools.partial(checkpoint, part, use_reentrant=use_reentrant)
    assert_same_gradients(gradients(module, x, None if inside else one_bit_spikes(), run), plain)


def test_threads_do_not_see_each_other(packs):
    module, found = nn.Linear(5, 5), []

    def work():
        module(lif(currents(4, 2, 5), PAPER))
        found.append(len(packs))
        with one_bit_spikes():
            module(lif(currents(4, 2, 5), PAPER))
        found.append(len(packs))

    with one_bit_spikes():
        other = threading.Thread(target=work)
        other.start()
        other.join()
        assert found == [0, 1]
        module(lif(currents(4, 2, 5), PAPER))
    assert len(packs) == 2


@pytest.mark.parametrize("fullgraph", [False, True])
def test_around_a_compiled_network(fullgraph, packs):
    """The compiler decides what its graph keeps; nothing is packed, and gradients are those of the compiled network."""
    module, x = Network(), currents(3, 2, 3, 8, 8)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=fullgraph)
    assert_same_gradients(gradients(module, x, one_bit_spikes(), compiled), gradients(module, x, run=compiled))
    assert packs == []


def test_around_compiled_layers(packs):
    """Spikes of a neuron that is not compiled enter a graph that is."""
    module, x = nn.Linear(12, 12), currents(4, 2, 12)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True)

    def run(x):
        return compiled(lif(compiled(lif(compiled(x), PAPER)), PAPER))

    plain = gradients(module, x, run=run)
    assert_same_gradients(gradients(module, x, one_bit_spikes(), run), plain)
    assert packs == [4 * 2 * 12] * 2


@pytest.mark.parametrize("made", ["inside", "outside"])
def test_inside_a_compiled_function(made, packs):
    """The block itself does not compile: an error where no graph break is allowed, else it runs as it is."""
    module, x, context = Network(), currents(3, 2, 3, 8, 8), one_bit_spikes()

    def run(x):
        with one_bit_spikes() if made == "inside" else context:
            return module(x)

    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"saved_tensors_hooks|context manager"):
        torch.compile(run, fullgraph=True)(x)
    torch._dynamo.reset()
    compiled = gradients(module, x, run=torch.compile(run))
    for actual, expected in zip(compiled, gradients(module, x), strict=True):
        torch.testing.assert_close(actual, expected)


def test_data_parallel(tmp_path):
    """Two processes, gloo."""
    script = Path(__file__).with_name("data_parallel_memory.py")
    processes = [subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path)]) for rank in (0, 1)]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    (plain, packed), (other_plain, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(gradient.any() for gradient in plain)
    assert_same_gradients(packed, plain)
    assert_same_gradients(other_plain, plain)
