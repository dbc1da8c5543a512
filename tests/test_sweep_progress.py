"""How far a sweep is, in words."""

import pytest

from ckdsnn.sweep.plan import Job
from ckdsnn.sweep.progress import Progress
from ckdsnn.sweep.run import Running


@pytest.fixture
def now(monkeypatch):
    """The clock, in seconds."""
    clock = [1000.0]
    monkeypatch.setattr("ckdsnn.sweep.progress.time.monotonic", lambda: clock[0])
    return clock


def jobs_and_log(folder, names, epochs):
    """A job a name, and where the first one writes how far it is."""
    jobs = [Job(name, folder / name, (), {}, folder / name / "test.json", epochs=epochs) for name in names]
    log = jobs[0].folder / "logs" / "version_0" / "metrics.csv"
    log.parent.mkdir(parents=True)
    return jobs, log


def test_how_far_it_is_on_a_pipe(tmp_path, now, capsys):
    """A line a minute, and the time left at this sweep's own rate: what earlier ones have done does not count."""
    jobs, log = jobs_and_log(tmp_path, "ab", epochs=10)

    def epochs(count):
        log.write_text("epoch,train/loss,train/accuracy\n" + "".join(f"{e},1.0,0.5\n" for e in range(count)))

    epochs(5)
    runs = [Running(jobs[0], None, 0, 0.0, 0.0)]
    with Progress("x", jobs, 1) as progress:
        progress.watch(runs)
        epochs(8)
        now[0] += 59
        progress.watch(runs)
        now[0] += 1
        progress.watch(runs)  # 0.3 runs in a minute; 1.2 are left
        now[0] += 40
        progress.end(jobs[0], None)  # 0.5 in 100 seconds; one is left
    assert capsys.readouterr().err.splitlines() == [
        "x: 0 of 2 runs are finished, 1 at a time",
        "[0/2] a: epoch 8/10; left 04:00",
        "[1/2] a: finished, 0 s; left 03:20",
    ]


def test_the_end_of_a_run_is_no_rate(tmp_path, now, capsys):
    """Of one that an earlier sweep had trained up to its last epoch: 0.01 runs in 10 seconds tell nothing of one."""
    jobs, log = jobs_and_log(tmp_path, "abc", epochs=2)
    log.write_text("epoch,train/loss\n0,1.0\n1,1.0\n")
    with Progress("x", jobs, 1) as progress:
        for job in jobs[:2]:
            progress.watch([Running(job, None, 0, 0.0, 0.0)])
            now[0] += 10
            progress.end(job, None)
    assert [line.rpartition("; ")[2] for line in capsys.readouterr().err.splitlines()[1:]] == ["left ?", "left 00:20"]
