"""A convolution with its batch normalisation folded in, for networks that are only evaluated."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


class FoldedConv(nn.Conv2d):
    """``norm(conv(x))`` in eval mode as one convolution with a bias.

    Args:
        conv: a convolution.
        norm: the normalisation of its output, with running statistics.
    """

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        sizes = conv.kernel_size, conv.stride, conv.padding, conv.dilation
        super().__init__(conv.in_channels, conv.out_channels, *sizes, conv.groups)  # type: ignore[arg-type]
        self.weight, self.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        self.requires_grad_(False)

    def relu(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``relu(self(x) + residual)``, on a GPU in two bytes as one kernel where no gradient is wanted."""
        if not x.is_cuda or torch.is_grad_enabled() or not torch.is_autocast_enabled("cuda"):
            out = self(x)
            return torch.relu(out if residual is None else out + residual)
        dtype = torch.get_autocast_dtype("cuda")  # autocast does not know of these kernels
        assert self.bias is not None
        assert not isinstance(self.padding, str)
        x, weight, bias = x.to(dtype), self.weight.to(dtype), self.bias.to(dtype)
        sizes = self.stride, self.padding, self.dilation
        if residual is None:
            return torch.cudnn_convolution_relu(x, weight, bias, *sizes, self.groups)
        return torch.cudnn_convolution_add_relu(x, weight, residual.to(dtype), 1.0, bias, *sizes, self.groups)
