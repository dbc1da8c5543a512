"""What was counted of a spiking network and of its teacher: table, CSV and bars."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ckdsnn.analysis.energy import AC_PJ, MAC_PJ, LayerCount, energy_of, energy_of_ann
from ckdsnn.analysis.style import BLUE, ORANGE, STYLE

COLUMNS = (
    "layer", "mac_per_step", "steps", "input", "firing_rate", "nonzero_share", "mac", "ac", "energy_mj",
    "mac_integers_as_spikes", "ac_integers_as_spikes", "energy_integers_as_spikes_mj",
)  # fmt: skip


@dataclass(frozen=True)
class EnergyReport:
    """Counts of a network, of its teacher, and what an operation costs.

    Attributes:
        layers: of the spiking network, by name.
        firing_rate: of all its neurons, spikes per neuron and time step; None: it has none.
        teacher: of the conventional network; None: there is none.
        mac_pj, ac_pj: energy of a multiply-accumulate and of an accumulation, in pJ.

    Example:
        >>> from ckdsnn.analysis.energy import LayerCount
        >>> layer = LayerCount("head", macs=2000, samples=1, steps=2, kind="binary", inputs=100, total=25.0)
        >>> report = EnergyReport({"head": layer}, 0.25)
        >>> f"{report.energy_mj():.2e}"  # a quarter of 2000 operations, 0.9 pJ each
        '4.50e-07'
    """

    layers: dict[str, LayerCount]
    firing_rate: float | None = None
    teacher: dict[str, LayerCount] | None = None
    mac_pj: float = MAC_PJ
    ac_pj: float = AC_PJ

    def energy_mj(self, *, integers_as_spikes: bool = False) -> float:
        """Of one sample in the spiking network, in mJ."""
        return energy_of(self.layers, self.mac_pj, self.ac_pj, integers_as_spikes=integers_as_spikes)

    @property
    def teacher_mj(self) -> float | None:
        """Of one sample in the teacher, in mJ."""
        return None if self.teacher is None else energy_of_ann(self.teacher, self.mac_pj)

    def csv(self) -> str:
        """A line a layer: see :data:`COLUMNS`; operations and energy are those of one sample over all time steps."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for layer in self.layers.values():
            row: list[object] = [layer.name, layer.macs_per_step, layer.steps, layer.kind, layer.rate]
            row.append(layer.nonzero / layer.inputs)
            for spikes in (False, True):
                row += layer.operations(integers_as_spikes=spikes)
                row.append(sum(layer.millijoules(self.mac_pj, self.ac_pj, integers_as_spikes=spikes)))
            writer.writerow(["" if value is None else value for value in row])
        return text.getvalue()

    def table(self) -> str:
        """For a terminal of 100 columns. MAC, AC and energy are those of one sample over all time steps."""
        head = (
            f"{'layer':<32} {'MAC/step':>9} {'steps':>5} {'input':>7} {'rate':>7} {'MAC':>8} {'AC':>8} {'energy':>11}"
        )
        lines = [head, "-" * len(head)]
        for layer in self.layers.values():
            mac, ac = layer.operations()
            energy = sum(layer.millijoules(self.mac_pj, self.ac_pj))
            rate = "-" if layer.rate is None else f"{layer.rate:.4f}"
            lines.append(
                f"{_shortened(layer.name, 32):<32} {count(layer.macs_per_step):>9} {layer.steps:>5} {layer.kind:>7} "
                f"{rate:>7} {count(mac):>8} {count(ac):>8} {millijoules(energy):>11}"
            )
        mac, ac = (sum(layer.operations()[i] for layer in self.layers.values()) for i in (0, 1))
        step = sum(layer.macs_per_step for layer in self.layers.values())
        lines += ["-" * len(head)]
        lines += [
            f"{'all layers':<32} {count(step):>9} {'':>5} {'':>7} {'':>7} {count(mac):>8} {count(ac):>8} "
            f"{millijoules(self.energy_mj()):>11}",
            "",
            *self._summary(),
        ]
        return "\n".join(lines)

    def _summary(self) -> list[str]:
        lines = []
        if self.firing_rate is not None:
            lines.append(f"firing rate of all neurons: {self.firing_rate:.4f} spikes per neuron and time step")
        lines.append(f"energy of one sample ({self.mac_pj:g} pJ a MAC, {self.ac_pj:g} pJ an AC):")
        for name, energy in self.totals().items():
            ratio = (
                ""
                if not self.teacher_mj or not energy
                else f"   the ANN takes {self.teacher_mj / energy:.2f} times as much"
            )
            lines.append(f"  {name:<44} {millijoules(energy):>11}{ratio if not name.startswith('ANN') else ''}")
        if not any(layer.kind == "integer" for layer in self.layers.values()):
            lines.append("  no layer reads integers above 1, so there is one way to count")
        return lines

    def totals(self) -> dict[str, float]:
        """Energies to compare, in mJ: the SNN by both conventions where they differ, and the teacher."""
        totals = {}
        if any(layer.kind == "integer" for layer in self.layers.values()):
            totals["SNN, spikes are zeros and ones alone"] = self.energy_mj()
            totals["SNN, integers count as that many spikes"] = self.energy_mj(integers_as_spikes=True)
        else:
            totals["SNN"] = self.energy_mj()
        if self.teacher_mj is not None:
            totals["ANN teacher"] = self.teacher_mj
        return totals

    def figure(self) -> Figure:
        """Energy layer by layer, and of the whole beside the teacher's."""
        costs = {_shortened(n, 32): layer.millijoules(self.mac_pj, self.ac_pj) for n, layer in self.layers.items()}
        whole = {name.replace(", ", ",\n").replace("count as", "count\nas"): self._cost(name) for name in self.totals()}
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(11, max(3.4, 0.21 * len(costs) + 1.6)), layout="constrained")
            left, right = figure.subplots(1, 2, width_ratios=(3, 2))
            _bars(left, costs)
            left.tick_params(axis="y", labelsize=8)
            left.set_title("by layer of the SNN")
            _bars(right, whole, labelled=True)
            right.set_ylim(max(len(whole), 3) - 0.4, -0.6)
            right.set_title("whole network")
            figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
            return figure

    def _cost(self, total: str) -> tuple[float, float]:
        """Of a name in :meth:`totals`: what its multiply-accumulates and accumulations take, in mJ."""
        if total.startswith("ANN"):
            return self.teacher_mj or 0.0, 0.0
        spikes = "integers" in total
        costs = [x.millijoules(self.mac_pj, self.ac_pj, integers_as_spikes=spikes) for x in self.layers.values()]
        return sum(mac for mac, _ in costs), sum(ac for _, ac in costs)


