"""What every test shares: the backends that can run here, and memory that shows when it was not written."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from ckd_kernels import memory
from ckd_kernels.backend import build_info
from ckd_kernels.ops import batch_norm as batch_norm_op
from ckd_kernels.ops import lif as lif_op
from ckd_kernels.ops import pack as pack_op
from ckd_kernels.ops import sam as sam_op
from lif_checks import Target

# Processes that tests start import what is installed, too, not the folder that they start in.
os.environ["PYTHONSAFEPATH"] = "1"

try:
    from hypothesis import settings
except ImportError:  # the tests that need it skip themselves
    pass
else:
    settings.register_profile("suite", derandomize=True, deadline=None, database=None, print_blob=True)
    settings.load_profile("suite")

TARGETS = [Target("reference", "cpu"), Target("cpu", "cpu")]
if torch.cuda.is_available():
    TARGETS += [Target("reference", "cuda"), Target("cuda", "cuda"), Target("triton", "cuda")]


@pytest.fixture(params=TARGETS, ids=str)
def target(request: pytest.FixtureRequest, poisoned: None) -> Target:
    """Every backend, on every device that it has here."""
    state = build_info()["backends"][request.param.backend]
    if state != "available":
        pytest.skip(f"backend {request.param.backend}: {state}")
    return request.param


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Uninitialised memory is NaN (the largest integer), so that an element that nobody wrote shows."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.fixture
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test in which an op gets as far as choosing who computes it."""

    def launched(*call: object) -> None:
        pytest.fail(f"launched {call}")

    for module in (batch_norm_op, lif_op, pack_op, sam_op):
        monkeypatch.setattr(module, "resolve", launched)


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What `one_bit_spikes` packs: the number of spikes of each storage."""
    packed: list[int] = []
    init = memory._Packed.__init__

    def counting(self: memory._Packed, spikes: torch.Tensor) -> None:
        packed.append(spikes.numel())
        init(self, spikes)

    monkeypatch.setattr(memory._Packed, "__init__", counting)
    return packed
