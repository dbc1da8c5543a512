"""A training step of CKDSNN on a GPU: time, peak memory, and where the time goes.

    python benchmarks/cuda_step.py results.json

ResNet-19 of full width, batch 128 of 3x32x32, bfloat16 autocast, T 4 and 1: frozen teacher, spiking student, SAMD and
NLD, backward, SGD.  The student is ours (`cuda`, `triton`; unfused: BN and neuron apart; one-bit: spikes are kept at
one bit for the backward pass), the same network of the paper's plain modules, eager and compiled (`reduce-overhead`:
with the CUDA graphs of torch.compile), or SpikingJelly's.  `graph`: the whole step is one graph.  `plain`: with the
labels alone; so is the step of `relu`, the twin of the student with ReLU on T times as many images: what spiking costs.
Weights and images are channels-last unless it says contiguous.  Students take turns, one step each; times are
the host's, of a step that the device has ended.

The profile of one step says how long the GPU was busy with what, and for how long with nothing.
"""

from __future__ import annotations

import contextlib
import gc
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import cuda_timing as timing
import networks
import torch
from torch import Tensor, nn

import ckd_kernels
from ckd_kernels import use_backend
from ckdsnn.losses import FrozenTeacher, NoiseSource, build_method
from ckdsnn.models import SNNOutput, build_model

STEPS = 9  # of each student, after two that are not counted


class Student(NamedTuple):
    """A contestant."""

    network: str  # one of `networks.NAMES`
    backend: str = "auto"
    fused: bool = True
    one_bit: bool = False
    compiled: str = ""  # the mode of torch.compile
    distil: bool = True
    channels_last: bool = True
    graph: bool = False  # the step is captured in a CUDA graph

    def __str__(self) -> str:
        words = [self.network if self.network != "ours" else f"ours-{self.backend}"]
        words += ["unfused"] * (not self.fused) + ["one-bit"] * self.one_bit
        words += [{"default": "compiled"}.get(self.compiled, self.compiled)] * bool(self.compiled)
        words += ["plain"] * (not self.distil) + ["contiguous"] * (not self.channels_last)
        words += ["graph"] * self.graph
        return " ".join(words)


class Case(NamedTuple):
    """Students that take turns."""

    time_steps: int
    students: tuple[Student, ...]
    device: str

    def __str__(self) -> str:
        return f"T {self.time_steps}: {', '.join(map(str, self.students))}"


def cases(device: str) -> list[Case]:
    """What is most worth knowing comes first; the first student of each race is what the others are compared with."""
    native, second = ("cuda", "triton") if device == "cuda" else ("reference", "reference")
    ours = Student("ours", native)
    one_bit = [ours._replace(one_bit=True)] if hasattr(ckd_kernels, "one_bit_spikes") else []
    main = [
        ours,
        ours._replace(backend=second),
        ours._replace(fused=False),
        *one_bit,
        ours._replace(channels_last=False),
        Student("paper"),
        Student("paper", channels_last=False),
    ]
    plain = [ours._replace(distil=False), Student("relu", distil=False)]
    graphs = [student._replace(graph=True) for student in (*plain, plain[0]._replace(backend=second))]
    cost = [ours, ours._replace(graph=True), *plain, *graphs]
    rest = [ours, Student("spikingjelly"), Student("spikingjelly", channels_last=False)]
    modes = [*((mode, False) for mode in ("default", "reduce-overhead")), ("default", True)]
    slow = [ours, *(s._replace(compiled=mode, graph=graph) for mode, graph in modes for s in (Student("paper"), ours))]
    races = [[s for s in race if device == "cuda" or not s.graph] for race in (cost, slow, main, rest)]
    return [Case(steps, tuple(race), device) for race in races for steps in (4, 1)]


