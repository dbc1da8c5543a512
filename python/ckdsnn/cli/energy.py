"""`ckdsnn energy`: firing rates, operations and energy of a trained spiking network, layer by layer."""

from __future__ import annotations

import argparse

from ckdsnn.cli.looking import parser_of, told

DESCRIPTION = """\
Runs a trained spiking network on test samples and counts, layer by layer, what it computes and what that costs.

A layer whose input is measured to be spikes (zeros and ones) only accumulates: firing rate of its input x time steps
x multiply-accumulates of one step (MAC), each accumulation (AC) at 0.9 pJ. Every other layer multiplies: 4.6 pJ a MAC,
as does the conventional teacher. (45 nm, float32; Horowitz, ISSCC 2014.) Sums of spikes, integers above 1 as in
SEW-ResNet, are counted both ways: as multiplications, and as that many spikes each.

  ckdsnn energy runs/c100
  ckdsnn energy runs/c100 --samples 100 --data.root DATA
  ckdsnn energy runs/c100 --mac_pj 3.1 --ac_pj 0.1      another technology

writes RUN/energy/energy.csv (a line a layer), firing_rates.csv (a line a spiking layer) and energy.png. Like a recipe,
the run's config.yaml can name code to run: read that of somebody else first.
"""


def main(arguments: list[str]) -> int:
    """Runs the command; returns the exit status."""
    parser = parser_of("energy", DESCRIPTION, samples=1000, batch_size=50)
    parser.add_argument("--mac_pj", type=_energy, default=4.6, metavar="PJ", help="energy of a MAC (default 4.6 pJ)")
    parser.add_argument("--ac_pj", type=_energy, default=0.9, metavar="PJ", help="energy of an AC (default 0.9 pJ)")
    return told(_work, parser.parse_args(arguments))


def _energy(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of picojoules, at least 0, got {text!r}")
    return value


def _work(options: argparse.Namespace) -> None:
    from ckdsnn.cli.opened import open_run
    from ckdsnn.run_folder import check_writable

    folder = options.out or options.run / "energy"
    check_writable(folder if options.run.is_dir() or options.out else options.run.parent)
    run = open_run(options.run, root=options.root, teacher=options.teacher, device=options.device)

    from ckdsnn.analysis import FiringRate
    from ckdsnn.analysis.energy import OperationCounter
    from ckdsnn.analysis.energy_report import EnergyReport
    from ckdsnn.analysis.style import write_figure
    from ckdsnn.checkpoint import write_text_atomically

    with FiringRate(run.network) as rate, OperationCounter(run.network) as counter:
        for batch in run.batches(options.samples, options.batch_size):
            counter(batch.images)
    teacher = None
    if run.teacher is not None:
        with OperationCounter(run.teacher) as of_teacher:  # which multiplies as much for every image
            of_teacher(next(run.batches(1)).images)
        teacher = of_teacher.layers
    report = EnergyReport(counter.layers, rate.mean, teacher, options.mac_pj, options.ac_pj)
    print(f"{run.checkpoint}, {counter.samples} test samples; MAC, AC and energy of one sample over all time steps\n")
    print(report.table())
    write_text_atomically(report.csv(), folder / "energy.csv")
    rates = "".join(f"{name},{value}\n" for name, value in rate.layers.items())
    write_text_atomically("layer,spikes_per_neuron_and_step\n" + rates, folder / "firing_rates.csv")
    write_figure(report.figure(), folder / "energy.png")
    print(f"\nwrote energy.csv, firing_rates.csv and energy.png to {folder}")
