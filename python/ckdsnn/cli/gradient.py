"""`ckdsnn gradient`: how wrong Grad-CAM through surrogate gradients is on a trained spiking network."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ckdsnn.cli.arguments import positive
from ckdsnn.cli.looking import index, parser_of, told

if TYPE_CHECKING:
    from ckdsnn.cli.opened import OpenedRun

DESCRIPTION = """\
Compares, on test samples, the channel weights of Grad-CAM that surrogate gradients give with two references that need
none: finite differences of the network itself, over steps that are said, and the gradient of its expected output when
noise is added to the thresholds (likelihood ratios). Both see the same features, those of one stage, by default the
last one that has neurons behind it. Beside it: how well SAM and each Grad-CAM agree with the teacher's.

  ckdsnn gradient runs/c100
  ckdsnn gradient runs/c100 --stage 1 --time_steps 4
  ckdsnn gradient runs/c100 --surrogates sigmoid triangle --alphas 1 4 16
  ckdsnn gradient runs/c100 --noise 0.1 0.3 --draws 8192

writes to RUN/gradient: gradient.csv (a line a number of time steps, surrogate and reference), references.csv (how far
those can be trusted), samples.csv and gradient.png. What they mean: docs/analysis.md. Like a recipe, the run's
config.yaml can name code to run: read that of somebody else first.
"""

SURROGATES = ("triangle", "rectangle", "sigmoid", "atan", "fast_sigmoid", "erf")


def main(arguments: list[str]) -> int:
    """Runs the command; returns the exit status."""
    parser = parser_of("gradient", DESCRIPTION, samples=16, batch_size=16)
    add = parser.add_argument
    add("--indices", type=index, nargs="+", metavar="I", help="these test samples, counted from 0, not the first N")
    add("--stage", type=int, help="of student and teacher, negative from the end (default: the last but one)")
    add(
        "--time_steps", type=positive, nargs="+", metavar="T",
        help="of the student at test time (default: 1 2 4 8; of recordings, as it was trained)",
    )  # fmt: skip
    add("--surrogates", nargs="+", default=SURROGATES, metavar="NAME", help=f"(default: {' '.join(SURROGATES)})")
    add(
        "--alphas", type=_above_0, nargs="+", default=(0.5, 1.0, 2.0, 4.0, 8.0), metavar="A",
        help="sharpness of each surrogate (default: 0.5 1 2 4 8)",
    )  # fmt: skip
    add(
        "--step_sizes", type=_above_0, nargs="+", default=(0.01, 0.1, 0.3, 1.0), metavar="H",
        help="of the finite differences, in spikes (default: 0.01 0.1 0.3 1)",
    )  # fmt: skip
    add(
        "--noise", type=_above_0, nargs="+", default=(0.1, 0.2, 0.5), metavar="SIGMA",
        help="standard deviation of the noise at the thresholds, in units of the potential (default: 0.1 0.2 0.5)",
    )  # fmt: skip
    add("--draws", type=positive, default=512, metavar="N", help="of that noise for every sample (default: 512)")
    add("--seed", type=index, default=0, help="of that noise (default: 0)")
    return told(_work, parser.parse_args(arguments))


def _above_0(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def _work(options: argparse.Namespace) -> None:
    from ckd_kernels.surrogate import BY_NAME
    from ckdsnn.checkpoint import RunError
    from ckdsnn.cli.opened import open_run
    from ckdsnn.run_folder import check_writable

    folder = options.out or options.run / "gradient"
    if unknown := [name for name in options.surrogates if name not in BY_NAME]:
        raise RunError(f"--surrogates {' '.join(unknown)}: known are {', '.join(sorted(BY_NAME))}")
    run = open_run(options.run, root=options.root, teacher=options.teacher, device=options.device)
    check_writable(folder)
    if unknown := [i for i in options.indices or () if i >= run.size]:
        raise RunError(
            f"--indices {' '.join(map(str, unknown))}: the test part has {run.size} samples, counted from 0 to "
            f"{run.size - 1}"
        )

    from ckdsnn.analysis import gradient_measure
    from ckdsnn.analysis.gradient_figure import gradient_figure
    from ckdsnn.analysis.gradient_report import GradientReport
    from ckdsnn.analysis.style import write_figure
    from ckdsnn.analysis.tail import Tail
    from ckdsnn.checkpoint import write_text_atomically

    first = next(run.batches(1))
    stage = options.stage if options.stage is not None else max(1, run.network.num_stages - 1)
    settings = gradient_measure.Settings(
        stage,
        _time_steps(options.time_steps, run.network.time_steps, recorded=first.images.dim() == 5),
        tuple(BY_NAME[name](alpha) for name in dict.fromkeys(options.surrogates) for alpha in _sorted(options.alphas)),
        _sorted(options.step_sizes),
        _sorted(options.noise),
        options.draws,
        options.seed,
    )
    tail = Tail(run.network, stage)
    if not tail.spiking_layers:
        raise RunError(
            f"--stage {stage}: no neuron lies behind it, so its Grad-CAM needs no surrogate and has no error; name an "
            f"earlier one, 1 to {run.network.num_stages - 1}"
        )
    looked = gradient_measure.look(run.network, _chosen(run, options), settings)
    checks = gradient_measure.Checks.of(run.network, run.teacher, next(_chosen(run, options)), settings)
    teacher = None
    if run.teacher is not None:
        teacher = gradient_measure.teacher_maps_at(run.teacher, _chosen(run, options), tail.stage)
    samples = [i for batch in _chosen(run, options) for i in batch.indices.tolist()]
    own = tail.spiking_layers[0].neuron.surrogate
    report = GradientReport(looked, own, run.network.time_steps, checks, teacher, samples)
    features = next(iter(looked.values())).features
    print(
        f"{run.checkpoint}: {len(samples)} test samples, means ± their standard errors; stage {tail.stage} of "
        f"{run.network.num_stages}\n({features.shape[1]} channels, {features.shape[2]} x {features.shape[3]}), trained "
        f"with T {report.own_steps} and {own.name}, alpha {own.alpha:g}\n"
    )
    print(report.checks_table())
    print("\nGrad-CAM's channel weights by the network's own surrogate, against references without one")
    print(report.references_table())
    print(
        f"\nother surrogates in the same network: cosine with the smoothed gradient, sigma {report.sigma:g}, "
        f"T {report.shown_steps}"
    )
    print(report.surrogates_table())
    if teacher is not None:
        print(
            f"\nagreement with the teacher's Grad-CAM at the same stage (finite difference: step {report.step:g}; "
            f"smoothed: sigma {report.sigma:g})"
        )
        print(report.teacher_table())
    write_text_atomically(report.csv(), folder / "gradient.csv")
    write_text_atomically(report.references_csv(), folder / "references.csv")
    write_text_atomically(report.samples_csv(), folder / "samples.csv")
    write_figure(gradient_figure(report), folder / "gradient.png")
    print(f"\nwrote gradient.csv, references.csv, samples.csv and gradient.png to {folder}")


def _sorted(values: Any) -> tuple[float, ...]:
    return tuple(sorted(set(values)))


def _time_steps(asked: list[int] | None, trained: int, *, recorded: bool) -> tuple[int, ...]:
    from ckdsnn.checkpoint import RunError

    if not recorded:
        return tuple(sorted(set(asked or (1, 2, 4, 8))))
    if asked not in (None, [trained]):
        raise RunError(f"--time_steps {' '.join(map(str, asked or ()))}: recordings have the {trained} of the training")
    return (trained,)


def _chosen(run: OpenedRun, options: argparse.Namespace) -> Iterator[Any]:
    """The samples that were asked for, in batches."""
    from ckdsnn.data import Batch

    if options.indices is None:
        yield from run.batches(options.samples, options.batch_size)
        return
    wanted = set(options.indices)
    for images, targets, indices in run.batches(max(wanted) + 1, options.batch_size):
        places = [place for place, i in enumerate(indices.tolist()) if i in wanted]
        if places:
            of_batch = images[:, places] if images.dim() == 5 else images[places]
            yield Batch(of_batch, targets[places], indices[places])
