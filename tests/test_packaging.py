"""What is given away: sdist and wheels, what they hold, and that each way of installing them gives packages that run.

`make test-packaging` has made the wheel for other machines (in the folder CKD_TEST_DIST) before it runs these.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import torch
from packaging.utils import parse_wheel_filename

import ckd_kernels

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"ckd_kernels": ROOT / "ckd_kernels", "ckdsnn": ROOT / "python" / "ckdsnn"}
NOT_SHIPPED = {"tests", "benchmarks", "examples", "runs", ".ci", ".github", ".venv", "build", "dist"}
# Of the system, of PyTorch (libgomp), or of the C++ runtime that PyTorch needs too.
LIBRARIES = {"libgomp", "libstdc++", "libgcc_s", "libm", "libc", "libpthread", "libdl", "librt", "ld-linux-x86-64"}

SHOW = "import torch, ckd_kernels._C as C; info = C.build_info(); print(C.__file__, info['version'], info['cuda'])"

pytestmark = pytest.mark.packaging


def run(*command: str | Path, status: int = 0, **environment: str) -> str:
    """The output of a command run outside the repository, whose root folder would shadow what was installed."""
    keep = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd="/",
        env=keep | {"CKD_CUDA": "OFF", "PIP_DISABLE_PIP_VERSION_CHECK": "1"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def sources(folder: Path, *suffixes: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in suffixes}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The sdist, made from a copy of the repository with tests in it, and unpacked: all that a user has."""
    folder = tmp_path_factory.mktemp("sdist")
    left_behind = shutil.ignore_patterns("build", "dist", ".*", "*.egg-info", "*.so", "__pycache__", "runs")
    shutil.copytree(ROOT, folder / "copy", ignore=left_behind)
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, folder / "copy")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def built(unpacked, tmp_path_factory):
    """A wheel of the sdist, built in isolation (no PyTorch can be imported there), with the fewest kernels."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, unpacked, CKD_CPU_LEVELS="baseline")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def given_away():
    """What `make wheel` made for this Python."""
    folder = os.environ.get("CKD_TEST_DIST")
    assert folder, "CKD_TEST_DIST is not set; run make test-packaging"
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    (path,) = (ROOT / folder).glob(f"ckd_kernels-{ckd_kernels.__version__}-{python}-*.whl")
    return path


@pytest.fixture(params=["built", "given_away"])
def wheel(request):
    return request.getfixturevalue(request.param)


def test_sdist_holds_every_source_and_no_tests(unpacked):
    native = (".cpp", ".h", ".cu", ".cuh", ".in")
    assert sources(unpacked / "csrc", *native) == sources(ROOT / "csrc", *native) != set()
    for folder in ("cmake", "build_support"):
        assert sources(unpacked / folder, ".cmake", ".py") == sources(ROOT / folder, ".cmake", ".py") != set()
    for name, folder in PACKAGES.items():
        shipped = unpacked / folder.relative_to(ROOT)
        assert sources(shipped, ".py", ".yaml") == sources(folder, ".py", ".yaml"), name
    assert not NOT_SHIPPED & {path.name for path in unpacked.iterdir()}


def test_wheel_holds_both_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    version = wheel.name.split("-")[1]
    assert {name.split("/")[0] for name in names} == {*PACKAGES, f"ckd_kernels-{version}.dist-info"}
    for package, folder in PACKAGES.items():
        expected = {f"{package}/{name}" for name in sources(folder, ".py", ".pyi", ".yaml", ".csv", ".typed")}
        compiled = {name for name in names if name.startswith("ckd_kernels/_C.")} - expected
        inside = {name for name in names if name.startswith(f"{package}/")}
        assert inside - compiled == expected
    assert len(compiled) == 1
    assert not any(part in NOT_SHIPPED for name in names for part in Path(name).parts)


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        assert archive.read(f"{folder}/licenses/LICENSE")
        assert "ckdsnn = ckdsnn.cli:main" in archive.read(f"{folder}/entry_points.txt").decode()
        return Parser().parsestr(archive.read(f"{folder}/METADATA").decode())


def test_wheel_metadata(wheel):
    """The kernels ask for two packages, which none of those that only ckdsnn needs is."""
    found = metadata(wheel)
    required = found.get_all("Requires-Dist")
    assert sorted(text for text in required if "extra ==" not in text) == ["numpy", "torch>=2.10"]
    train = [re.match(r"[\w-]+", text)[0] for text in required if 'extra == "train"' in text.replace("'", '"')]
    assert {"lightning", "jsonargparse", "scikit-learn", "tensorboard"} <= set(train)
    assert not {"triton", "spikingjelly", "snntorch", "torchvision"} & set(train)
    assert found["License-Expression"] == "Apache-2.0"


def test_a_wheel_built_from_source_holds_what_was_asked_for(built, tmp_path):
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", tmp_path, built)
    path, version, cuda = run(sys.executable, "-c", SHOW, PYTHONPATH=str(tmp_path)).split()
    assert Path(path).is_relative_to(tmp_path)
    assert version == built.name.split("-")[1]
    assert cuda == "False"


def test_editable_install_twice_compiles_nothing(built, unpacked, tmp_path):
    """In the tree where the wheel was built: nothing has changed, so nothing is compiled."""
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    for _ in range(2):
        install = (python, "-m", "pip", "install", "--verbose", "--no-deps", "--editable", unpacked)
        output = run(*install, CKD_CPU_LEVELS="baseline")
        assert "Configuring done" in output
        assert "Building CXX object" not in output
    find = "import importlib.util as u; print(*(u.find_spec(name).origin for name in ('ckd_kernels', 'ckdsnn')))"
    found = run(python, "-c", find).split()
    assert [Path(path).parent for path in found] == [unpacked / "ckd_kernels", unpacked / "python" / "ckdsnn"]
    # PyTorch is the test environment's; the compiled module is that of the editable tree.
    path, *_ = run(sys.executable, "-c", SHOW, PYTHONPATH=str(unpacked)).split()
    assert Path(path).parent == unpacked / "ckd_kernels"


# --- the wheel for other machines


@pytest.fixture
def module(given_away, tmp_path):
    """The compiled module, out of its wheel."""
    with zipfile.ZipFile(given_away) as archive:
        (name,) = [name for name in archive.namelist() if name.startswith("ckd_kernels/_C.") and name.endswith(".so")]
        return Path(archive.extract(name, tmp_path))


def test_it_is_tagged_for_other_machines(given_away):
    *_, tags = parse_wheel_filename(given_away.name)
    assert tags
    assert all(re.fullmatch(r"manylinux\w*_x86_64|manylinux\w*_aarch64", tag.platform) for tag in tags)


def test_it_needs_nothing_of_pytorch_but_libgomp(module):
    """Neither its libraries nor its C++ symbols, so that it runs with any PyTorch; and libgomp by its plain name."""
    elf = pytest.importorskip("elftools.elf.elffile")
    with module.open("rb") as file:
        binary = elf.ELFFile(file)
        tags = list(binary.get_section_by_name(".dynamic").iter_tags())
        needed = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
        undefined = {
            s.name for s in binary.get_section_by_name(".dynsym").iter_symbols() if s["st_shndx"] == "SHN_UNDEF"
        }
    assert "libgomp.so.1" in needed
    assert {name.partition(".so")[0] for name in needed} <= LIBRARIES
    assert not [tag for tag in tags if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH")]
    assert not [name for name in undefined if re.search(r"c10|at6native|N2at|5torch|THP|cuda|cu[A-Z]", name)]


def test_it_loads_where_there_is_no_pytorch(module, tmp_path):
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    code = f"""
import importlib.util as u, sys
spec = u.spec_from_file_location("ckd_kernels._C", {str(module)!r})
module = u.module_from_spec(spec)
spec.loader.exec_module(module)
assert "torch" not in sys.modules and u.find_spec("torch") is None
print(*module.build_info()["cpu_levels"])
"""
    assert run(tmp_path / "venv" / "bin" / "python", "-c", code).split() in (["baseline", "v3", "v4"], ["baseline"])


CHECK = """
import json, torch, ckd_kernels as ck
torch.manual_seed(0)
x = torch.randn(5, 3, 7, 9, 11)
for dtype in (torch.float32, torch.bfloat16):
    results = []
    for backend in ("reference", "cpu"):
        leaf = x.to(dtype, copy=True).requires_grad_()
        with ck.use_backend(backend):
            spikes = ck.lif(leaf, ck.Neuron.paper())
            spikes.backward(torch.ones_like(spikes))
        results.append((spikes.detach(), leaf.grad))
    (spikes, grad), (ours, our_grad) = results
    assert 0 < spikes.sum() < spikes.numel() and torch.equal(spikes, ours)
    assert grad.abs().sum() > 0
    torch.testing.assert_close(our_grad, grad)
