"""What is shipped: the contents of sdist and wheel, and that both ways of installing give a module that runs."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"ckd_kernels": ROOT / "ckd_kernels", "ckdsnn": ROOT / "python" / "ckdsnn"}
NOT_SHIPPED = {"tests", "benchmarks", "runs", ".ci", ".venv", "build", "dist"}

SHOW = "import torch, ckd_kernels._C as C; info = C.build_info(); print(C.__file__, info['version'], info['cuda'])"


def run(*command: str | Path, **environment: str) -> str:
    """The output of a command run outside the repository, whose root folder would shadow what was installed."""
    keep = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd="/",
        env=keep | {"CKD_CUDA": "OFF", "PIP_DISABLE_PIP_VERSION_CHECK": "1"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
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
def wheel(unpacked, tmp_path_factory):
    """The wheel of the sdist, built in isolation: no PyTorch can be imported there."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, unpacked)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.packaging
def test_sdist_holds_every_source_and_no_tests(unpacked):
    native = (".cpp", ".h", ".cu", ".cuh", ".in")
    assert sources(unpacked / "csrc", *native) == sources(ROOT / "csrc", *native) != set()
    assert sources(unpacked / "cmake", ".cmake") == sources(ROOT / "cmake", ".cmake") != set()
    for name, folder in PACKAGES.items():
        shipped = unpacked / folder.relative_to(ROOT)
        assert sources(shipped, ".py", ".yaml") == sources(folder, ".py", ".yaml"), name
    assert not NOT_SHIPPED & {path.name for path in unpacked.iterdir()}


@pytest.mark.packaging
def test_wheel_holds_both_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    version = wheel.name.split("-")[1]
    assert {name.split("/")[0] for name in names} == {*PACKAGES, f"ckd_kernels-{version}.dist-info"}
    for package, folder in PACKAGES.items():
        expected = {f"{package}/{name}" for name in sources(folder, ".py", ".pyi", ".yaml", ".typed")}
        compiled = {name for name in names if name.startswith("ckd_kernels/_C.")} - expected
        inside = {name for name in names if name.startswith(f"{package}/")}
        assert inside - compiled == expected
    assert len(compiled) == 1
    assert not any(part in NOT_SHIPPED for name in names for part in Path(name).parts)
    assert "none-any" not in wheel.name


@pytest.mark.packaging
def test_wheel_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = Parser().parsestr(archive.read(f"{folder}/METADATA").decode())
        entry_points = archive.read(f"{folder}/entry_points.txt").decode()
        assert archive.read(f"{folder}/licenses/LICENSE")
    required = [text for text in metadata.get_all("Requires-Dist") if "extra ==" not in text]
    assert "torch>=2.10" in required
    assert not any(text.startswith(("triton", "nvidia", "spikingjelly", "snntorch")) for text in required)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "ckdsnn = ckdsnn.cli:main" in entry_points


@pytest.mark.packaging
def test_installed_wheel_is_what_is_imported(wheel, tmp_path):
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", tmp_path, wheel)
    path, version, cuda = run(sys.executable, "-c", SHOW, PYTHONPATH=str(tmp_path)).split()
    assert Path(path).is_relative_to(tmp_path)
    assert version == wheel.name.split("-")[1]
    assert cuda == "False"


@pytest.mark.packaging
def test_editable_install_twice_compiles_nothing(wheel, unpacked, tmp_path):
    """In the tree where the wheel was built: nothing has changed, so nothing is compiled."""
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    for _ in range(2):
        output = run(python, "-m", "pip", "install", "--verbose", "--no-deps", "--editable", unpacked)
        assert "Configuring done" in output
        assert "Building CXX object" not in output
    find = "import importlib.util as u; print(*(u.find_spec(name).origin for name in ('ckd_kernels', 'ckdsnn')))"
    found = run(python, "-c", find).split()
    assert [Path(path).parent for path in found] == [unpacked / "ckd_kernels", unpacked / "python" / "ckdsnn"]
    # PyTorch is the test environment's; the compiled module is that of the editable tree.
    path, *_ = run(sys.executable, "-c", SHOW, PYTHONPATH=str(unpacked)).split()
    assert Path(path).parent == unpacked / "ckd_kernels"


FAKE_NVCC = """#!/bin/sh
[ "$1" = --list-gpu-arch ] && printf 'compute_80\\ncompute_90\\n'
"""


def choose_cuda(folder: Path, choice: str, archs: str, nvcc: str) -> subprocess.CompletedProcess[str]:
    """What cmake/cuda.cmake answers when the only nvcc is a script with this text (or there is none)."""
    environment = {"PATH": os.defpath}
    if nvcc:
        (folder / "nvcc").write_text(nvcc)
        (folder / "nvcc").chmod(0o755)
        environment["CUDACXX"] = str(folder / "nvcc")
    script = folder / "choose.cmake"
    script.write_text(f"include({ROOT}/cmake/cuda.cmake)\nckd_choose_cuda()\n")
    hidden = ";".join(f"{prefix}/bin" for prefix in ("/usr", "/usr/local", "/usr/local/cuda", "/opt/cuda", ""))
    options = (f"-DCKD_CUDA={choice}", f"-DCKD_CUDA_ARCHS={archs}", f"-DCMAKE_IGNORE_PATH={hidden}")
    command = [sys.executable, "-m", "cmake", *options, "-P", str(script)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("choice", "archs", "nvcc", "message"),
    [
        ("OFF", "", FAKE_NVCC, "not built (CKD_CUDA=OFF)"),
        ("AUTO", "", "", "not built (CKD_CUDA=AUTO, no nvcc in CUDACXX"),
        ("AUTO", "", FAKE_NVCC, "nvcc) for 80-real 90\n"),
        ("ON", "80-real, 90-virtual", FAKE_NVCC, "nvcc) for 80-real 90-virtual\n"),
    ],
)
def test_cuda_choice_is_reported(choice, archs, nvcc, message, tmp_path):
    done = choose_cuda(tmp_path, choice, archs, nvcc)
    assert done.returncode == 0, done.stderr
    assert message in done.stdout


@pytest.mark.parametrize(
    ("choice", "archs", "nvcc", "message"),
    [
        ("maybe", "", FAKE_NVCC, "CKD_CUDA is 'maybe'; it must be AUTO, ON or OFF."),
        ("ON", "", "", "CKD_CUDA=ON, but there is no nvcc in CUDACXX"),
        ("ON", "sm_90", FAKE_NVCC, "CKD_CUDA_ARCHS has 'sm_90'; write an architecture as 90"),
        ("AUTO", "100-real", FAKE_NVCC, "CKD_CUDA_ARCHS has '100-real', which"),
        ("AUTO", "", "#!/bin/sh\nexit 1\n", "does not run"),
    ],
)
def test_wrong_build_options_are_refused(choice, archs, nvcc, message, tmp_path):
    done = choose_cuda(tmp_path, choice, archs, nvcc)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())
