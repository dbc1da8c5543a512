"""The C++ kernels of narrower instruction sets: CKD_CPU_LEVEL is read once, so each runs in a process of its own."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ckd_kernels
from bn_lif_checks import BNCase, run_bn_case
from ckd_kernels import build_info
from ckd_kernels.backends import native
from lif_checks import Target
from reference_cases import SURROGATES, Case, make_neuron

CPU = Target("cpu", "cpu")
ROOT = Path(__file__).resolve().parents[1]


def narrow_levels():
    """Of those compiled, the ones below the widest that this processor runs."""
    facts = build_info()["compiled"]
    return facts["cpu_levels"][: facts["cpu_levels"].index(facts["cpu_level_in_use"])] if facts else []


def lif_cases():
    """Every neuron, dtype and kind of call once in a while."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    turn = 0
    for charge in ("decay", "leak", "leak_input", "integrate"):
        for reset in ("hard", "soft", "soft_delayed", "none"):
            for dtype in dtypes:
                neuron = make_neuron(charge, reset, plain=turn % 2 == 0, surrogate_=SURROGATES[turn % 9])
                leak = "channel" if turn % 3 == 0 and charge != "integrate" else None
                shape = (1 + turn % 21, 2, 3, 35)
                yield Case(neuron, shape, dtype=dtype, leak=leak, spikes_only=turn % 2 == 1, seed=turn)
                turn += 1


def bn_results():
    """What `bn_lif` gives, spread over neurons, dtypes, memory formats and tiles."""
    memories = ("contiguous", "channels_last", "repeated")
    results = []
    for turn, case in enumerate(lif_cases()):
        shape = [(1, 3, 16, 8, 8), (4, 3, 20, 9, 11), (7, 2, 5, 13, 3), (18, 2, 6, 5, 7)][turn % 4]
        lif = Case(case.neuron, shape, dtype=case.dtype, leak=case.leak, memory=memories[turn % 3], seed=turn)
        results.append(run_bn_case(CPU, BNCase(lif, residual=turn % 2 == 0, training=turn % 5 > 0)))
    return results


def run_at(level: str, code: str, *arguments: str) -> subprocess.CompletedProcess:
    tests, package = os.path.dirname(__file__), os.path.dirname(os.path.dirname(ckd_kernels.__file__))
    environment = {**os.environ, "CKD_CPU_LEVEL": level, "PYTHONPATH": os.pathsep.join([package, tests])}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("level", narrow_levels())
def test_lif(level):
    """It is what the plain loop gives."""
    code = f"""
from ckd_kernels import build_info
from lif_checks import check_gradients
from test_cpu_levels import CPU, lif_cases

assert build_info()["compiled"]["cpu_level_in_use"] == "{level}"
for case in lif_cases():
    check_gradients(CPU, case)
print("done")
"""
    done = run_at(level, code)
    assert done.stdout.strip() == "done", done.stderr


@pytest.mark.parametrize("level", narrow_levels())
def test_bn_lif(level, tmp_path):
    """Bit by bit what the widest level gives, sums over elements included."""
    code = """
import sys
import torch
from test_cpu_levels import bn_results

torch.save([tuple(r) for r in bn_results()], sys.argv[1])
"""
    done = run_at(level, code, str(tmp_path / "results.pt"))
    assert done.returncode == 0, done.stderr
    narrow = torch.load(tmp_path / "results.pt")
    for turn, (result, other) in enumerate(zip(bn_results(), narrow, strict=True)):
        for name, tensor, of_other in zip(result._fields, result, other, strict=True):
            if name == "gradients":
                for leaf, gradient in tensor.items():
                    assert torch.equal(gradient, of_other[leaf]), (turn, leaf)
            else:
                assert torch.equal(tensor, of_other), (turn, name)


@pytest.mark.skipif(not narrow_levels(), reason="there is no choice of levels")
def test_unknown_level():
    done = run_at("v5", "from ckd_kernels import build_info; build_info()")
    levels = ", ".join([*narrow_levels(), build_info()["compiled"]["cpu_level_in_use"]])
    assert f"ValueError: CKD_CPU_LEVEL must be one of {levels}; got v5" in done.stderr


def choose_levels(folder: Path, wish: str) -> subprocess.CompletedProcess:
    """What cmake/cpu.cmake makes of CKD_CPU_LEVELS."""
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.26)\nproject(levels LANGUAGES CXX)\n"
        f"include({ROOT}/cmake/cpu.cmake)\nckd_choose_cpu_levels()\n"
    )
    command = [sys.executable, "-m", "cmake", f"-DCKD_CPU_LEVELS={wish}", "-S", folder, "-B", folder / "build"]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="there is no choice of levels")
@pytest.mark.parametrize(("wish", "chosen"), [("all", "baseline v3 v4 (all)"), ("v4, v3", "baseline v3 v4 (")])
def test_levels_that_are_compiled(wish, chosen, tmp_path):
    done = choose_levels(tmp_path, wish)
    assert done.returncode == 0, done.stderr
    assert f"CPU kernels: {chosen}" in done.stdout


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="there is no choice of levels")
def test_native_is_the_baseline_and_one_level(tmp_path):
    done = choose_levels(tmp_path, "native")
    assert done.returncode == 0, done.stderr
    chosen = re.search(r"CPU kernels: ([a-z0-9 ]+) \(native", done.stdout)[1].split()
    assert chosen[0] == "baseline"
    assert len(chosen) <= 2
    if build_info()["compiled"]:
        assert chosen[-1] == native.compiled().cpu.widest_level()


def test_unknown_levels_are_refused(tmp_path):
    done = choose_levels(tmp_path, "v3 v9")
    assert done.returncode != 0
    assert "CKD_CPU_LEVELS has 'v9'; write native, all, or levels out of: baseline" in " ".join(done.stderr.split())


@pytest.mark.skipif(build_info()["compiled"] is None, reason="the compiled module is missing")
def test_the_module_stays_small():
    """Compile time and size have a budget: a template parameter that multiplies must earn its place."""
    facts, size = build_info()["compiled"], os.path.getsize(native.compiled().__file__)
    per_level, host_and_baseline, per_arch = 4.0, 2.0, 16.0  # MB
    budget = host_and_baseline + per_level * (len(facts["cpu_levels"]) - 1) + per_arch * len(facts["cuda_archs"])
    assert size < budget * 1e6