facts = ck.build_info()
assert facts["backends"]["cpu"] == "available", facts
print(json.dumps([torch.__version__, ck.__file__]))
"""
# The oldest that is supported, as a build that brings no CUDA libraries; a release is tested with CKD_TEST_TORCH.
OLDEST = os.environ.get("CKD_TEST_TORCH", "torch==2.10.0+cpu")
LEVELS = ROOT / "tests" / "test_cpu_levels.py"
SAME = f"torch=={torch.__version__.partition('+')[0]}"


@pytest.mark.parametrize("requirement", [SAME, OLDEST], ids=["same", "oldest"])
def test_it_runs_in_a_fresh_environment(requirement, given_away, tmp_path):
    """With the dependencies that it names and no other, on every level that this processor has."""
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv)
    pip = (venv / "bin" / "python", "-m", "pip", "install", "--quiet")
    try:
        run(*pip, requirement)
    except AssertionError:
        if requirement == SAME or "CKD_TEST_TORCH" in os.environ:
            raise
        pytest.skip(f"{requirement} cannot be had here; CKD_TEST_TORCH names another")
    run(*pip, "--only-binary", ":all:", given_away)
    version, path = json.loads(run(venv / "bin" / "python", "-W", "error", "-c", CHECK))
    assert version.partition("+")[0] == requirement.removeprefix("torch==").partition("+")[0]
    assert Path(path).is_relative_to(venv)
    said = run(venv / "bin" / "ckdsnn", "demo", status=1)
    assert "pip install 'ckd-kernels[train]'" in said
    assert "Traceback" not in said
    if requirement == SAME:
        # The suite has run on what an install compiles, which is the widest level and the baseline.
        run(*pip, "pytest", "cmake>=3.26")  # the tests ask CMake which levels it chooses, too
        tests = run(venv / "bin" / "pytest", "-q", "-p", "no:cacheprovider", LEVELS)
        assert re.search(r"\d+ passed", tests)
