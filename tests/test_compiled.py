"""What Inductor makes of a network around the ops: in channels-last it copies nothing for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code

from ckd_kernels import layers
from test_lif_autograd import fresh_dynamo  # noqa: F401

OPS = torch.ops.ckd_kernels


class Net(nn.Module):
    """[T, B, C, H, W] to spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
        # Running statistics would be moved by a kernel of Inductor's own.
        self.norm, self.neuron = layers.BatchNormLIF(4, track_running_stats=False), layers.LIF()

    def forward(self, x):
        spikes = self.norm(self.conv1(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
        return self.neuron(self.conv2(spikes.flatten(0, 1)).unflatten(0, x.shape[:2]))


def channels_last(*shape: int) -> torch.Tensor:
    return torch.randn(shape).flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, shape[:2])


@pytest.mark.skipif(
    torch.__version__ < (2, 11), reason="PyTorch 2.10's Inductor writes what convolutions give once more, as it is"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nothing_is_copied_around_the_ops(fresh_dynamo):  # noqa: F811
    """Nor is anything else done between ops and convolutions: neither direction has a kernel of Inductor's own."""
    torch.manual_seed(0)
    net = Net().to(memory_format=torch.channels_last)
    x, upstream = channels_last(2, 3, 4, 6, 6), channels_last(2, 3, 4, 6, 6)
    step = torch.compile(net, fullgraph=True)
    expected = torch.autograd.grad(net(x), net.parameters(), upstream)
    actual, code = run_and_get_code(lambda: torch.autograd.grad(step(x), net.parameters(), upstream))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert len(code) == 2
    for direction, graph in zip(("forward", "backward"), code, strict=True):
        assert graph.count(f"torch.ops.ckd_kernels.lif_{direction}.default(") == 1
        assert graph.count(f"torch.ops.ckd_kernels.bn_lif_{direction}.default(") == 1
        assert "cpp_fused" not in graph
        assert "empty_strided_cpu(" not in graph.partition("def call(")[2].partition("def benchmark")[0]


def test_no_op_leaves_strides_to_inductor():
    names = [
        name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if name.startswith("ckd_kernels::")
    ]
    assert len(names) == 11
    for name in names:
        assert torch.Tag.needs_exact_strides in getattr(OPS, name).default.tags, name
