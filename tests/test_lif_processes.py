"""LIF in several threads, forked and data-parallel processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

import ckd_kernels
from ckd_kernels import lif, use_backend
from reference_cases import Case, currents, make_neuron
from tolerances import assert_close, assert_same


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_result_does_not_depend_on_threads(target, threads):
    """Nor on the run: the same bits with any number of threads and every time."""
    case = Case(make_neuron("decay", "hard", surrogate_="sigmoid"), (5, 4, 6, 31, 33), v_init=True, leak="channel")
    x, v, decay = (t.to(target.device).requires_grad_() for t in (case.make_x(), case.make_v_init(), case.make_leak()))

    def run():
        with use_backend(target.backend):
            out = lif(x, case.neuron, v_init=v, decay=decay, return_sam=True, return_v=True)
            loss = (out.spikes.sum(), out.v.sum(), out.sam.sum())
            return *out, *torch.autograd.grad(loss, (x, v, decay))

    before = torch.get_num_threads()
    expected = run()
    try:
        torch.set_num_threads(threads)
        for _ in range(2):
            for a, b in zip(run(), expected, strict=True):
                assert_same("output or gradient", a, b)
    finally:
        torch.set_num_threads(before)


def test_many_threads_at_once(target):
    """Calls from several Python threads do not disturb one another."""
    neurons = [make_neuron("decay", reset) for reset in ("hard", "soft", "soft_delayed", "none")]
    x = currents((6, 3, 4, 7), torch.float32, 0).to(target.device)
    results = {}

    with use_backend(target.backend):
        expected = [step_of(x, n) for n in neurons]

        def work(i):
            results[i] = [step_of(x, neurons[i]) for _ in range(20)]

        workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for w in workers:
            w.start()
        for w in workers:
            w.join()
    for i, runs in results.items():
        for spikes, gradient in runs:
            assert_same("spikes", spikes, expected[i][0])
            assert_same("gradient", gradient, expected[i][1])
    assert len(results) == 4


def step_of(x, neuron):
    x = x.clone().requires_grad_()
    spikes = lif(x, neuron)
    spikes.sum().backward()
    return spikes.detach(), x.grad


def run_python(code, cwd):
    """Runs code in a process of its own, which sees the very package that this one sees."""
    script = cwd / "code.py"
    script.write_text(textwrap.dedent(code))
    paths = [os.path.dirname(os.path.dirname(ckd_kernels.__file__)), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, script], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_fork(tmp_path):
    """A forked worker, as a DataLoader makes them, can run the kernels after its parent did."""
    code = """
        import os, torch
        from ckd_kernels import Neuron, lif
        x = torch.full((4, 64, 64, 8), 0.8)
        expected = lif(x, Neuron.paper())
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            os._exit(0 if torch.equal(lif(x, Neuron.paper()), expected) else 1)
        assert os.waitpid(child, 0)[1] == 0
        """
    run_python(code, tmp_path)


def test_distributed_data_parallel(tmp_path):
    """Two gloo processes that see half the batch each end with the gradients of the whole batch."""
    code = """
        import os, torch
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel
        from ckd_kernels import layers

        def gradients(rank, world):
            torch.manual_seed(0)
            x = torch.randn(4, 6, 5) + 1
            linear = torch.nn.Linear
            model = net = torch.nn.Sequential(linear(5, 7), layers.LIF(), linear(7, 7), layers.ParametricLIF())
            if world > 1:
                dist.init_process_group("gloo", init_method="file://" + os.path.abspath("rendezvous"), rank=rank,
                                        world_size=world)
                x, model = x.chunk(world, dim=1)[rank], DistributedDataParallel(net)
            for _ in range(2):
                net.zero_grad()
                model(x).mean().backward()
            if rank == 0:
                torch.save([p.grad for p in net.parameters()], f"{world}.pt")
            if world > 1:
                dist.destroy_process_group()

        torch.set_num_threads(1)
        children = []
        for rank in range(2):
            children.append(os.fork())
            if children[-1] == 0:
                gradients(rank, 2)
                os._exit(0)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        gradients(0, 1)
        """
    run_python(code, tmp_path)
    alone, together = (torch.load(tmp_path / f"{world}.pt", weights_only=True) for world in (1, 2))
    assert len(alone) == 5
    for a, b in zip(together, alone, strict=True):
        assert b.abs().sum() > 0
        assert_close("gradient", a, b)
