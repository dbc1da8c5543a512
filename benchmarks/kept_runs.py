"""What is kept of single runs, worth minutes of a GPU each: configuration, what was logged, what its test said."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from ckdsnn.checkpoint import write_text_atomically


def keep_run(run: Path, name: str, kept: Path, platform: str | None) -> None:
    """Writes `config.yaml`, `metrics.csv` and `test.json` of a run, each where the run has one, without its paths and
    the name of its machine.

    Args:
        run: the run's folder.
        name: CELL/seedK, which stands for that folder.
        kept: where the files go.
        platform: what stands for the machine; None: nothing does.
    """
    kept.mkdir(parents=True, exist_ok=True)
    if (config := run / "config.yaml").exists():
        said = yaml.safe_load(config.read_text())
        if ((said.get("model") or {}).get("teacher") or {}).get("checkpoint"):
            said["model"]["teacher"]["checkpoint"] = "TEACHER"
        if "root" in (data := (said.get("data") or {}).get("init_args") or {}):
            data["root"] = "DATA"
        said |= {"out": name, "ckpt_path": None}
        write_text_atomically(yaml.safe_dump(said, sort_keys=False), kept / "config.yaml")
    if logged := _logged(sorted((run / "logs").glob("version_*/metrics.csv"), key=_version)):
        write_text_atomically(_csv(logged), kept / "metrics.csv")
    if (test := run / "test.json").exists():
        said = json.loads(test.read_text())
        said = {"checkpoint": f"{name}/last.ckpt", "metrics": said["metrics"], "versions": said.get("versions")}
        write_text_atomically(
            json.dumps(said | ({"platform": platform} if platform else {}), indent=1) + "\n", kept / "test.json"
        )


def _version(path: Path) -> int:
    return int(path.parent.name.rpartition("_")[2])


def _logged(files: Iterable[Path]) -> list[dict[str, Any]]:
    """The rows of all parts of a training that was interrupted and went on."""
    rows: list[dict[str, Any]] = []
    for path in files:
        with path.open(newline="") as file:
            rows += csv.DictReader(file)
    return rows


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
