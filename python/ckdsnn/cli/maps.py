"""`ckdsnn maps`: where teacher and student look, how well they agree, and what the noise does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ckdsnn.cli.looking import index, parser_of, told

if TYPE_CHECKING:
    from ckdsnn.cli.opened import OpenedRun

DESCRIPTION = """\
Draws input, teacher CAM, student SAM (spike activation map) and student Grad-CAM side by side, scores how well the maps
agree on the first N test samples, and shows what the noise of NLD does to the logits of student and teacher.

  ckdsnn maps runs/c100
  ckdsnn maps runs/c100 --indices 3 17 42
  ckdsnn maps runs/c100 --checkpoints runs/c100/epochs/*.ckpt     over training
  ckdsnn maps runs/c100-ce --teacher runs/c100/teacher/last.ckpt

To keep the checkpoints of every 50th epoch, train with
  --trainer.callbacks+=ModelCheckpoint --trainer.callbacks.every_n_epochs=50
  --trainer.callbacks.save_top_k=-1 --trainer.callbacks.dirpath=RUN/epochs

writes to RUN/maps: maps.png; maps_over_training.png of several checkpoints; agreement.csv (a line a checkpoint and
sample: KL, cosine, intersection over union of the top fifth; where the data set knows the place of the object, the
pointing game and the IoU with its box); logits.png and logits.csv (a line a sample: entropies without and with noise).
Like a recipe, the run's config.yaml can name code to run: read that of somebody else first.
"""


def main(arguments: list[str]) -> int:
    """Runs the command; returns the exit status."""
    parser = parser_of("maps", DESCRIPTION, samples=1000, batch_size=50)
    parser.add_argument(
        "--indices", type=index, nargs="+", metavar="I", help="test samples to draw, counted from 0 (default: 8 first)"
    )
    parser.add_argument(
        "--checkpoints", nargs="+", metavar="FILE", help="of this run, in the order to draw (default: RUN/last.ckpt)"
    )
    parser.add_argument("--stage", type=int, help="of the student, negative from the end (default: as it was trained)")
    parser.add_argument("--teacher_stage", type=int, help="of the teacher (default: as it was trained)")
    return told(_work, parser.parse_args(arguments))


def _work(options: argparse.Namespace) -> None:
    from ckdsnn.checkpoint import RunError
    from ckdsnn.cli.opened import open_run
    from ckdsnn.run_folder import check_writable

    folder = options.out or options.run / "maps"
    checkpoints = list(dict.fromkeys(options.checkpoints or [None]))
    run = open_run(
        options.run, root=options.root, teacher=options.teacher, checkpoint=checkpoints[0], device=options.device
    )
    check_writable(folder)
    if run.network.dense:
        raise RunError(
            f"the run {options.run} classifies pixels, and what is drawn here explains one class an image: name a run "
            "that classifies images"
        )
    if run.teacher is None:
        raise RunError(
            f"the run {options.run} has no teacher to compare with (method {run.task.method.name}): name the "
            "checkpoint of one with --teacher"
        )
    known = run.size
    shown = list(dict.fromkeys(options.indices or range(min(8, options.samples, known))))
    if unknown := [index for index in shown if index >= known]:
        raise RunError(
            f"--indices {' '.join(map(str, unknown))}: the test part has {known} samples, counted from 0 to {known - 1}"
        )
    _look(run, checkpoints, shown, max(options.samples, *(i + 1 for i in shown)), folder, options)


def _look(
    run: OpenedRun,
    checkpoints: list[str | None],
    shown: list[int],
    samples: int,
    folder: Path,
    options: argparse.Namespace,
) -> None:
    import dataclasses

    from ckdsnn.analysis import figures, maps, maps_report
    from ckdsnn.analysis.style import write_figure
    from ckdsnn.checkpoint import write_text_atomically

    assert run.teacher is not None
    places = maps.Places.of(run.task.method)
    given = {"stage": options.stage, "teacher_stage": options.teacher_stage}
    places = dataclasses.replace(places, **{name: stage for name, stage in given.items() if stage is not None})
    students = []
    paths = [run.checkpoint if checkpoint is None else Path(checkpoint) for checkpoint in checkpoints]
    epochs = [run.load(path) for path in paths]  # all of them can be read before the work begins
    labels = [path.stem if epoch is None else f"epoch {epoch}" for path, epoch in zip(paths, epochs, strict=True)]
    if len(set(labels)) < len(labels):
        labels = [str(path) for path in paths]
    for path, label in zip(paths, labels, strict=True):
        run.load(path)
        batches = run.batches(samples, options.batch_size)
        students.append(maps.student_maps(run.network, batches, places.stage, label))
    teacher = maps.teacher_maps(run.teacher, run.batches(samples, options.batch_size), places, shown)
    boxes = run.boxes(len(teacher.indices))
    pictures = [figures.picture(teacher.shown[index], run.data.mean, run.data.std) for index in shown]
    smoothing = maps.Smoothing.of(run.task.method, students[-1].logits, teacher.logits)
    scored = maps_report.score(teacher, students, boxes)
    print(f"{run.folder}: {len(teacher.indices)} test samples, means ± their standard errors\n")
    print(maps_report.table(scored))
    print(f"\n{maps_report.smoothing_words(smoothing, students[-1].label)}")
    write_text_atomically(maps_report.agreement_csv(teacher, students, scored), folder / "agreement.csv")
    write_text_atomically(maps_report.logits_csv(teacher, smoothing), folder / "logits.csv")
    names = getattr(run.data, "class_names", None)
    write_figure(figures.side_by_side(teacher, students[-1:], shown, pictures, names, boxes), folder / "maps.png")
    written = ["agreement.csv", "logits.csv", "maps.png"]
    if len(students) > 1:
        over = figures.side_by_side(teacher, students, shown, pictures, names, boxes)
        write_figure(over, folder / "maps_over_training.png")
        written.append("maps_over_training.png")
    write_figure(figures.logits_figure(smoothing), folder / "logits.png")
    print(f"\nwrote {', '.join(written)} and logits.png to {folder}")
