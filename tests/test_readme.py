"""The README's examples run as they stand, and its tables name every variable that the code reads."""

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
    read = re.compile(r"""(?:environ(?:\.get\(|\[)\s*|getenv\()["'](CKD_\w+)""")
    files = [ROOT / "setup.py", *(ROOT / "csrc").rglob("*.cpp"), *(ROOT / "ckd_kernels").rglob("*.py")]
    files += (ROOT / "python").rglob("*.py")
    names = {name for file in files for name in read.findall(file.read_text())}
    assert {"CKD_CUDA", "CKD_CUDA_ARCHS", "CKD_BACKEND"} <= names
    assert not {name for name in names if f"`{name}`" not in README}
