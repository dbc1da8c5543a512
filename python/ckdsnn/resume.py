"""Whether a run may go on: does the configuration still ask for what its checkpoint was trained with?"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import lightning as L

from ckdsnn.configuration import TeacherConfig, as_plain, differing_keys, parameter_defaults
from ckdsnn.losses import METHODS
from ckdsnn.models import MODELS
from ckdsnn.registry import Options, Registry


def changed_network(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Where the network in a checkpoint is another than the one that is configured, as "key: old -> new"."""
    return differing_keys(*_with_all_options(MODELS, old, new))


def changed_run(old: dict[str, Any], new: dict[str, Any], task: Callable[..., Any]) -> list[str]:
    """Where a run's configuration in a checkpoint is another than the present one, as "key: old -> new".

    A key that one of them lacks means its default: a later version may know more keys, and a user may write a default
    or leave it out. A teacher is told by its weights; the file that holds them may lie elsewhere.

    Args:
        old, new: plain configurations: `network`, `method`, `teacher`, `optimizer` and, from the command line, `data`
            and `trainer`.
        task: the LightningModule, whose parameters have the defaults of the remaining keys.
    """
    old, new = dict(old), dict(new)
    old["teacher"], new["teacher"] = _comparable(old.get("teacher"), new.get("teacher"))
    for key, registry in (("network", MODELS), ("method", METHODS), ("teacher", MODELS)):
        old[key], new[key] = _with_all_options(registry, old.get(key), new.get(key))
    defaults = parameter_defaults(task) | {
        "teacher": parameter_defaults(TeacherConfig),
        "data": _data_defaults(new.get("data")),
        "trainer": parameter_defaults(L.Trainer),
    }
    return differing_keys(old, new, defaults)


def _with_all_options(registry: Registry[Any], old: Any, new: Any) -> tuple[Any, Any]:
    """Two configurations with all options of what they name, where that is the same.

    What is looked up is the new one's name: a checkpoint, which may come from anyone, does not decide what is imported.
    """
    if (
        not (isinstance(old, dict) and isinstance(new, dict))
        or new.get("name") is None
        or old.get("name") != new["name"]
    ):
        return old, new

    def whole(said: Any) -> Any:
        try:
            return as_plain(registry.options(new["name"], said))
        except (TypeError, ValueError):  # of a later version, which then shows as a difference
            defaults = parameter_defaults(registry.options_class(registry.find(new["name"])) or Options)
            return defaults | said if isinstance(said, dict) else said

    return tuple({**config, "options": whole(config.get("options", {}))} for config in (old, new))  # type: ignore[return-value]


def _data_defaults(config: Any) -> dict[str, Any]:
    """The defaults of a data module: of the present configuration's, which has been imported."""
    if not isinstance(config, dict):
        return {}
    module, _, name = str(config.get("class_path")).rpartition(".")
    return {"init_args": parameter_defaults(getattr(importlib.import_module(module), name))}


def _comparable(old: Any, new: Any) -> tuple[Any, Any]:
    """Two teachers without what their student's weights do not depend on."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return old, new
    unused = {"epochs", "unfinished"}  # its own training is another run
    if "weights" in old and "weights" in new:
        unused.add("checkpoint")
        if None in (old.get("name"), new.get("name")):  # one of this package's, and its weights have its shape
            unused |= {"name", "options"}
    else:  # the first checkpoints name the file alone
        unused.add("weights")
        old, new = ({**t, "checkpoint": t.get("checkpoint") and os.path.realpath(t["checkpoint"])} for t in (old, new))
    return tuple({key: value for key, value in teacher.items() if key not in unused} for teacher in (old, new))  # type: ignore[return-value]
