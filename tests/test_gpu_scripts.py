"""scripts/gpu_check.sh and what the benchmarks of the GPU share: what can be said of them without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import cuda_kernels
import cuda_neurons
import cuda_peers
import cuda_step
import cuda_timing
import peers
import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "gpu_check.sh"
PHASES = ("build", "warm", "native", "triton", "kernels", "neurons", "step", "peers", "sanitize")


def check(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", SCRIPT, *arguments], capture_output=True, text=True, timeout=60, env=os.environ | environment
    )


def test_help_names_every_phase():
    done = check("native", "--help")
    assert done.returncode == 0
    assert all(f"\n  {phase} " in done.stdout for phase in PHASES)


@pytest.mark.parametrize("argument", ["tests", "", ":5", "build:", "build:1.5", "build:0"])
def test_phases_that_do_not_exist_are_refused_before_any_work(argument, tmp_path):
    done = check("build", argument, OUT=str(tmp_path / "out"))
    assert done.returncode == 2
    assert f"'{argument.partition(':')[0]}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_phase_without_time_is_skipped_and_said_so(tmp_path):
    done = check("native", "sanitize", OUT=str(tmp_path), LIMIT="5")
    assert done.returncode == 1
    lines = (tmp_path / "summary.txt").read_text().splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["native", "sanitize"]
    assert all("skipped: LIMIT of 5 s" in line for line in lines)


def test_a_phase_that_fails_does_not_stop_the_rest(tmp_path):
    # A Python that always fails.
    done = check("kernels", "peers", OUT=str(tmp_path), PYTHON="false")
    assert done.returncode == 1
    lines = (tmp_path / "summary.txt").read_text().splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [["kernels", "1"], ["peers", "1"]]


# --- cuda_timing


def options(*arguments: str):
    return cuda_timing.arguments("", seconds=5).parse_args(arguments)


def test_a_case_that_fails_is_written_and_the_next_one_measured(tmp_path):
    def measure(case, warm_up):
        if case == "bad":
            raise ValueError("no such thing\nmore of it")
        return [{"case": case, "microseconds": 1.0}]

    file = tmp_path / "r.json"
    cuda_timing.run_cases(["bad", "good"], measure, options(str(file), "--device", "cpu"))
    written = json.loads(file.read_text())
    assert written["machine"]["device"] == "cpu"
    assert written["rows"] == [
        {"case": "bad", "failed": "ValueError: no such thing"},
        {"case": "good", "microseconds": 1.0},
    ]


def test_cases_behind_the_time_box_are_written_as_not_measured(tmp_path):
    file = tmp_path / "r.json"
    cuda_timing.run_cases(
        ["a"], lambda *_: pytest.fail("measured"), options(str(file), "--device", "cpu", "--seconds", "-1")
    )
    assert json.loads(file.read_text())["rows"] == [{"case": "a", "not_measured": "the -1 seconds were over"}]


def test_a_warm_up_takes_its_share_and_writes_nothing(tmp_path):
    seen = []
    for part in ("1/2", "2/2"):
        file = tmp_path / "r.json"
        given = options(str(file), "--device", "cpu", "--warm-up", part)
        cuda_timing.run_cases(["a", "b", "c"], lambda case, warm_up: seen.append((case, warm_up)) or [], given)
    assert seen == [("a", True), ("c", True), ("b", True)]
    assert not file.exists()


@pytest.mark.parametrize("share", ["3/2", "0/2", "1", "a/b"])
def test_shares_that_do_not_exist_are_refused(share, capsys):
    with pytest.raises(SystemExit):
        options("r.json", "--warm-up", share)
    assert share in capsys.readouterr().err


def test_a_race_goes_on_without_a_call_that_fails():
    def bad(i):
        raise RuntimeError("broken")

    times = cuda_timing.race({"bad": bad, "good": lambda i: sum(range(1000))}, "cpu")
    assert times["bad"] == "RuntimeError: broken"
    assert times["good"].microseconds > 0
    assert times["good"].captured is False


# --- cuda_kernels, cuda_neurons


@pytest.mark.parametrize("script", [cuda_kernels, cuda_neurons])
def test_every_kernel_of_a_case_is_measured(script):
    if script is cuda_kernels:
        cases = cuda_kernels.cases("cpu")
    else:
        cases = [cuda_neurons.Case(steps, torch.bfloat16, "cpu") for steps in (100,)]
    for case in cases:
        rows = script.measure(case, warm_up=False)
        assert len(rows) > 5
        assert [row for row in rows if "failed" in row] == []


def test_neurons_that_a_kernel_serves_alike_are_measured_once():
    neurons = cuda_neurons.neurons()
    detached, attached = neurons["LIF, atan, hard, detached"], neurons["LIF, atan, hard"]
    key = {
        (backend, n): cuda_neurons.Call(n, backend, None).key(backward=True)
        for backend in ("cuda", "triton")
        for n in (detached, attached, neurons["LIF, sigmoid, hard"])
    }
    assert key["cuda", detached] == key["cuda", attached]
    assert key["triton", detached] != key["triton", attached]
    assert len(set(key.values())) == 5


def test_kernels_that_fail_are_told_by_the_status(monkeypatch, tmp_path):
    def broken(*_):
        raise TypeError("no such argument")

    monkeypatch.setattr(cuda_neurons, "forward", broken)
    monkeypatch.setattr(cuda_neurons, "STEPS", [1])
    monkeypatch.setattr(cuda_neurons, "DTYPES", [torch.float32])
    with pytest.raises(SystemExit, match=r"\d+ of \d+ kernels failed"):
        cuda_neurons.main([str(tmp_path / "r.json"), "--device", "cpu"])


def test_table_of_neurons_says_what_failed_and_what_is_missing():
    head = {"neuron": "IF", "dtype": "float32", "backend": "cuda"}
    rows = [
        head | {"steps": 1, "direction": "forward", "of_copy": 0.987},
        head | {"steps": 1, "direction": "backward", "failed": "RuntimeError: no"},
        {"case": "T = 4", "not_measured": "the 5 seconds were over"},
    ]
    header, line = cuda_neurons.table(rows).splitlines()
    assert header.split("T = ")[1:] == ["1        ", "2        ", "4       ", "10      ", "100"]
    assert line.split() == ["IF", "float32", "cuda", "0.99", "/failed", *["-", "/", "-"] * 4]


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("void ckd::cuda::lif_forward_kernel<ckd::cuda::PlainCurrent<float>, 4>(ckd::cuda::ForwardCall)", "ours"),
        ("_reduce", "ours"),
        ("_forward_kernel", "spikingjelly"),
        ("triton_poi_fused_convolution_native_batch_norm_3", "compiled"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolution"),
        ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float>", "layout"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW<float, float, int, 512, true, 1, true>", "batch norm"),
        ("void at::native::batch_norm_backward_reduce_channels_last_kernel<4>", "batch norm"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", "elementwise"),
        ("void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda>", "copy"),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>", "reduction"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<>", "optimiser"),
        ("something_else", "other"),
    ],
)
def test_kernels_are_told_apart_by_their_names(kernel, kind):
    assert cuda_step.kind_of(kernel) == kind


@pytest.mark.parametrize(
    ("chosen", "kernels", "reason"),
    [
        (
            {"implementation": "triton", "unavailable": {"cuda": "not built"}},
            "cuda",
            "not 'cuda': not built",
        ),
        ({"implementation": "cuda", "unavailable": {}}, "triton", "SJ_LIF_CUDA_IMPLEMENTATION=triton chooses it"),
        ({"implementation": "triton", "unavailable": {}}, "triton", None),
    ],
)
def test_a_contestant_is_the_kernels_that_spikingjelly_runs(chosen, kernels, reason, monkeypatch):
    functional = pytest.importorskip("spikingjelly.activation_based.functional")
    if not hasattr(functional, "neuron_implementation"):
        pytest.skip("this release of SpikingJelly has no choice of kernels")
    monkeypatch.setattr(functional, "neuron_implementation", lambda neuron, device: chosen)
    if reason is not None:
        with pytest.raises(peers.Unavailable, match=reason):
            cuda_peers.spikingjelly_lif(kernels, "cuda")
    else:
        x = torch.randn(3, 2, 5) + 0.3
        assert torch.equal(cuda_peers.spikingjelly_lif(kernels, "cuda")(x), peers.fair_loop(x))
