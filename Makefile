# Everything runs in .venv, which the targets make and fill themselves. A step leaves its stamp when it has ended, so
# an interrupted `make` goes on where it stopped.

PYTHON ?= python3
# The PyTorch for a new .venv. One that is there already and new enough is kept.
TORCH ?= torch==2.13.0
# Further arguments for pytest: make test PYTEST_ARGS="-k lif -x"
PYTEST_ARGS ?=
# The library that conversion is tested against, without its dependencies: among them is torchvision, whose builds each
# want a PyTorch of their own.
PEERS := "spikingjelly==2.0.0; python_version >= '3.11'"

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The packages are tested as installed: pytest's own script, unlike `python -m pytest`, leaves the root out of sys.path.
PYTEST := $(BIN)/pytest $(PYTEST_ARGS)
TORCH_IS_THERE := import torch; assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10)

SOURCES := setup.py pyproject.toml MANIFEST.in CMakeLists.txt \
	$(shell find cmake csrc ckd_kernels python -type f ! -path "*.egg-info/*" ! -name "*.pyc" ! -name "*.so")
# A directory is newer than the stamp when a file was removed from it.
PACKAGE_DIRS := $(shell find ckd_kernels python/ckdsnn csrc -type d ! -name __pycache__)
CXX_FILES := $(shell find csrc tests -name "*.cpp" -o -name "*.h" -o -name "*.cu" -o -name "*.cuh")

.DEFAULT_GOAL := help
.PHONY: help demo test test-packaging lint bench clean

help:  ## this list
	@grep -hE "^[a-z-]+:.*##" $(MAKEFILE_LIST) | sed -E "s/:[^#]*## ?/\t/" | expand -t 18

demo: $(VENV)/installed  ## train a teacher and distil spiking students on scikit-learn's digits
	$(BIN)/ckdsnn demo

test: $(VENV)/installed-dev  ## the test suite, without the packaging tests
	$(PYTEST) --ignore=tests/triton_interpreter
# A process of its own: Triton reads TRITON_INTERPRET when it is imported.
	TRITON_INTERPRET=1 $(PYTEST) tests/triton_interpreter

test-packaging: $(VENV)/installed-dev  ## sdist, wheel built in isolation, and both ways of installing it
	$(PYTEST) -m packaging tests/test_packaging.py

lint: $(VENV)/installed-dev  ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ckd_kernels python/ckdsnn
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

bench: $(VENV)/installed-dev  ## benchmarks of every op and of the training step
	$(BIN)/pytest benchmarks $(PYTEST_ARGS)

clean:  ## remove the environment and everything built (runs/ stays)
	rm -rf $(VENV) build dist python/*.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find ckd_kernels -name "*.so" -delete

$(VENV)/created:
	$(PYTHON) -m venv $(VENV) && $(PIP) --version || $(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/torch: | $(VENV)/created
	$(BIN)/python -c '$(TORCH_IS_THERE)' 2>/dev/null || $(PIP) install "$(TORCH)"
	touch $@

$(VENV)/installed: $(SOURCES) $(PACKAGE_DIRS) | $(VENV)/torch
	$(PIP) install .
	$(BIN)/python -I -c 'import ckd_kernels; print(ckd_kernels.build_info())'
	touch $@

$(VENV)/installed-dev: $(SOURCES) $(PACKAGE_DIRS) | $(VENV)/torch
	$(PIP) install ".[test,triton,dev]"
	$(PIP) install --no-deps $(PEERS)
	$(BIN)/python -I -c 'import ckd_kernels; print(ckd_kernels.build_info())'
	touch $(VENV)/installed $@
