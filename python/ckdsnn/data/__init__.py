"""Data modules: digits (bundled with scikit-learn), CIFAR, image folders and event frames."""

from ckdsnn.data.augment import Augmentation
from ckdsnn.data.batches import Batch, BatchLoader
from ckdsnn.data.cifar import CIFAR
from ckdsnn.data.digits import DigitsCanvas
from ckdsnn.data.module import ArrayDataModule, Arrays

__all__ = ["CIFAR", "ArrayDataModule", "Arrays", "Augmentation", "Batch", "BatchLoader", "DigitsCanvas"]
