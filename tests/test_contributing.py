"""The recipes of CONTRIBUTING.md for a surrogate, method, model and data set, followed word by word somewhere else."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import ckd_kernels
from ckd_kernels import surrogate
from ckdsnn.data import Batch
from ckdsnn.losses import METHODS, FrozenTeacher, build_method
from ckdsnn.losses import methods as methods_package
from ckdsnn.models import MODELS, build_model
from ckdsnn.optimisation import OptimizerConfig
from ckdsnn.training import BatchFeed, EagerRunner, Telemetry, TrainStep
from no_host_wait import NoHostWait

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def blocks() -> dict[str, str]:
    """The code blocks of the page by the file that their first line names."""
    found = {}
    for body in re.findall(r"^ *```(?:python|cpp)\n(.*?)^ *```$", TEXT, re.MULTILINE | re.DOTALL):
        first, rest = textwrap.dedent(body).split("\n", 1)
        found[first.lstrip("#/ ")] = textwrap.dedent(rest)
    return found


BLOCKS = blocks()


def test_every_file_that_the_page_names_is_there():
    """But for those that a recipe makes, and those that have a name to fill in."""
    names = set(re.findall(r"[\w./-]+/[\w.-]+\.(?:py|h|cuh|cpp|md|sh|toml)\b", TEXT)) - set(BLOCKS)
    names |= {name for name in BLOCKS if not name.endswith(("rkd.py", "tiny.py", "stripes.py"))}
    assert len(names) > 25
    homes = [ROOT, ROOT / "ckd_kernels", ROOT / "python" / "ckdsnn"]
    missing = {n for n in names if "NAME" not in n and not any((home / n).is_file() for home in homes)}
    assert not missing


# --- a surrogate


def insert(path: Path, before: str, code: str) -> None:
    text = path.read_text()
    assert text.count(before) == 1, f"{before!r} in {path.name}"
    path.write_text(text.replace(before, code + before))


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A copy of the package and of the header, changed as the recipe says; without the compiled module."""
    folder = tmp_path_factory.mktemp("recipe")
    package = folder / "ckd_kernels"
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(Path(ckd_kernels.__file__).parent, package, ignore=ignored)
    insert(package / "surrogate.py", "BY_NAME: dict", BLOCKS["ckd_kernels/surrogate.py"] + "\n\n")
    insert(package / "surrogate.py", '    "SoftSign",\n', '    "SignLogAbs",\n')
    branch = textwrap.indent(BLOCKS["ckd_kernels/backends/triton/neuron.py"], "    ")
    insert(
        package / "backends" / "triton" / "neuron.py", '    else:\n        tl.static_assert(SURROGATE == "erf"', branch
    )
    shutil.copytree(ROOT / "csrc" / "include" / "ckd", folder / "ckd")
    header = folder / "ckd" / "surrogate.h"
    insert(header, "#undef CKD_DERIVATIVE", BLOCKS["csrc/include/ckd/surrogate.h"] + "\n")
    header.write_text(header.read_text().replace("X(Erf)\n", "X(Erf) X(SignLogAbs)\n"))
    return folder


