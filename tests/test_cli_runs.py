"""Run folders: held, movable, and lost to nothing that a disk does."""

import errno
import fcntl
import http.server
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from ckdsnn import cli, run_folder
from ckdsnn.checkpoint import RunError, load_checkpoint, save_atomically
from ckdsnn.cli.failure import words_for
from ckdsnn.cli.output import BestCheckpoint
from ckdsnn.run_folder import alone_in, check_finished, check_writable
from ckdsnn.training.writer import ResumeCheckpoint, flush

NETWORK = ["--model.network.options", '{"widths": [4, 6, 8], "time_steps": 2}', "--data.train_samples", "60"]
TEACHER = ["--model.teacher.options", '{"widths": [4, 6, 8]}', "--model.teacher.epochs", "1"]
FIT = ["--config", "digits", *NETWORK, "--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false"]
CE = [*FIT, "--model.method.name", "ce"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def failing(capsys):
    def fail(*arguments):
        assert cli.main([str(argument) for argument in arguments]) == 1
        shown = capsys.readouterr().err
        assert shown.count("\n") == 1, shown
        return shown

    return fail


def test_one_training_a_folder(tmp_path, failing):
    with (tmp_path / ".lock").open("w") as held:
        held.write("process 7 on a machine")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        shown = failing("fit", *CE, "--out", tmp_path)
        assert f"another training is running in {tmp_path} (process 7 on a machine): wait for it" in shown
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with alone_in(tmp_path, "training"):
        assert f"process {os.getpid()} on " in (tmp_path / ".lock").read_text()
        with pytest.raises(RunError, match="another training is running"), alone_in(tmp_path, "training"):
            pass
    with alone_in(tmp_path, "training"):  # which was given back
        pass


def test_leftovers_of_a_killed_process_go(tmp_path):
    gone = [".last.ckpt.0a1b2c.tmp", ".config.yaml.123.tmp", ".predictions.csv.tmp"]
    kept = ["last.ckpt", "notes.tmp", ".hidden", "teacher/.last.ckpt.0a1b2c.tmp", ".folder.tmp/x"]
    for name in gone + kept:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".link.tmp").symlink_to(tmp_path / "last.ckpt")
    with alone_in(tmp_path, "training"):
        assert not any((tmp_path / name).exists() for name in gone)
        assert all((tmp_path / name).exists() for name in [*kept, ".link.tmp"])


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder.fcntl, "flock", flock)
    with alone_in(tmp_path, "training"):
        pass


@pytest.mark.parametrize("verb", ["fit", "teacher", "test", "predict"])
def test_out_is_checked_first(tmp_path, failing, monkeypatch, verb):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert f"{tmp_path / 'file'} is not a folder: name another one" in failing(verb, *FIT, "--out", out)
    assert (tmp_path / "file").read_text() == "mine"
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    shown = failing(verb, *FIT, "--out", tmp_path / "new" / "run")
    assert f"{tmp_path} is read-only: change its permissions" in shown
    assert not (tmp_path / "new").exists()


def test_out_that_is_a_broken_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunError, match="link is not a folder"):
        check_writable(tmp_path / "link")


def test_a_limit_on_the_size_of_files(tmp_path):
    """`ulimit -f`, a file system's own limit, a quota: the checkpoint before is whole, one line names the file."""
    done = subprocess.run(
        [sys.executable, "-m", "ckdsnn", "fit", *CE, "--out", str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,  # not in the source tree, whose packages are not compiled and would come first
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert str(tmp_path / "run") in done.stderr
    assert "File too large" in done.stderr
    assert "the same command" in done.stderr
    assert not list((tmp_path / "run").glob("*.ckpt"))


def raised(code, name):
    """The error of `code`, which runs in a module of that name."""
    try:
        exec(compile(code, name, "exec"), {"__name__": name})
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "raise OSError(28, 'x')",
            "a file of the run in runs/x: No space left on device: make room",
        ),
        ("raise OSError(13, 'Permission denied', '/a/b')", "/a/b: Permission denied: change its permissions"),
        ("raise FileNotFoundError(2, 'No such file', b'/a/b')", "/a/b: No such file or directory: check the path"),
        # PyTorch's writer dies of what the file did.
        ("try:\n raise OSError(28, '')\nfinally:\n raise RuntimeError('unexpected pos 64')", "No space left on device"),
        ("raise BrokenPipeError(32, '')", "standard output: Broken pipe: whoever read the output has ended"),
        ("raise ValueError('words of another library')", None),
        ("raise OSError('words of another library')", None),
    ],
)
def test_what_the_operating_system_refuses(code, words):
    told = words_for(raised(code, "elsewhere"), Path("runs/x"))
    assert told is None if words is None else words in told


