"""Data modules: digits (bundled with scikit-learn), CIFAR, image folders and event frames."""

from ckdsnn.data.augment import Augmentation
from ckdsnn.data.batches import Batch, BatchLoader
from ckdsnn.data.cifar import CIFAR
from ckdsnn.data.digit_masks import DigitMasks
from ckdsnn.data.digits import DigitsCanvas
from ckdsnn.data.folder import ImageFolder
from ckdsnn.data.frames import DVSFrames
from ckdsnn.data.module import DATA, ArrayDataModule, Arrays, DataModule, register_data

__all__ = [
    "CIFAR",
    "DATA",
    "ArrayDataModule",
    "Arrays",
    "Augmentation",
    "Batch",
    "BatchLoader",
    "DVSFrames",
    "DataModule",
    "DigitMasks",
    "DigitsCanvas",
    "ImageFolder",
    "register_data",
]