def run(folder: Path, code: str, **environment: str) -> str:
    """The output of Python code for which `folder` holds the package."""
    paths = os.pathsep.join((str(folder), str(ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


COMPARE = """
import torch, ckd_kernels as ck, reference_cases as cases
name = "sign_log_abs"
cases.DERIVATIVES[name] = lambda u, a: a / (1 + a * u.abs())
assert ck.surrogate.BY_NAME[name] is ck.surrogate.SignLogAbs
for alpha in (1.0, 1.7):
    neuron = ck.Neuron(charge="leak_input", tau=3.3, surrogate=ck.surrogate.SignLogAbs(alpha))
    x = cases.currents((5, 3, 37), torch.float32, 0).requires_grad_()
    with ck.use_backend({backend!r}):
        out = ck.lif(x, neuron)
        out.sum().backward()
    twin = x.detach().clone().requires_grad_()
    expected = {expected}
    expected.sum().backward()
    assert 0 < out.sum() < out.numel()
    assert torch.equal(out, expected)
    assert x.grad.abs().sum() > 0
    torch.testing.assert_close(x.grad, twin.grad, rtol={tolerance}, atol={tolerance})
print("compared")
"""


def test_the_surrogate_trains_on_the_reference(followed):
    """Spikes and gradients against the plain loop."""
    code = COMPARE.format(
        backend="reference", expected="cases.plain_loop(twin, neuron, channel_dim=2).spikes", tolerance=1e-6
    )
    assert run(followed, code) == "compared\n"


def test_the_surrogate_is_the_same_in_triton(followed):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed (make test installs it)")
    code = COMPARE.format(backend="triton", expected="reference(twin, neuron)", tolerance=0)
    code = """
def reference(x, neuron):
    with ck.use_backend("reference"):
        out = ck.lif(x, neuron)
    return out
""" + code.replace("expected.sum().backward()", "with ck.use_backend('reference'): expected.sum().backward()")
    assert run(followed, code, TRITON_INTERPRET="1") == "compared\n"


PROGRAM = """
#include <cstdio>
#include "ckd/surrogate.h"
int main() {
  for (int i = -200; i <= 200; ++i) {
    ckd::with_surrogate(ckd::SurrogateKind::kSignLogAbs, [&](auto s) {
      const float u = static_cast<float>(i) * 0.037f;
      std::printf("%s %a %a\\n", decltype(s)::name, u, decltype(s)::derivative(u, 1.7f, 0.0f));
    });
  }
}
"""


def test_the_surrogate_is_the_same_in_cpp(followed):
    """The struct in the header, chosen by its number, gives the reference's bits."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    (followed / "main.cpp").write_text(PROGRAM)
    flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-Wall", "-Werror", f"-I{followed}"]
    subprocess.run([*compiler.split(), *flags, followed / "main.cpp", "-o", followed / "main"], check=True)
    said = subprocess.run([followed / "main"], check=True, capture_output=True, text=True).stdout.splitlines()
    names, *values = zip(*(line.split() for line in said), strict=True)
    assert set(names) == {"sign_log_abs"}
    u, derivative = (torch.tensor([float.fromhex(v) for v in column], dtype=torch.float32) for column in values)
    namespace = dict(vars(surrogate))
    exec(BLOCKS["ckd_kernels/surrogate.py"], namespace)
    expected = namespace["SignLogAbs"](1.7).derivative(u)
    assert expected.max() > 1
    assert torch.equal(derivative, expected)


# --- a method


@pytest.fixture
def method(tmp_path, monkeypatch):
    """The file of the recipe, in the package's folder as far as Python can tell; registered until the test ends."""
    monkeypatch.setattr(methods_package, "__path__", [*methods_package.__path__, str(tmp_path)])
    for name in [*METHODS]:
        monkeypatch.setitem(METHODS, name, METHODS[name])  # what is added is taken away by hand
    (tmp_path / "rkd.py").write_text(BLOCKS["python/ckdsnn/losses/methods/rkd.py"])
    name = f"{methods_package.__name__}.rkd"
    importlib.import_module(name)
    yield "rkd"
    del METHODS["rkd"], sys.modules[name]


def test_the_method_trains_a_student(method):
    """Two steps of `TrainStep`: the parts against plain arithmetic, the student moves, and the second does not wait."""
    torch.manual_seed(0)
    made = build_method(method, weight=3.0)
    student, teacher = (build_model(f"{kind}_resnet_small", 10, widths=(4, 6, 8)) for kind in ("snn", "ann"))
    made.bind(student, teacher)
    frozen = FrozenTeacher(teacher, made)
    batch = Batch(torch.randn(6, 1, 12, 12), torch.arange(6), torch.arange(6))
    answer, output = frozen(batch.images, batch.targets), student(batch.images)
    parts = made(output, answer, batch.targets)
    assert list(parts) == ["ce", "rkd"]
    ratios = []
    for points in (output.features[3].mean((0, 3, 4)), answer.features[-1].mean((2, 3))):
        apart = torch.cdist(points.detach().double(), points.detach().double())
        ratios.append(apart / apart.mean())
    error = (ratios[0] - ratios[1]).abs()
    huber = torch.where(error < 1, 0.5 * error**2, error - 0.5).mean()
    assert parts["rkd"].item() == pytest.approx(3.0 * huber.item(), rel=1e-3)

    before = {name: value.clone() for name, value in student.state_dict().items()}
    optimizer, device = OptimizerConfig(lr=0.05), torch.device("cpu")
    feed, telemetry = BatchFeed(device, 2), Telemetry(device)
    step = TrainStep(
        student,
        made,
        lambda batch: frozen(batch.images, batch.targets),
        optimizer.build(list(student.parameters())),
        optimizer.build_schedule(2, 2),
        feed,
        telemetry,
    )
    feed.start(0, 0)
    feed.load(batch)
    EagerRunner(step)(0)
    with NoHostWait():
        EagerRunner(step)(1)
    assert telemetry.names == ("accuracy", "loss", "ce", "rkd")
    assert telemetry.means()["rkd"] > 0
    moved = [name for name, value in student.named_parameters() if not torch.equal(value, before[name])]
    assert "stages.0.0.conv1.weight" in moved


def test_the_method_tells_its_options(method):
    listed = {option.name: option for option in METHODS[method].Options.listed()}
    assert (listed["weight"].type, listed["weight"].default) == ("number >= 0", "5.0")
    assert listed["weight"].description == "of the distances' part."
    with pytest.raises(TypeError, match="method 'rkd' has no option 'wieght'; did you mean 'weight'"):
        build_method(method, wieght=3.0)


# --- a model


def test_the_model_is_built_from_a_module_of_ones_own(tmp_path, monkeypatch):
    """As outside the package, which takes one step less."""
    (tmp_path / "tiny_of_mine.py").write_text(BLOCKS["python/ckdsnn/models/tiny.py"])
    monkeypatch.syspath_prepend(tmp_path)
    try:
        model = build_model("tiny_of_mine:tiny_snn", 10, in_channels=1, width=4, time_steps=2)
        out = model(torch.rand(3, 1, 12, 12))
        assert (out.logits.shape, out.features[1].shape) == ((3, 10), (2, 3, 4, 6, 6))
        torch.testing.assert_close(out.sams[1], out.features[1].mean((0, 2)))
        with pytest.raises(ValueError, match="width must be >= 1, got 0"):
            build_model("tiny_of_mine:tiny_snn", 10, width=0)
    finally:
        MODELS.pop("tiny_snn", None)
        sys.modules.pop("tiny_of_mine", None)


# --- a data set


def test_the_data_set_has_its_bar_where_the_class_says():
    made = {"__name__": "stripes"}
    exec(compile(BLOCKS["stripes.py"], "stripes.py", "exec"), made)
    data = made["Stripes"]()
    data.setup("fit")
    images, targets, indices = next(iter(data.val_dataloader()))
    assert (images.shape, indices.tolist()) == ((200, 1, 20, 20), list(range(200)))
    assert torch.equal(images.mean((1, 3)).argmax(1), 5 + targets)
