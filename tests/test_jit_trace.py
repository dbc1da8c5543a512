"""What `torch.jit.trace` and TorchScript's ONNX exporter record of a layer computes the same for other inputs."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from torch import nn

from ckd_kernels import Neuron, bn_lif, layers, sam
from tolerances import assert_same

LONG = 20  # more time steps than there are between two checkpoints


class Stem(nn.Module):
    """A network around one layer, so that batches of any size go in."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.layer = nn.Linear(5, 6), layer

    def forward(self, x):
        return self.layer(self.linear(x) * 3)


LAYERS = {
    "LIF": lambda: layers.LIF(),
    "IF": lambda: layers.IF(),
    "ParametricLIF": lambda: layers.ParametricLIF(Neuron(charge="leak", tau=3.0, reset="soft", threshold=0.5)),
    "BatchNormLIF": lambda: layers.BatchNormLIF(3),
    "BatchNormLIF-eval": lambda: layers.BatchNormLIF(3).eval(),
}


def frames(steps: int, batch: int, seed: int) -> torch.Tensor:
    return torch.randn(steps, batch, 3, 5, generator=torch.Generator().manual_seed(seed))


def traced(module: nn.Module, x: torch.Tensor) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        return torch.jit.trace(module, x, check_trace=False)


@pytest.mark.parametrize("steps", [4, LONG])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_other_inputs_spikes_and_gradients(make, grad, steps):
    module = Stem(make())
    with torch.set_grad_enabled(grad):
        graph = traced(module, frames(steps, 2, 0).requires_grad_(grad))
    results = []
    for run in (graph, module):
        x = frames(steps, 3, 1).requires_grad_()
        module.zero_grad()
        spikes = run(x)
        spikes.backward(torch.randn(spikes.shape, generator=torch.Generator().manual_seed(2)))
        results.append([spikes.detach(), x.grad, *(p.grad for p in module.parameters())])
    for actual, expected in zip(*results, strict=True):
        assert expected.abs().sum() > 0
        assert_same("result", actual, expected)


def test_a_graph_goes_through_a_file():
    module = Stem(layers.BatchNormLIF(3)).eval()
    file = io.BytesIO()
    torch.jit.save(traced(module, frames(4, 2, 0)), file)
    file.seek(0)
    assert_same("spikes", torch.jit.load(file)(frames(4, 7, 1)), module(frames(4, 7, 1)))


def test_running_statistics_move_in_a_graph():
    layer = layers.BatchNormLIF(3)
    graph = traced(layer, frames(4, 2, 0))
    layer.reset_running_stats()
    graph(frames(4, 2, 1))
    moved, expected = layer.running_mean.clone(), layers.BatchNormLIF(3)
    expected(frames(4, 2, 1))
    assert moved.any()
    assert_same("running mean", moved, expected.running_mean)


def test_a_map():
    graph = traced(lambda x: sam(x), frames(4, 2, 0))
    assert_same("map", graph(frames(4, 5, 1)), sam(frames(4, 5, 1)))


@pytest.mark.parametrize("steps", [3, 6])
def test_another_number_of_time_steps_is_refused(steps):
    graph = traced(layers.LIF(), frames(4, 2, 0))
    with pytest.raises(RuntimeError, match=f"ValueError: the input has {steps} time steps where there must be 4"):
        graph(frames(steps, 2, 0))


def test_statistics_that_are_shared_cannot_be_recorded(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        group = torch.distributed.group.WORLD
        with pytest.raises(RuntimeError, match=r"process_group is not supported by .*torch.jit.trace"):
            traced(lambda y: bn_lif(y, None, None, None, None, Neuron.paper(), process_group=group), frames(4, 2, 0))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_for_onnx_a_neuron_is_made_of_what_onnx_has(make, monkeypatch):
    module = Stem(make()).eval()
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with torch.no_grad():
        graph = torch.jit.trace(module, frames(4, 2, 0), check_trace=False)
    assert "ckd_kernels::" not in str(graph.inlined_graph)
    assert "PythonOp" not in str(graph.inlined_graph)
    assert_same("spikes", graph(frames(4, 3, 1)), module(frames(4, 3, 1)))


def test_onnx():
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    module, file = Stem(layers.BatchNormLIF(3)).eval(), io.BytesIO()
    given = {"input_names": ["x"], "dynamic_axes": {"x": {1: "batch"}}}
    torch.onnx.export(module, (frames(4, 2, 0),), file, dynamo=False, **given)
    x = frames(4, 3, 1)
    (spikes,) = runtime.InferenceSession(file.getvalue()).run(None, {"x": x.numpy()})
    assert_same("spikes", torch.from_numpy(spikes), module(x))
