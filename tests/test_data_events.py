"""Recordings of event cameras: read from tiny files of each format, integrated as SpikingJelly does.

Set CKD_EVENT_DATA to a folder with recordings (`.bin` of N-MNIST, `.aedat` of a DVS128, `.aedat4`), at any depth, for
the comparison with SpikingJelly on those, too.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ckdsnn.data.events import Events, integrate_by_count, integrate_by_duration, read_events
from event_files import aedat2_file, bin_file, made_events, same, spikingjelly_datasets

REAL = os.environ.get("CKD_EVENT_DATA")


def test_nmnist(tmp_path):
    path = tmp_path / "0.bin"
    path.write_bytes(bin_file(made_events(start=8_200_000)))  # near the end of 23 bits
    same(read_events(path), made_events(start=8_200_000))
    wide = made_events(height=180, width=239)
    path.write_bytes(bin_file(wide))
    with pytest.raises(
        ValueError, match=r"0\.bin .*x from \d+ to \d+ and y from .* sensor of 34 x 34 pixels: set sensor_size"
    ):
        read_events(path)
    same(read_events(path, (180, 239)), wide)


def test_nmnist_counts_on_where_its_clock_wraps(tmp_path):
    path = tmp_path / "0.bin"
    path.write_bytes(bytes([1, 2, 128, 0, 9, 0, 240, 0, 0, 0, 3, 4, 0, 0, 7]))
    read = read_events(path)
    assert [part.tolist() for part in read[:4]] == [[9, 8192 + 7], [1, 3], [2, 4], [True, False]]


def test_cifar10_dvs(tmp_path):
    path, made = tmp_path / "0.aedat", made_events(height=128, width=128)
    path.write_bytes(aedat2_file(made))
    same(read_events(path), made)
    signal = np.array([[1 << 15, 5]], dtype=">u4").tobytes()  # from outside, not of a pixel
    path.write_bytes(aedat2_file(made) + signal)
    same(read_events(path), made)
    comment = ord("#") << 24  # as first byte of the first event; no text follows
    path.write_bytes(b"#!AER-DAT2.0\r\n" + np.array([[comment, 5]], ">u4").tobytes())
    with pytest.raises(ValueError, match="addresses that a DVS128 has not"):
        read_events(path)


def test_cifar10_dvs_as_spikingjelly_reads_it(tmp_path):
    spikingjelly = spikingjelly_datasets()
    path = tmp_path / "0.aedat"
    path.write_bytes(aedat2_file(made_events(height=128, width=128)))
    read, theirs = read_events(path), spikingjelly._load_origin_data(path)
    for name in "txyp":
        assert np.array_equal(getattr(read, name), theirs[name])


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.int32])
def test_what_spikingjelly_makes_of_recordings(tmp_path, dtype):
    made = made_events()
    small = {name: getattr(made, name).astype(dtype) for name in "xyp"}
    np.savez(tmp_path / "0.npz", t=made.t, **small)
    same(read_events(tmp_path / "0.npz", (34, 34)), made)
    with pytest.raises(ValueError, match=r"0\.npz .*does not say how large the sensor is: set sensor_size"):
        read_events(tmp_path / "0.npz")


DECODER = """
import os, time
import numpy as np

class Decoder:
    def __init__(self, path):
        self.raw = open(path, "rb").read()
        if self.raw == b"abort":
            os.abort()
        if self.raw == b"refuse":
            raise ValueError("not an AEDAT file")
        if self.raw == b"bomb":
            bytearray(3 * 2**30)
        if self.raw == b"sleep":
            time.sleep(60)
    def id_to_stream(self):
        types = {0: "imus", 2: "events", 5: "events"} if self.raw != b"none" else {0: "imus"}
        height = 240 if self.raw != b"wide" else 60000
        return {number: {"type": kind, "height": height, "width": 320} for number, kind in types.items()}
    def __iter__(self):
        part = np.zeros(2, [("t", "<u8"), ("x", "<u2"), ("y", "<u2"), ("on", "?")])
        part["t"], part["x"], part["on"] = [1605537494298340, 1605537494298341], [1, 319], [True, False]
        yield {"stream_id": 0, "imus": None}
        yield {"stream_id": 2, "events": part}
        yield {"stream_id": 5, "events": part}
        yield {"stream_id": 2, "events": part}