def test_our_own_words_come_before_those_of_the_cause():
    ours = "try:\n import nosuch.module\nexcept ImportError as error:\n raise ValueError('source: ours') from error"
    assert words_for(raised(ours, "ckdsnn.models.external")) == "source: ours"
    wrapped = raised("raise ValueError('a page about unions')", "elsewhere")
    wrapped.__cause__ = raised("raise ValueError('ours')", "ckdsnn.data.cifar")
    assert words_for(wrapped) == "ours"
    # A fault of our own while another error is handled is no explanation of it.
    fault = "try:\n raise ValueError('handled')\nexcept ValueError:\n {}['fault']"
    assert words_for(raised(fault, "ckdsnn.train")) is None


def test_a_source_that_cannot_be_imported_is_named(failing, tmp_path):
    teacher = "{name: external, options: {source: 'nosuch.module:f', layers: [a], image_size: 8}, checkpoint: null}"
    out = tmp_path / "run"
    shown = failing("teacher", *FIT, "--out", out, "--model.teacher", teacher)
    assert "source 'nosuch.module:f' cannot be imported" in shown


def test_nothing_is_fetched(tmp_path, capsys):
    """Neither recipes nor any other option that can be a file."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"name: snn_resnet_small")

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/recipe.yaml"
    local = tmp_path / "recipe.yaml"
    local.write_text("{model: {network: {name: snn_resnet_small}}}")
    for arguments in (
        ["--config", url],
        [f"--config={url}"],
        ["-c", url],
        ["--config", f"simplecache::{url}"],
        ["--config", f"file://{local}"],
        *(["--config", "digits", option, url] for option in ("--model", "--model.network", "--data", "--trainer")),
    ):
        try:
            status = cli.main(["fit", *arguments, "--print_config"])
        except SystemExit as stopped:
            status = stopped.code
        assert status in (1, 2), arguments
        shown = capsys.readouterr().err
        assert "Traceback" not in shown
        assert "--config" not in arguments[0] or "digits" in arguments or "a file of this machine" in shown
    server.shutdown()
    assert asked == []


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    """A distillation after 1 of 2 epochs, started by relative names; and the weights that it ends with."""
    folder = tmp_path_factory.mktemp("half")
    before = Path.cwd()
    os.chdir(folder)
    torch.set_num_threads(1)
    assert cli.main(["teacher", *FIT, *TEACHER, "--out", "runs/here"]) == 0
    copied = ResumeCheckpoint._save

    def save(self, trainer):
        copied(self, trainer)
        if trainer.current_epoch == 0:
            flush(trainer)
            shutil.copytree("runs/here", "runs/half")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResumeCheckpoint, "_save", save)
        assert cli.main(["fit", *FIT, *TEACHER, "--out", "runs/here", "--save_every_n_steps", "2"]) == 0
    whole = load_checkpoint("runs/here/last.ckpt")
    shutil.rmtree("runs/here")  # nobody is to find anything there
    os.chdir(before)
    return folder / "runs" / "half", whole


@pytest.mark.parametrize("how", ["absolute", "relative", "its config.yaml"])
def test_a_moved_folder_goes_on(half_done, tmp_path, monkeypatch, capsys, how):
    half, whole = half_done
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(half, moved)
    monkeypatch.chdir(tmp_path)
    out = ["--out", "elsewhere/run" if how == "relative" else str(moved)]
    command = ["--config", str(moved / "config.yaml")] if "config" in how else [*FIT, *TEACHER]
    assert cli.main(["fit", *command, *out]) == 0, capsys.readouterr().err
    assert "going on with" in capsys.readouterr().out
    made = load_checkpoint(moved / "last.ckpt")
    for name, value in whole["state_dict"].items():
        assert torch.equal(made["state_dict"][name], value), name
    (best,) = (state for key, state in made["callbacks"].items() if key.startswith("ModelCheckpoint"))
    assert best["best_model_path"] == str(moved / "best.ckpt")


def test_another_teacher_does_not_go_on(half_done, tmp_path, failing):
    half, _ = half_done
    moved = tmp_path / "run"
    shutil.copytree(half, moved)
    teacher = load_checkpoint(moved / "teacher" / "last.ckpt")
    next(iter(teacher["state_dict"].values())).view(-1)[0] += 1
    save_atomically(teacher, moved / "teacher" / "last.ckpt")
    shown = failing("fit", *FIT, *TEACHER, "--out", moved)
    assert "another configuration" in shown
    assert "teacher.weights" in shown


def test_the_best_so_far_moves_with_its_folder(tmp_path):
    old = BestCheckpoint(tmp_path / "old")
    old.best_model_path = old.kth_best_model_path = str(tmp_path / "old" / "best.ckpt")
    old.best_model_score = old.kth_value = torch.tensor(0.5)
    old.best_k_models = {old.best_model_path: old.best_model_score}
    new = BestCheckpoint(tmp_path / "new")
    assert new.state_key == old.state_key
    new.load_state_dict(old.state_dict())
    assert new.best_model_score == new.kth_value == 0.5
    assert new.best_k_models == {str(tmp_path / "new" / "best.ckpt"): 0.5}
    assert new.best_model_path == new.kth_best_model_path == str(tmp_path / "new" / "best.ckpt")


@pytest.mark.parametrize("key", ["random_state", "train_loader", "optimizer_states", "loops"])
def test_a_checkpoint_that_lacks_something_is_not_resumed(half_done, tmp_path, failing, key):
    half, _ = half_done
    moved = tmp_path / "run"
    shutil.copytree(half, moved)
    checkpoint = load_checkpoint(moved / "last.ckpt")
    del checkpoint[key]
    save_atomically(checkpoint, moved / "last.ckpt")
    assert f"last.ckpt cannot be resumed, it has no {key}: name another" in failing(
        "fit", *FIT, *TEACHER, "--out", moved
    )


def unfinish(path, finished=False):
    checkpoint = load_checkpoint(path)
    checkpoint["ckdsnn"]["finished"] = finished
    save_atomically(checkpoint, path)


def test_an_unfinished_teacher_is_refused(half_done, tmp_path, failing):
    half, _ = half_done
    teacher, out = tmp_path / "run" / "teacher", tmp_path / "run"
    shutil.copytree(half / "teacher", teacher)
    unfinish(teacher / "last.ckpt")
    shown = failing("fit", *FIT, *TEACHER, "--out", out)
    assert f"{teacher / 'last.ckpt'} is of an unfinished training" in shown
    assert "go on with it by `ckdsnn teacher`" in shown
    assert not (out / "config.yaml").exists()
    # Whoever wants it as it is says so.
    assert cli.main(["fit", *FIT, *TEACHER, "--out", str(out), "--model.teacher.unfinished", "true"]) == 0


def test_the_best_of_a_finished_training_is_finished(half_done, tmp_path):
    shutil.copytree(half_done[0] / "teacher", tmp_path / "teacher")
    best, last = tmp_path / "teacher" / "best.ckpt", tmp_path / "teacher" / "last.ckpt"
    unfinish(best)
    check_finished(load_checkpoint(best), best)
    unfinish(last)
    with pytest.raises(RunError, match=r"best.ckpt is of an unfinished training"):
        check_finished(load_checkpoint(best), best)


def test_a_number_of_steps_can_be_the_end(tmp_path, capsys):
    command = ["fit", *CE, "--trainer.max_steps", "1", "--out", str(tmp_path)]
    assert cli.main(command) == 0
    assert load_checkpoint(tmp_path / "last.ckpt")["ckdsnn"]["finished"]
    assert cli.main(command) == 0
    assert f"{tmp_path} is finished" in capsys.readouterr().out


def test_a_student_starts_from_given_weights(half_done, tmp_path, failing):
    weights = half_done[0] / "last.ckpt"
    out = tmp_path / "run"
    command = ["fit", *CE, "--model.network.weights", str(weights), "--out", str(out), "--model.optimizer.lr", "1e-30"]
    assert cli.main(command) == 0
    made, given = load_checkpoint(out / "last.ckpt"), load_checkpoint(weights)
    for name, value in given["state_dict"].items():
        if "weight" in name and name.startswith("network."):
            assert torch.equal(made["state_dict"][name], value), name
    missing = ["--model.network.weights", tmp_path / "none.pt"]
    assert "there is no file" in failing("fit", *CE, *missing, "--out", tmp_path / "new")
    wrong = ["--model.network.weights", half_done[0] / "teacher" / "last.ckpt"]
    assert "do not fit the network" in failing("fit", *CE, *wrong, "--out", tmp_path / "new")
    # What is tested are the weights of the checkpoint.
    assert cli.main(["test", *CE, "--model.network.weights", "none.pt", "--out", str(out)]) == 0


def test_what_comes_again_is_not_logged_twice(tmp_path):
    for version, rows in ((0, ["0,4,2.5", "1,9,2.0"]), (1, ["1,9,2.1", "2,14,1.5"])):
        path = tmp_path / f"version_{version}" / "metrics.csv"
        path.parent.mkdir()
        path.write_text("\n".join(["epoch,step,train/loss", *rows]) + "\n")
    run_folder.forget_logs(tmp_path, 12)
    read = [(tmp_path / f"version_{version}" / "metrics.csv").read_text().split() for version in (0, 1)]
    assert read == [["epoch,step,train/loss", "0,4,2.5", "1,9,2.0"], ["epoch,step,train/loss", "1,9,2.1"]]
    run_folder.forget_logs(tmp_path, 9)
    assert "1,9" not in (tmp_path / "version_0" / "metrics.csv").read_text()
    run_folder.forget_logs(tmp_path / "nowhere", 3)
