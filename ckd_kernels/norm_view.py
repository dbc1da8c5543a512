"""What PyTorch's tools for batch normalisation find in a `layers.BatchNormLIF`.

They look for ``torch.nn.modules.batchnorm._BatchNorm`` and change or replace it; a normalisation that holds a neuron
must be no such thing, as it would be replaced as a whole.  So the layer has a child that is, and whose parameters,
buffers and options are the layer's own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_OPTIONS = ("num_features", "eps", "momentum", "affine", "track_running_stats")
_SHARED = frozenset((*_OPTIONS, "weight", "bias", "running_mean", "running_var", "num_batches_tracked"))


class NormView(_BatchNorm):
    """The normalisation of a layer, for `torch.nn.SyncBatchNorm.convert_sync_batchnorm`,
    `torch.optim.swa_utils.update_bn`, `torch.func.replace_all_batch_norm_modules_` and code of their kind.

    It holds nothing: what is read, set or reset here is the layer's.
    """

    def __init__(self, layer: nn.Module) -> None:
        nn.Module.__init__(self)
        self.__dict__["_layer"] = layer  # no child: the layer is the parent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name) if name in _SHARED else super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _SHARED:
            setattr(self._layer, name, value)
        else:
            super().__setattr__(name, value)

    def reset_running_stats(self) -> None:
        self._layer.reset_running_stats()

    def reset_parameters(self) -> None:
        self._layer.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        raise RuntimeError("this is a view of a BatchNormLIF's normalisation, which only the layer itself computes")

    def extra_repr(self) -> str:
        return ""  # the layer's own line says it all

    def _load_from_state_dict(self, *args: Any) -> None:
        """Nothing: checkpoints hold the layer's tensors under the layer's name."""