class Step:
    """One step of training at a time."""

    def __init__(self, student: Student, time_steps: int, device: str) -> None:
        width, batch = (1.0, 128) if device == "cuda" else (0.05, 4)
        form = torch.channels_last if student.channels_last else torch.contiguous_format
        network = networks.build(student.network, width=width, time_steps=time_steps, sam=student.distil)
        if not student.fused:
            fused = network
            network = build_model("snn_resnet19", 10, width=width, time_steps=time_steps, fused=False, sam_stages=(-1,))
            networks.copy_weights(fused, network)
        network = network.to(device=device, memory_format=form)
        self.method = build_method("ckd")
        self.noise = [module for module in self.method.modules() if isinstance(module, NoiseSource)]
        for source in self.noise:
            source.to_device(device)
        teacher = build_model("ann_resnet19", 10, width=width).to(device=device, memory_format=form)
        self.teacher = FrozenTeacher(teacher, self.method) if student.distil else None
        self.optimizer = networks.optimizer(network)
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(batch, 3, 32, 32, generator=generator)
        target = torch.randint(10, (batch,), generator=generator)
        if student.network == "relu":
            images, target = images.repeat(time_steps, 1, 1, 1), target.repeat(time_steps)
        self.images, self.target = images.to(device=device, memory_format=form), target.to(device)
        self.network: Callable[[Tensor], SNNOutput] = (
            torch.compile(network, mode=student.compiled) if student.compiled else network
        )
        self.student, self.device = student, device
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self.graph is not None:
            self.graph.replay()
            return
        self.gradients()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def capture(self) -> None:
        """From now on a step is one launch, of a CUDA graph: what is left is the time of the GPU."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        for source in self.noise:
            graph.register_generator_state(source.generator)
        with torch.cuda.graph(graph):
            self.gradients()
            self.optimizer.step()
        self.graph = graph

    def gradients(self) -> None:
        with use_backend(self.student.backend):
            with torch.autocast(self.device, torch.bfloat16):
                loss = self.loss()
            loss.backward()

    def loss(self) -> Tensor:
        teacher = None if self.teacher is None else self.teacher(self.images, self.target)
        with ckd_kernels.one_bit_spikes() if self.student.one_bit else contextlib.nullcontext():
            out = self.network(self.images)
        if teacher is None:
            return nn.functional.cross_entropy(out.logits, self.target)
        return torch.stack(list(self.method(out, teacher, self.target).values())).sum()


# Where the time goes: the first pattern that is found in a kernel's name decides.  Triton's kernels have bare names.
KINDS = {
    "compiled": r"^triton_",
    "ours": r"ckd::|^_(forward|backward|reduce|statistics|finish|sam|pack|unpack)$",
    "spikingjelly": r"^_(forward|backward)_kernel$",
    "layout": r"nchwTo|nhwcTo|convertTensor|transpose|permute",
    "batch norm": r"batch_?norm|bn_fw|bn_bw",
    "convolution": r"conv|fprop|dgrad|wgrad|xmma|cutlass|nvjet|gemm|winograd",
    "optimiser": r"multi_tensor_apply",
    "copy": r"memcpy|memset|copy|cat_?array|fill",
    "reduction": r"reduce|softmax|nll",
    "elementwise": r"elementwise",
    "pooling": r"pool",
}


def kind_of(kernel: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, kernel, re.IGNORECASE)), "other")


def profiled(step: Step) -> dict[str, Any]:
    """Milliseconds of one step's kernels by kind, the longest by name, and those in which the GPU had nothing to do."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        begin = time.perf_counter()
        step()
        timing.wait(step.device)
        wall = (time.perf_counter() - begin) * 1e3
    kinds: dict[str, float] = {}
    kernels: dict[str, list[float]] = {}
    first, last, busy = float("inf"), 0.0, 0.0
    for event in profile.events():
        # Ranges that name what the host does have a time on the device, too.
        if event.device_type != torch.autograd.DeviceType.CUDA or event.is_user_annotation or "#" in event.name:
            continue
        span = event.time_range
        milliseconds = (span.end - span.start) / 1e3
        first, last, busy = min(first, span.start), max(last, span.end), busy + milliseconds
        kind = kind_of(event.name)
        kinds[kind] = kinds.get(kind, 0.0) + milliseconds
        known = kernels.setdefault(f"{kind}: {event.name[:90]}", [0, 0.0])
        known[0] += 1
        known[1] += milliseconds
    longest = sorted(kernels.items(), key=lambda item: -item[1][1])[:15]
    return {
        "wall_ms": round(wall, 3),
        "busy_ms": round(busy, 3),
        "idle_ms": round(max(0.0, (last - first) / 1e3 - busy), 3) if busy else None,
        "launches": int(sum(count for count, _ in kernels.values())),
        "kinds_ms": {kind: round(t, 3) for kind, t in sorted(kinds.items(), key=lambda item: -item[1])},
        "longest": [{"kernel": name, "count": int(count), "ms": round(t, 3)} for name, (count, t) in longest],
    }


