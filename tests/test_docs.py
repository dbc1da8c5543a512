"""Every public name has a docstring, and the examples in docstrings run as they are printed."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import ckd_kernels
import ckdsnn


def modules():
    """Every module of both packages, backends of their own devices aside."""
    for package in (ckd_kernels, ckdsnn):
        yield package.__name__
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if "backends.triton" not in module.name and not module.name.endswith(("_C", "__main__")):
                yield module.name


MODULES = list(modules())


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": torch}, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


PUBLIC = [
    *(getattr(ckd_kernels, name) for name in ckd_kernels.__all__),
    *(getattr(ckd_kernels.layers, name) for name in ckd_kernels.layers.__all__),
    *(getattr(ckd_kernels.surrogate, name) for name in ckd_kernels.surrogate.__all__),
]


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda t: t.__name__)
def test_public_names_are_documented(thing):
    assert (inspect.getdoc(thing) or "").strip()


@pytest.mark.parametrize(
    "thing",
    [t for t in PUBLIC if inspect.isfunction(t) or (inspect.isclass(t) and t.__module__ == "ckd_kernels.layers")],
    ids=lambda t: t.__name__,
)
def test_public_functions_say_everything(thing):
    """Arguments, what raises, and an example."""
    text = inspect.getdoc(thing)
    assert ">>> " in text, "no example"
    arguments = [n for n in inspect.signature(thing).parameters if n != "self"]
    for argument in arguments:
        assert f"{argument}:" in text, f"{argument} is not described"
    if arguments:
        assert "Raises:" in text
