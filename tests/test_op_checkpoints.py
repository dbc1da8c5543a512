"""The ops of long sequences, called without what their kernels read."""

import pytest
import torch

from ckd_kernels import Neuron, lif

SPEC = Neuron.paper().spec


@pytest.mark.parametrize("given", [None, (1, 2, 3), "float64"])
def test_backward_needs_its_checkpoints(given):
    x, grad = torch.randn(20, 4, 3), torch.randn(20, 4, 3)
    checkpoints = given
    if given is not None:
        checkpoints = torch.zeros(1, 1, 12, dtype=torch.float64) if given == "float64" else torch.zeros(given)
    with pytest.raises(ValueError, match=r"checkpoints must be (\[1, 1, 12\] for 20 time steps|torch\.float32), got"):
        torch.ops.ckd_kernels.lif_backward(
            x, None, None, checkpoints, grad, None, None, SPEC, "cpu", 0, 20, -1, False, False
        )
    folded = torch.ones(2, 4)
    with pytest.raises(ValueError, match=r"checkpoints must be"):
        torch.ops.ckd_kernels.bn_lif_reduce(
            x, folded, None, None, None, checkpoints, grad, None, None, SPEC, "cpu", 0, 20, 1
        )


def test_with_them_it_is_what_autograd_calls():
    x, grad = torch.randn(20, 4, 3, requires_grad=True), torch.randn(20, 4, 3)
    lif(x, Neuron.paper()).backward(grad)
    with torch.no_grad():
        *_, checkpoints = torch.ops.ckd_kernels.lif_forward(x, None, None, SPEC, "cpu", 0, 20, -1, False, False, True)
        (grad_x,) = torch.ops.ckd_kernels.lif_backward(
            x, None, None, checkpoints, grad, None, None, SPEC, "cpu", 0, 20, -1, False, False
        )
    assert torch.equal(grad_x, x.grad)
