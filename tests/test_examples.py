"""The examples run as they are printed, on tiny data, and say what they take and what is missing."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ckdsnn.losses import METHODS
from no_host_wait import NoHostWait

FOLDER = Path(__file__).resolve().parent.parent / "examples"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_these_are_the_examples():
    assert NAMES == ["cifar_single_file", "convert_spikingjelly", "new_method"]


@pytest.fixture
def methods(monkeypatch):
    """What an example registers is gone afterwards."""
    before = dict(METHODS)
    yield METHODS
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.parametrize("name", NAMES)
def test_help(name, capsys, methods):
    module = load(name)
    with pytest.raises(SystemExit) as stopped:
        module.main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert f"python examples/{name}.py" in said
    assert "--seed" in said


# --- cifar_single_file.py

TINY = ["--device", "cpu", "--batch", "20", "--width", "4", "--steps", "2"]


@pytest.fixture(scope="module")
def cifar():
    return load("cifar_single_file")


def test_cifar_is_one_file_that_needs_torch_and_the_kernels_alone():
    text = (FOLDER / "cifar_single_file.py").read_text()
    assert text.count("\n") <= 150
    assert "lightning" not in text.lower()
    assert "ckdsnn" not in text


def test_cifar_learns_colours(cifar, capsys):
    accuracy = cifar.main(["--fake", "--samples", "40", "--epochs", "8", "--lr", "0.2", *TINY])
    lines = capsys.readouterr().out.splitlines()
    losses, accuracies = ([float(line.split()[at]) for line in lines[:-1]] for at in (3, 5))
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.15
    assert lines[-1] == f"test accuracy {accuracy:.4f}"
    assert accuracies[-1] > 0.2


def test_cifar_step_does_not_wait_for_the_device(cifar):
    """What `--graph` captures: augmentation, forward and backward."""
    model = cifar.SpikingResNet(4, 2)
    images, chosen = torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.arange(4)
    with NoHostWait(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        model(cifar.augmented(images[chosen])).sum().backward()


def test_cifar_augmentation_shifts_and_flips(cifar):
    torch.manual_seed(0)
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[0, 0, 16, 10], image[0, 1, 16, 10] = 200, 100  # one pixel, of one colour
    out = cifar.augmented(image.expand(400, -1, -1, -1))
    assert out.shape == (400, 3, 32, 32)
    assert out.dtype == torch.uint8
    sample, channel, rows, columns = out.nonzero().unbind(1)
    assert torch.equal(sample, torch.arange(400).repeat_interleave(2))
    assert torch.equal(channel, torch.tensor([0, 1]).repeat(400))
    assert torch.equal(out[out > 0], torch.tensor([200, 100], dtype=torch.uint8).repeat(400))
    assert set(rows.tolist()) == set(range(12, 21))
    assert set(columns.tolist()) == {*range(6, 15), *range(17, 26)}  # and 31 - those


def official(pixels, labels):
    """What NumPy writes with protocol 2 in Python 2, as in the official files: text in 8-bit strings."""
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(M"
    array += len(pixels).to_bytes(2, "little") + b"M\x00\x0ctcnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNN"
    array += (
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + pixels.size.to_bytes(4, "little") + pixels.tobytes() + b"tb"
    )
    values = b"(" + b"".join(b"K" + bytes([label]) for label in labels) + b"l"
    return b"\x80\x02(U\x04data" + array + b"U\x06labels" + values + b"d."


def write(root, count, labels=None):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    rng, files = np.random.default_rng(0), []
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        wanted = [i % 10 for i in range(count)] if labels is None else labels
        (folder / name).write_bytes(official(pixels, wanted))
        files.append((pixels, wanted))
    return folder, files


def test_cifar_reads_the_official_files(cifar, tmp_path, capsys):
    folder, files = write(tmp_path, 10)
    assert np.array_equal(pickle.loads((folder / "data_batch_2").read_bytes(), encoding="bytes")[b"data"], files[1][0])
    for name, (pixels, labels) in zip(sorted(path.name for path in folder.iterdir()), files, strict=True):
        images, targets = cifar.read(folder / name)
        assert torch.equal(images, torch.from_numpy(pixels).view(-1, 3, 32, 32))
        assert targets.tolist() == labels
    cifar.main(["--root", str(tmp_path), "--epochs", "1", *TINY])
    assert "test accuracy" in capsys.readouterr().out
    # Written again by NumPy 2, whose array's module has another name.
    content = (folder / "data_batch_2").read_bytes()
    (folder / "data_batch_2").write_bytes(content.replace(b"numpy.core.", b"numpy._core."))
    assert torch.equal(cifar.read(folder / "data_batch_2")[0].view(10, -1), torch.from_numpy(files[1][0]))


class Trap:
    def __reduce__(self):
        return print, ("the trap has sprung",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"data_batch_1 is no file of CIFAR-10 .*No such file.*: mend --root .see --help., or give --fake"),
        (pickle.dumps({"data": Trap()}, protocol=2), r"it asks for \w+\.print"),
        (b"not a pickle", "is no file of CIFAR-10"),
        (official(np.zeros((2, 3072), np.uint8), [3, 10]), "is no file of CIFAR-10"),
        (official(np.zeros((2, 100), np.uint8), [3, 4]), "is no file of CIFAR-10"),
    ],
    ids=["missing", "trap", "text", "label", "size"],
)
def test_cifar_refuses_other_files(cifar, tmp_path, capsys, content, message):
    folder, _ = write(tmp_path, 2)
    (folder / "data_batch_1").unlink() if content is None else (folder / "data_batch_1").write_bytes(content)
    with pytest.raises(SystemExit, match=message):
        cifar.main(["--root", str(tmp_path), *TINY])
    assert "trap" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--graph"], "--graph needs an NVIDIA GPU, and --device is cpu"),
        (["--samples", "0"], "--samples 0 must be above 0 and finite; the default is 50000"),
        (["--steps", "0"], "--steps 0 must be above 0 and finite; the default is 4"),
        (["--width", "-1"], "--width -1 must be above 0"),
        (["--epochs", "0"], "--epochs 0 must be above 0"),
        (["--batch", "0"], "--batch 0 must be above 0"),
        (["--lr", "nan"], "--lr nan must be above 0 and finite; the default is 0.1"),
        (["--lr", "inf"], "--lr inf must be above 0"),
        (["--samples", "19"], "--batch 20 must lie in [1, 19], the number of training images"),
    ],
)
def test_cifar_refuses_options(cifar, capsys, options, message):
    with pytest.raises(SystemExit):
        cifar.main(["--fake", *TINY, *options])
    assert message in capsys.readouterr().err


# --- convert_spikingjelly.py


def test_conversion_keeps_spikes_and_losses(capsys):
    pytest.importorskip("spikingjelly", reason="spikingjelly is not installed (make test installs it)")
    options = ["--device", "cpu", "--updates", "6", "--batch", "16", "--width", "4"]
    before, after = load("convert_spikingjelly").main(options)
    assert len(before) == len(after) == 6
    assert before == pytest.approx(after, rel=1e-5)
    assert before[0] != before[-1]
    said = capsys.readouterr().out
    assert "4 converted, 0 left alone" in said
    assert "spikes of the first neuron equal: True, rate 0." in said
    assert "rate 0.000" not in said


def test_conversion_says_what_to_install():
    script = FOLDER / "convert_spikingjelly.py"
    code = f"import runpy, sys; sys.modules['spikingjelly'] = None; sys.argv = ['x']; runpy.run_path({str(script)!r}, "
    done = subprocess.run([sys.executable, "-c", code + "run_name='__main__')"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install spikingjelly" in done.stderr
    assert "Traceback" not in done.stderr


# --- new_method.py


def test_new_method_trains_on_digits(methods, capsys):
    module = load("new_method")
    found = module.main(["--epochs", "2", "--samples", "60", "--widths", "4", "6", "8"])
    assert list(found) == ["teacher", "ce", "kd", "rkd"]
    assert found["rkd"]["train/rkd"] > 0
    assert found["rkd"]["train/loss"] == pytest.approx(found["rkd"]["train/ce"] + found["rkd"]["train/rkd"], rel=1e-5)
    assert found["rkd"]["train/ce"] != found["ce"]["train/ce"]
    assert methods["rkd"] is module.RelationalDistillation
    assert "rkd val/accuracy" in capsys.readouterr().out


def test_new_methods_distances(methods):
    """In units of their mean, over all pairs; a sample's distance to itself has no slope."""
    module = load("new_method")
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    found = module.distances(points[:, :, None, None].expand(-1, -1, 2, 2))
    # Distances 5, 0, 5 of three pairs, each twice, and three zeros: 20/9 on average.
    expected = torch.tensor([[0.0, 2.25, 0.0], [2.25, 0.0, 2.25], [0.0, 2.25, 0.0]])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.square().sum().backward()
    assert points.grad.isfinite().all()