def _bars(axis: Axes, costs: dict[str, tuple[float, float]], *, labelled: bool = False) -> None:
    largest = max(map(sum, costs.values()))
    unit, factor = ("mJ", 1.0) if largest >= 0.1 else ("µJ", 1e3) if largest >= 1e-4 else ("nJ", 1e6)
    places = range(len(costs))
    mac, ac = ([pair[i] * factor for pair in costs.values()] for i in (0, 1))
    axis.barh(places, mac, color=ORANGE, height=0.7, label="MAC: the input is real numbers or integers")
    bars = axis.barh(places, ac, left=mac, color=BLUE, height=0.7, label="AC: the input is spikes")
    if labelled:
        axis.bar_label(bars, [f"{a + b:.3g}" for a, b in zip(mac, ac, strict=True)], padding=3)
    axis.set_yticks(places, list(costs))
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
    axis.margins(y=0.01)
    axis.set_xlim(0, max(largest * factor * (1.2 if labelled else 1.03), 1e-12))
    axis.set_xlabel(f"energy of one sample, {unit}")


def count(value: float) -> str:
    """A number of operations in at most 8 characters.

    Example:
        >>> from ckdsnn.analysis.energy_report import count
        >>> count(0), count(512), count(1_234_567), count(2_285_245_440)
        ('0', '512', '1.23 M', '2.29 G')
    """
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.{2 if value / limit < 100 else 1}f} {suffix}"
    return f"{value:.0f}" if value == int(value) or value >= 100 else f"{value:.3g}"


def millijoules(value: float) -> str:
    """An energy in mJ, µJ or nJ."""
    for limit, unit in ((0.1, "mJ"), (1e-4, "µJ"), (0, "nJ")):
        if value >= limit:
            return f"{value * {'mJ': 1, 'µJ': 1e3, 'nJ': 1e6}[unit]:.4g} {unit}"
    raise ValueError(f"an energy cannot be negative, got {value}")


def _shortened(name: str, length: int) -> str:
    """Without its middle where it is longer."""
    return name if len(name) <= length else f"{name[: length // 2 - 2]}...{name[-(length - length // 2 - 1) :]}"
