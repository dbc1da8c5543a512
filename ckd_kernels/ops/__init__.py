"""The ops as PyTorch knows them: schemas, fakes, and the autograd functions over them."""

from . import bn_fold, bn_lif, bn_lif_autograd, lif, sam

__all__ = ["bn_fold", "bn_lif", "bn_lif_autograd", "lif", "sam"]
