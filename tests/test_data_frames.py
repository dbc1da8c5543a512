"""Folders of recordings, in which frames are made of events once and kept on disk."""

import numpy as np
import pytest
import torch

from ckdsnn.checkpoint import RunError
from ckdsnn.data import DVSFrames, integration
from ckdsnn.data.arrays import read_frames
from ckdsnn.data.events import integrate_by_count, read_events
from ckdsnn.data.integration import Integration
from event_files import bin_file, made_events


@pytest.fixture
def root(tmp_path):
    """N-MNIST as it is issued, but smaller."""
    for part, count in (("Train", 6), ("Test", 3)):
        for digit in "07":
            (tmp_path / part / digit).mkdir(parents=True)
            for number in range(count):
                made = made_events(seed=number + 10 * int(digit) + 100 * len(part))
                (tmp_path / part / digit / f"{number:05}.bin").write_bytes(bin_file(made))
    return tmp_path


def data(root, **options):
    return DVSFrames(
        str(root), **{"time_steps": 4, "batch_size": 4, "size": None, "validation": 4, "workers": 0} | options
    )


def test_recordings_in_train_and_test(root):
    made = data(root)
    made.setup("fit")
    made.setup("test")
    assert made.class_names == ["0", "7"]
    assert [len(made.arrays(part).targets) for part in ("train", "validation", "test")] == [8, 4, 6]
    paths = [root / "Test" / digit / f"{number:05}.bin" for digit in "07" for number in range(3)]
    expected = torch.stack([integrate_by_count(read_events(path), 4, "number") for path in paths])
    assert torch.equal(made.arrays("test").images, expected)
    assert made.arrays("test").targets.tolist() == [0, 0, 0, 1, 1, 1]


def test_frames_are_made_once(root, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(integration, "read_events", lambda *a: calls.append(a) or read_events(*a))
    first = data(root, size=17).load("test").images
    assert len(calls) == 6
    assert torch.equal(data(root, size=17).load("test").images, first)
    assert len(calls) == 6
    kept = sorted((root / ".frames").rglob("*.npz"))
    assert len(kept) == 6
    kept[0].write_bytes(kept[0].read_bytes()[:-9])  # damaged
    assert torch.equal(data(root, size=17).load("test").images, first)
    assert len(calls) == 7
    # Other settings, another recording of that name: made anew.
    for options in (
        {"size": 16},
        {"split_by": "time"},
        {"duration": 1000},
        {"sensor_size": (40, 34)},
        {"time_steps": 5},
    ):
        before = len(calls)
        data(root, **{"size": 17} | options).load("test")
        assert len(calls) == before + 6, options
    (root / "Test" / "0" / "00000.bin").write_bytes(bin_file(made_events(seed=99)))
    before = len(calls)
    assert not torch.equal(data(root, size=17).load("test").images[0], first[0])
    assert len(calls) == before + 1
    assert not list(root.rglob("*.tmp"))
    assert not (root / "elsewhere").exists()
    data(root, cache=str(root / "elsewhere")).load("test")
    assert list((root / "elsewhere").rglob("*.npz"))
    assert capsys.readouterr().out == ""


def test_counts_above_a_byte_and_averages_are_kept_exactly(tmp_path):
    many = np.zeros(1000, int)
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(2):
            np.savez(tmp_path / name / f"{number}.npz", t=np.arange(1000), x=many, y=many, p=many)
    for size in (None, 3):
        options = {"size": size, "sensor_size": (7, 7), "validation": 0, "time_steps": 3}
        first, again = (data(tmp_path, **options).load("train").images for _ in range(2))
        assert torch.equal(first, again)
        assert first.max() == (334 if size is None else torch.tensor(334 / 9))


def test_a_folder_that_cannot_be_written(root, capsys):
    (root / "cache").write_text("a file")
    frames = data(root, cache=str(root / "cache")).load("test").images
    assert torch.equal(frames, data(root, cache=str(root / "other")).load("test").images)
    assert capsys.readouterr().out.count("note: frames are made anew in every run: ") == 1


def test_workers_make_the_same(root):
    for part in ("Train", "Test"):
        for number in range(40):
            (root / part / "7" / f"{number:05}.bin").write_bytes(bin_file(made_events(seed=number)))
    alone, together = (data(root, workers=n, cache=str(root / f".{n}")).load("test").images for n in (0, 2))
    assert torch.equal(alone, together)
    (root / "Test" / "7" / "00020.bin").write_bytes(b"123")
    with pytest.raises(RunError, match=r"^\S+Test/7/00020\.bin cannot be read as events: 3 bytes"):
        data(root, workers=2).load("test")


def test_folders_that_are_no_classes(root):
    (root / "extract").mkdir()
    with pytest.raises(ValueError, match="has the folders Test, Train, extract: expected train and test alone"):
        data(root)
    (root / "extract").rmdir()
    (root / "Test" / "7").rename(root / "Test" / "8")
    with pytest.raises(ValueError, match=r"train and test differ in their classes \(7, 8\)"):
        data(root)
    (root / "Test").rename(root / "else")
    with pytest.raises(ValueError, match="has the folders Train, else: expected train and test alone"):
        data(root)
    (root / "Train").rename(root / "ibmGestureTrain")
    with pytest.raises(ValueError, match="a folder for each person, not for each class: move the recordings"):
        data(root)
    with pytest.raises(FileNotFoundError, match="nowhere is missing: recordings are expected in"):
        data(root / "nowhere")
    for part in ("train", "test"):
        (root / "x" / part / "0").mkdir(parents=True)
    with pytest.raises(ValueError, match="class 0 needs at least 1 recording"):
        data(root / "x", validation=0).setup("fit")


def test_integration_names_its_settings():
    assert Integration(10, 48).name == f"frames_10_split_by_number_size_48_v{integration.FORM}"
    assert Integration(4, None, "time", 500, (34, 35)).name == f"frames_4_of_500_us_sensor_34x35_v{integration.FORM}"


@pytest.fixture
def recordings(tmp_path):
    """CIFAR10-DVS as somebody has integrated it, but smaller."""
    rng = np.random.default_rng(0)
    for name in ("airplane", "bird"):
        (tmp_path / name).mkdir()
        for number in range(10):
            frames = rng.integers(0, 5, (4, 2, 16, 16)).astype(np.uint8)
            if number % 2:
                np.save(tmp_path / name / f"{number}.npy", frames)
            else:
                np.savez(tmp_path / name / f"{number}.npz", frames=frames)
    return tmp_path


def test_recordings_become_time_first_batches(recordings):
    made = data(recordings, test=0.2, size=8)
    made.setup("fit")
    made.setup("test")
    assert [len(made.arrays(part).targets) for part in ("train", "validation", "test")] == [12, 4, 4]
    batch = next(iter(made.train_dataloader()))
    assert batch.images.shape == (4, 4, 2, 8, 8)
    counts = read_frames(recordings / "bird" / "9.npy", 4)
    torch.testing.assert_close(made.arrays("test").images[-1], counts.reshape(4, 2, 8, 2, 8, 2).mean((3, 5)))


def test_bad_recordings(recordings):
    with pytest.raises(ValueError, match=r"holds an array \[4, 2, 16, 16\], expected \[T=10, 2, H, W\]"):
        data(recordings, time_steps=10).setup("fit")
    np.save(recordings / "bird" / "0.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"0\.npy cannot be read as frames"):
        data(recordings).setup("fit")
    for path in [*(recordings / "bird").iterdir()][1:]:
        path.unlink()
    with pytest.raises(ValueError, match=r"class bird needs at least 2 recording\(s\) .*found 1"):
        data(recordings).setup("fit")
