"""The README's examples run as they stand; docs/install.md names all extras, and all variables that the code reads."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


EXAMPLES = ["lif", "swap", "batch norm", "one bit", "convert"]


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL), ids=EXAMPLES)
def test_example_runs(code):
    exec(compile(code, "README.md", "exec"), {})


def test_environment_variables_are_documented():
    read = re.compile(r"""(?:environ(?:\.get\(|\[)\s*|environment\.get\(|getenv\()["']((?:CKD|CMAKE|CXX|CUDA)\w*)""")
    files = [ROOT / "tests" / "test_packaging.py", *(ROOT / "csrc").rglob("*.cpp")]
    for folder in ("build_support", "ckd_kernels", "python"):
        files += (ROOT / folder).rglob("*.py")
    names = {name for file in files for name in read.findall(file.read_text())}
    cmake = re.compile(r"ENV\{?\s?(CKD\w+|CUDA\w+)")
    names |= {name for file in (ROOT / "cmake").glob("*.cmake") for name in cmake.findall(file.read_text())}
    assert {"CKD_CUDA", "CKD_CUDA_ARCHS", "CKD_BACKEND", "CKD_TEST_DIST", "CUDAHOSTCXX", "CXX"} <= names
    page = (ROOT / "docs" / "install.md").read_text()
    assert not {name for name in names if f"`{name}`" not in page}


def test_extras_are_documented():
    project = (ROOT / "pyproject.toml").read_text()
    extras = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\[", project, re.DOTALL)[1]
    names = re.findall(r"^(\w+) = \[", extras, re.MULTILINE)
    assert {"train", "test"} <= set(names)
    table = "".join(re.findall(r"^\| `.*", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE))
    assert not [name for name in names if f"`{name}`" not in table]
