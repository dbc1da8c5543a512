"""What a conversion did, as data and as a table."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ConversionReport", "Entry"]


@dataclass(frozen=True)
class Entry:
    """One module that `convert` looked at.

    Args:
        name: where it is, as in ``model.named_modules()``; all its names where it is shared.
        kind: class of the module as it was, e.g. ``"LIFNode"``.
        result: what stands there now, or None where the module was left alone.
        reason: why it was left alone; empty where it was converted.
    """

    name: str
    kind: str
    result: str | None
    reason: str = ""


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` did; ``print(report)`` shows a table.

    Args:
        entries: one for every neuron and everything that looks like one, and with ``fuse=True`` every batch
            normalisation, in the model's order.

    Example:
        >>> from ckd_kernels.interop import ConversionReport, Entry
        >>> print(ConversionReport((Entry("sn", "LIFNode", None, "step_mode is 's'"),)))
        module | was     | is now     | why
        -------+---------+------------+-----------------
        sn     | LIFNode | left alone | step_mode is 's'
        0 converted, 1 left alone
    """

    entries: tuple[Entry, ...]

    @property
    def converted(self) -> tuple[Entry, ...]:
        """What runs on our kernels now."""
        return tuple(entry for entry in self.entries if entry.result is not None)

    @property
    def left_alone(self) -> tuple[Entry, ...]:
        """What does not, and why not."""
        return tuple(entry for entry in self.entries if entry.result is None)

    def __str__(self) -> str:
        rows = [("module", "was", "is now", "why")]
        rows += [(e.name or "(the model)", e.kind, e.result or "left alone", e.reason) for e in self.entries]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        lines.insert(1, "-+-".join("-" * width for width in widths))
        return "\n".join([*lines, f"{len(self.converted)} converted, {len(self.left_alone)} left alone"])