"""


@pytest.fixture
def decoder(tmp_path, monkeypatch):
    """A folder with a module that stands for the package aedat."""
    monkeypatch.delitem(sys.modules, "aedat", raising=False)
    (tmp_path / "aedat.py").write_text(DECODER)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_aedat4(decoder):
    path = decoder / "0.aedat4"
    path.write_bytes(b"events")
    t = [1605537494298340, 1605537494298341] * 2
    same(read_events(path), Events(t, [1, 319] * 2, [0] * 4, [True, False] * 2, 240, 320))


def test_aedat4_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "0.aedat4").write_bytes(b"events")
    monkeypatch.setitem(sys.modules, "aedat", None)
    with pytest.raises(ImportError, match=r"0\.aedat4: .*by the package aedat: pip install 'ckd-kernels\[events\]'"):
        read_events(tmp_path / "0.aedat4")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"none", "it has no stream of events"),
        (b"abort", "its decoder breaks down"),
        (b"refuse", "ValueError: not an AEDAT file"),
        (b"bomb", "MemoryError"),
        (b"sleep", "its decoder does not come to an end"),
        (b"wide", "it says that its sensor has 60000 x 320 pixels"),
    ],
)
def test_aedat4_that_breaks_its_decoder(decoder, monkeypatch, raw, message):
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **o: run(*a, **o | {"timeout": 1 if raw == b"sleep" else 60}))
    (decoder / "0.aedat4").write_bytes(raw)
    with pytest.raises(ValueError, match=rf"0\.aedat4 cannot be read as events: {message}; correct or remove it"):
        read_events(decoder / "0.aedat4")


ONE = bin_file(made_events(1))
BAD = {
    "a.bin": (ONE + b"1", "6 bytes are no whole number of events of 5 bytes: it is cut short"),
    "b.bin": (b"", "it has no events"),
    "c.aedat": (b"#!AER-DAT3.1\r\n#Format: RAW\r\n", "its header has no end"),
    "d.aedat": (ONE, "its header is neither that of AEDAT 2 nor that of AEDAT 3.1"),
    "e.aedat": (aedat2_file(made_events(2))[:-3], "no whole number of events of 8 bytes"),
    "f.aedat": (aedat2_file(made_events(2), b"#!AER-DAT2.0\r\n# AEChip: eu.seebetter.DAVIS240C\r\n"), "another camera"),
    "g.aedat": (b"#!AER-DAT2.0\r\n", "it has no events"),
    "h.txt": (ONE, "no recording of events: expected one of .aedat, .aedat4, .bin, .npz"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_no_recordings(tmp_path, name):
    raw, message = BAD[name]
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=rf"{name} (cannot be read as events: .*|is ){message}"):
        read_events(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.zeros(2, int)}, "t, x, y and p have 200, 2, 200 and 200 elements"),
        ({"x": np.zeros((200, 1), int)}, r"its array x is int64 \[200, 1\], expected integers \[N\]"),
        ({"t": np.zeros(200)}, r"its array t is float64 \[200\], expected integers"),
        ({"y": np.full(200, -1)}, "y from -1 to -1"),
        ({"x": np.full(200, 34)}, "x from 34 to 34 .* outside of a sensor of 34 x 34 pixels"),
        ({"y": np.full(200, 34)}, "y from 34 to 34, outside"),
        ({"p": np.full(200, None)}, "object, and only bool"),
    ],
)
def test_arrays_that_are_no_events(tmp_path, changes, message):
    made = made_events()._asdict()
    np.savez(tmp_path / "0.npz", **{name: made[name] for name in "txyp"} | changes)
    with pytest.raises(ValueError, match=rf"0\.npz cannot be read as events: .*{message}.*; correct or remove it"):
        read_events(tmp_path / "0.npz", (34, 34))


def test_no_change_to_a_recording_does_more_than_refuse_it(tmp_path):
    generator = random.Random(0)
    whole = {"0.bin": bin_file(made_events(9)), "0.aedat": aedat2_file(made_events(9, 128, 128))}
    outcomes = []
    for number in range(400):
        name = ("0.bin", "0.aedat")[number % 2]
        raw = bytearray(whole[name])
        for _ in range(generator.choice((1, 3))):
            raw[generator.randrange(len(raw))] = generator.randrange(256)
        (tmp_path / name).write_bytes(raw[: generator.choice((None, None, -5, -8, 20))])
        try:
            read = read_events(tmp_path / name)
            frames = integrate_by_count(read, 3, "time"), integrate_by_duration(read, 1, 3)
            assert all(made.shape == (3, 2, read.height, read.width) for made in frames)
            outcomes.append(True)
        except ValueError:
            outcomes.append(False)
    assert 40 < sum(outcomes) < 360


def test_events_between_two_times():
    made = made_events(4)._replace(t=np.array([5, 6, 7, 8]))
    assert made.between(6, 8).t.tolist() == [6, 7]
    assert made.between(6, 8).x.tolist() == made.x[1:3].tolist()


def test_counts_by_hand():
    made = Events(
        *(np.array(v) for v in ([10, 11, 12, 20, 30], [0, 1, 1, 0, 2], [0, 0, 0, 1, 1], [1, 0, 0, 1, 1])), 2, 3
    )
    by_number = integrate_by_count(made, 2, "number")
    assert by_number.dtype == torch.float32
    assert by_number[0].tolist() == [[[0, 1, 0], [0, 0, 0]], [[1, 0, 0], [0, 0, 0]]]
    assert by_number[1].tolist() == [[[0, 1, 0], [0, 0, 0]], [[0, 0, 0], [1, 0, 1]]]
    assert integrate_by_count(made, 2, "time").sum((1, 2, 3)).tolist() == [3, 2]
    assert integrate_by_count(made, 7, "time").sum((1, 2, 3)).tolist() == [2, 1, 0, 0, 0, 1, 1]  # with empty frames
    assert integrate_by_duration(made, 5, 6).sum((1, 2, 3)).tolist() == [3, 0, 1, 1, 0, 0]
    assert integrate_by_duration(made, 5, 3).sum((1, 2, 3)).tolist() == [3, 0, 1]  # no rest in the last
    assert integrate_by_duration(made, 100).sum((1, 2, 3)).tolist() == [5]
    with pytest.raises(ValueError, match=r"frames of 1 microseconds would be 1,000,000,000: give frames, or a longer"):
        integrate_by_duration(made._replace(t=np.array([0, 1, 2, 3, 10**9])), 1)


def as_spikingjelly(made, frames, durations=(1000, 4999, 20_000, 10**9)):
    spikingjelly = spikingjelly_datasets()
    theirs, size = made._asdict(), (made.height, made.width)
    for split_by in ("number", "time"):
        expected = spikingjelly.integrate_events_by_fixed_frames_number(theirs, split_by, frames, *size)
        assert torch.equal(integrate_by_count(made, frames, split_by), torch.from_numpy(expected).float())
    for duration in durations:
        expected = torch.from_numpy(spikingjelly.integrate_events_by_fixed_duration(theirs, duration, *size)).float()
        assert torch.equal(integrate_by_duration(made, duration), expected)
        padded = torch.zeros(frames, *expected.shape[1:])
        kept = expected[:frames] if len(expected) > frames else expected
        padded[: len(kept)] = kept
        assert torch.equal(integrate_by_duration(made, duration, frames), padded)


@pytest.mark.parametrize("count", [100, 101, 999, 2000])
@pytest.mark.parametrize("frames", [1, 4, 10])
def test_frames_are_those_of_spikingjelly(count, frames):
    as_spikingjelly(made_events(count, height=20, width=30, seed=count, start=10**6), frames)


@pytest.mark.skipif(REAL is None, reason="CKD_EVENT_DATA names no folder of recordings")
def test_real_recordings_are_those_of_spikingjelly():
    spikingjelly = spikingjelly_datasets()
    found = [path for suffix in ("bin", "aedat", "aedat4") for path in sorted(Path(REAL).rglob(f"*.{suffix}"))]
    assert found
    for path in found:
        if path.suffix == ".aedat4":
            pytest.importorskip("aedat")
        made = read_events(path)
        if path.suffix == ".bin":
            theirs = spikingjelly.load_ATIS_bin(path)
        elif path.suffix == ".aedat":
            theirs = spikingjelly._load_origin_data(path)
        else:
            theirs = made._asdict()
        assert all(np.array_equal(getattr(made, name), theirs[name]) for name in "txyp"), path
        as_spikingjelly(made, 10, durations=(200_000, 10**9))
