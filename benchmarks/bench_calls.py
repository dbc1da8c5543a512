"""What a call takes beside its kernels: tensors so small that all else is the call.

A round is 100 calls: 1 ms in the tables is 10 us a call.  ``relu`` and ``batch-norm`` are PyTorch's own calls.  Work:
*forward* without a graph, *graph* the same where x needs a gradient, *training* forward and backward, *traced* both
passes as a graph of `torch.compile` calls them, which is by their ops.
"""

from __future__ import annotations

import pytest
import torch
from racing import DEVICES, OURS
from torch.nn.functional import batch_norm

from ckd_kernels import Neuron, bn_lif, lif, use_backend

CALLS = 100
SHAPE = (4, 2, 8, 4, 4)
NEURON = Neuron.paper()
OPS, ATEN = torch.ops.ckd_kernels, torch.ops.aten


def cases(peer):
    for device in DEVICES:
        for work in ("forward", "graph", "training", "traced"):
            for contestant in (peer, *OURS[device]):
                yield device, SHAPE, torch.float32, work, contestant


def enter_calls(enter, x, peer, ours, traced_peer, traced_ours, work):
    """Functions are of x, traced ones of the upstream gradient and the name of a backend, too."""
    x.requires_grad_(work in ("graph", "training"))
    upstream = torch.ones_like(x)

    def build(name):
        backend = name.removeprefix("ours-")
        is_ours = backend != name
        function, traced = (ours, traced_ours) if is_ours else (peer, traced_peer)

        def calls():
            with use_backend(backend if is_ours else "auto"):
                for _ in range(CALLS):
                    if work == "traced":
                        traced(x, upstream, backend)
                    elif work == "training":
                        function(x).backward(upstream)
                    else:
                        function(x)

        return calls

    enter(build)


@pytest.mark.parametrize(("device", "shape", "dtype", "work", "contestant"), list(cases("relu")), ids=str)
def test_lif_call(device, shape, dtype, work, contestant, enter):
    def traced_relu(x, upstream, _):
        ATEN.threshold_backward.default(upstream, ATEN.relu.default(x), 0)

    def traced_lif(x, upstream, backend):
        plan = NEURON.spec, backend, 0, shape[0], -1
        OPS.lif_forward.default(x, None, None, *plan, False, False, False)
        OPS.lif_backward.default(x, None, None, None, upstream, None, None, *plan, False, False)

    x = torch.randn(shape, device=device, dtype=dtype)
    enter_calls(enter, x, torch.relu, lambda x: lif(x, NEURON), traced_relu, traced_lif, work)


@pytest.mark.parametrize(("device", "shape", "dtype", "work", "contestant"), list(cases("batch-norm")), ids=str)
def test_bn_lif_call(device, shape, dtype, work, contestant, enter):
    """In training mode, with running statistics."""
    mean, var = torch.zeros(shape[2], device=device), torch.ones(shape[2], device=device)
    weight, bias = torch.ones_like(mean).requires_grad_(), torch.zeros_like(mean).requires_grad_()
    if work in ("forward", "traced"):
        weight, bias = weight.detach(), bias.detach()

    def normalised(y):
        return batch_norm(y.flatten(0, 1), mean, var, weight, bias, training=True).unflatten(0, shape[:2])

    def traced_batch_norm(y, upstream, _):
        y, upstream = y.flatten(0, 1), upstream.flatten(0, 1)
        _, *kept = ATEN.native_batch_norm.default(y, weight, bias, mean, var, True, 0.1, 1e-5)
        given = weight, mean, var, *kept, True, 1e-5, [True, True, True]
        ATEN.native_batch_norm_backward.default(upstream, y, *given)

    def traced_bn_lif(y, upstream, backend):
        plan, none = (NEURON.spec, backend, 0, shape[0], 2), (None,) * 3
        vectors = weight, bias, mean, var
        made = OPS.bn_lif_forward.default(y, None, *vectors, 0.1, 1e-5, *none, *plan, False, False, False)
        needs = True, True, False, False, False
        OPS.bn_lif_backward.default(y, made[0], *none, None, upstream, *none, True, *plan, *needs)

    y = torch.randn(shape, device=device, dtype=dtype)
    ours = lambda y: bn_lif(y, weight, bias, mean, var, NEURON)  # noqa: E731
    enter_calls(enter, y, normalised, ours, traced_batch_norm, traced_bn_lif, work)
