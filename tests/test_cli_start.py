"""What a command imports before it answers: processes that say what they have in memory."""

import json
import os
import subprocess
import sys

import pytest

from ckdsnn import cli

# Runs the arguments' commands and prints the names of all modules as the last line.
COMMANDS = """
import json, sys
from ckdsnn.cli import main
statuses = []
for command in json.loads(sys.argv[1]):
    try:
        statuses.append(main(command))
    except SystemExit as stopped:
        statuses.append(stopped.code)
print(json.dumps([statuses, sorted(sys.modules)]))
"""


def modules_after(tmp_path, *commands, code=COMMANDS):
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,  # not in the source tree, whose packages are not compiled and would come first
    )
    assert done.returncode == 0, done.stderr
    statuses, modules = json.loads(done.stdout.splitlines()[-1])
    return statuses, set(modules)


def test_answers_without_pytorch(tmp_path):
    statuses, modules = modules_after(
        tmp_path,
        ["--version"],
        ["--help"],
        ["fti"],
        ["fit", "--config", "no_such_recipe"],
        ["fit", "--config", "http://127.0.0.1:1/recipe.yaml"],
        ["demo", "--help"],
        ["sweep", "--help"],
    )
    assert statuses == [0, 0, 2, 1, 1, 0, 0]
    assert not {"torch", "numpy", "lightning", "jsonargparse", "yaml"} & modules


@pytest.mark.parametrize("asked", ["--help", "--version"])
def test_a_reader_that_has_enough(tmp_path, asked):
    """`ckdsnn --help | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from ckdsnn.cli import main; sys.exit(main(sys.argv[1:]))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, asked], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


# A module of each that only its own code imports: the package itself may be there and have run nothing.
UNNEEDED = {
    "TensorBoard": "tensorboard",
    "SciPy": "scipy._lib",
    "scikit-learn": "sklearn",
    "the compiler": "torch._dynamo.utils",
    "SymPy": "sympy",
    "Matplotlib": "matplotlib",
    "Triton": "triton",
}


def test_help_without_what_it_does_not_need(tmp_path):
    statuses, modules = modules_after(tmp_path, ["fit", "--help"])
    assert statuses == [0]
    assert "lightning" in modules
    assert not set(UNNEEDED.values()) & modules


TO_THE_SECOND_STEP = """
import json, os, sys
from ckdsnn.cli import deferred, main
deferred.install()
from ckdsnn.cli.output import Termination
def stop(self, trainer, *args):
    if trainer.global_step == 2:
        print(json.dumps([[trainer.global_step], sorted(sys.modules)]), flush=True)
        os._exit(0)
Termination.on_train_batch_end = stop
main(json.loads(sys.argv[1])[0])
"""


def test_trains_without_what_it_does_not_need(tmp_path):
    command = ["fit", "--config", "digits", "--out", str(tmp_path / "out"), "--model.method.name", "ce"]
    statuses, modules = modules_after(tmp_path, command, code=TO_THE_SECOND_STEP)
    assert statuses == [2]
    assert not set(UNNEEDED.values()) & modules


def test_the_kernels_import_themselves_only(tmp_path):
    code = """
import json, sys, torch
before = set(sys.modules)
import ckd_kernels
print(json.dumps([[], sorted(set(sys.modules) - before)]))
"""
    _, modules = modules_after(tmp_path, code=code)
    assert "ckd_kernels.layers" in modules
    assert {name.split(".")[0] for name in modules} == {"ckd_kernels"}


DEFERRED = """
import json, sys
from ckdsnn import deferred
deferred.install()
import torch
from lightning.fabric.wrappers import _unwrap_compiled
from lightning.pytorch.utilities.compile import OptimizedModule
from torchmetrics.utilities.plot import plot_single_or_multi_val
assert all(map(deferred.is_deferred, ("torch._dynamo", "torch.utils.flop_counter")))
plain = torch.nn.Linear(2, 2)
weights = plain.weight.detach().clone()
optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
plain(torch.ones(1, 2)).sum().backward()
optimizer.step()
optimizer.zero_grad()
assert torch.equal(plain.weight, weights - 0.5), "the optimiser works"
assert deferred.is_deferred("torch._dynamo"), "and needs no compiler"
assert not isinstance(plain, OptimizedModule)

compiled = torch.compile(plain, backend="eager")
assert not deferred.is_deferred("torch._dynamo")
assert torch.equal(compiled(torch.ones(1, 2)), plain(torch.ones(1, 2)))
assert isinstance(compiled, OptimizedModule) and isinstance(compiled, torch._dynamo.OptimizedModule)
assert _unwrap_compiled(compiled)[0] is plain
import torch._dynamo.config
optimizer.step()
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    plain(torch.ones(1, 2))
assert counter.get_total_flops() == 8
import scipy, scipy.signal
assert scipy.signal.convolve([1, 2], [1, 1]).tolist() == [1, 3, 2]
assert plot_single_or_multi_val(torch.tensor(1.0))[0].axes
import importlib
importlib.import_module("torchmetrics").classification.MulticlassAccuracy(3)
print(json.dumps([[], []]))
"""


def test_what_was_deferred_works_when_it_is_used(tmp_path):
    modules_after(tmp_path, code=DEFERRED)


def test_a_module_of_a_deferred_package_brings_the_package(tmp_path):
    modules_after(
        tmp_path,
        code="""
import json, sys
from ckdsnn import deferred
deferred.install()
import torch, torch._dynamo
assert deferred.is_deferred("torch._dynamo")
import torch._dynamo.config
assert not deferred.is_deferred("torch._dynamo")
print(json.dumps([[], []]))
""",
    )


@pytest.mark.parametrize("verb", ["fit", "distill", "demo"])
def test_missing_packages_are_named(monkeypatch, capsys, verb):
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "lightning" else object())
    assert cli.main([verb]) == 1
    assert capsys.readouterr().err == (
        f"ckdsnn: error: {verb} needs lightning: install with pip install 'ckd-kernels[train]'\n"
    )