def measure(case: Case, warm_up: bool) -> list[dict[str, Any]]:
    steps: dict[Student, Step] = {}
    failed: dict[Student, str] = {}
    for student in case.students:
        if warm_up and not (student.compiled or student.backend == "triton"):
            continue
        try:
            step = Step(student, case.time_steps, case.device)
            for _ in range(2):
                step()
            if student.graph:
                step.capture()
            timing.wait(case.device)
            steps[student] = step
        except Exception as error:
            failed[student] = timing.describe(error)
    if warm_up:
        return []
    times: dict[Student, list[float]] = {student: [] for student in steps}
    gc.collect()
    for _ in range(STEPS):
        for student, step in steps.items():
            timing.wait(case.device)
            begin = time.perf_counter()
            step()
            timing.wait(case.device)
            times[student].append((time.perf_counter() - begin) * 1e6)
    head: dict[str, Any] = {
        "time_steps": case.time_steps,
        "batch": len(next(iter(steps.values())).images) if steps else None,
    }
    rows = [head | {"student": str(student), "failed": why} for student, why in failed.items()]
    baseline = timing.summary(times[case.students[0]]) if case.students[0] in times else None
    for student, step in steps.items():
        time_ = timing.summary(times[student])
        row = head | {"student": str(student), "milliseconds": round(time_.microseconds / 1e3, 3)}
        row |= {"spread": round(time_.spread, 4), "peak_bytes": None}
        if not student.graph:  # whose memory was taken when it was captured
            row["peak_bytes"] = timing.peak_bytes(step, case.device)
        if baseline is not None:
            row["over_first"] = round(time_.microseconds / baseline.microseconds, 3)
        row["profile"] = profiled(step)
        rows.append(row)
    for row in rows:
        print(said(row), flush=True)
    return rows


def said(row: dict[str, Any]) -> str:
    """A row in one or two lines."""
    start = f"T {row['time_steps']} {row['student']:32s}"
    if "failed" in row:
        return f"{start} failed: {row['failed']}"
    peak = f"{row['peak_bytes'] / 1e9:.2f} GB" if row["peak_bytes"] is not None else "-"
    profile = row["profile"]
    kinds = ", ".join(f"{kind} {t:.1f}" for kind, t in profile["kinds_ms"].items())
    return (
        f"{start}{row['milliseconds']:9.2f} ms ±{row['spread']:.1%}  {row.get('over_first', '-')}  peak {peak}\n"
        f"    busy {profile['busy_ms']} ms, idle {profile['idle_ms']}, {profile['launches']} launches: {kinds}"
    )


def main(argv: list[str] | None = None) -> None:
    options = timing.arguments(__doc__ or "", seconds=150).parse_args(argv)
    torch.backends.cudnn.benchmark = True
    timing.run_cases(cases(options.device), measure, options)


if __name__ == "__main__":
    main()
