"""The examples in docstrings run as they stand, with nothing imported for them."""

import doctest
import importlib
import pkgutil

import pytest

import ckdsnn.losses
import ckdsnn.models

MODULES = [
    module.name
    for package in (ckdsnn.losses, ckdsnn.models)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, globs={}):
        result = runner.run(example)
        assert result.failed == 0, f"{example.name}: see the captured output"
