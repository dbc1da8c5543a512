"""Checks of what data modules are given: a string or a bool is no number, whatever Python makes of it."""

from __future__ import annotations

from pathlib import Path

from ckdsnn.data.augment import Augmentation


def whole_number(name: str, value: object, least: int) -> int:
    """`value`, an integer of at least `least`.

    Raises:
        TypeError: it is no integer; True and False are none.
        ValueError: it is less.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def share(name: str, value: object) -> float:
    """`value`, a number between 0 and 1, both excluded.

    Raises:
        TypeError: it is no number.
        ValueError: it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 < value < 1:
        raise ValueError(f"{name} is a share between 0 and 1, got {value}")
    return value


def true_or_false(name: str, value: object) -> bool:
    """`value`, True or False.

    Raises:
        TypeError: it is anything else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be true or false, got {value!r}")
    return value


def of_batches(batch_size: object, eval_batch_size: object, seed: object, augmentation: object) -> None:
    """What all data sets are given.

    Raises:
        TypeError, ValueError: one of them is of another type or out of range.
    """
    whole_number("batch_size", batch_size, 1)
    if eval_batch_size is not None:
        whole_number("eval_batch_size", eval_batch_size, 1)
    whole_number("seed", seed, 0)
    if not isinstance(augmentation, Augmentation):
        raise TypeError(f"augmentation must be a ckdsnn.data.Augmentation, got {augmentation!r}")


def folder_name(name: str, value: object) -> Path:
    """`value`, the name of a folder.

    Raises:
        TypeError: it is no text.
        ValueError: it is empty.
    """
    if not isinstance(value, str | Path):
        raise TypeError(f"{name} must be the name of a folder, got {value!r}")
    if not str(value):
        raise ValueError(f"{name} is empty: it must be the name of a folder")
    return Path(value)
