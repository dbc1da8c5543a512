"""DVS128 Gesture as it is issued: recordings in AEDAT 3.1, with lists of trials and tables of samples."""

import importlib.util
import struct

import numpy as np
import pytest
import torch

from ckdsnn.data import DVSFrames
from ckdsnn.data.events import integrate_by_count, read_events
from event_files import made_events, same, spikingjelly_datasets

HEADER = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"


def packet(kind, content, size=8, overflow=0):
    count = len(content) // size
    return struct.pack("<HHIIIIII", kind, 1, size, 4, overflow, count, count, count) + content


def aedat3_file(made, overflow=0):
    words = np.stack([made.x << 17 | made.y << 2 | made.p << 1 | 1, made.t], axis=1).astype("<u4")
    half = len(words) // 2
    other = packet(0, bytes(16))  # an event of another kind, between
    return (
        HEADER + packet(1, words[:half].tobytes(), 8, overflow) + other + packet(1, words[half:].tobytes(), 8, overflow)
    )


@pytest.mark.parametrize("overflow", [0, 1])
def test_aedat3(tmp_path, overflow):
    made = made_events(height=128, width=128)
    path = tmp_path / "0.aedat"
    path.write_bytes(aedat3_file(made, overflow))
    read = read_events(path)
    same(read, made._replace(t=made.t + overflow * 2**31))
    if importlib.util.find_spec("spikingjelly") is not None:
        theirs = spikingjelly_datasets().load_aedat_v3(path)
        assert all(np.array_equal(getattr(read, name), theirs[name]) for name in "txyp")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (HEADER, "it has no events"),
        (HEADER + bytes(27), "cut short within a packet's header"),
        (HEADER + packet(1, bytes(80))[:-1], "cut short within a packet, or has events of another size"),
        (HEADER + packet(1, bytes(48), size=12), "events of another size"),
        (HEADER + struct.pack("<HHIIIIII", 1, 1, 8, 4, 0, 2**32 - 1, 1, 1), "cut short within a packet"),
    ],
)
def test_files_that_are_no_aedat3(tmp_path, raw, message):
    (tmp_path / "0.aedat").write_bytes(raw)
    with pytest.raises(ValueError, match=rf"0\.aedat cannot be read as events: .*{message}"):
        read_events(tmp_path / "0.aedat")


@pytest.fixture
def root(tmp_path):
    """Two people to train on, one to test on; samples of 1,000 microseconds, the first of class 1 in each."""
    for number in (1, 2, 3):
        name = f"user{number:02}_led"
        (tmp_path / f"{name}.aedat").write_bytes(aedat3_file(made_events(5000, 128, 128, seed=number)))
        rows = [f"{1 + i % 11},{1000 * i},{1000 * i + 900}" for i in range(11)]
        (tmp_path / f"{name}_labels.csv").write_text("\n".join(["class,startTime_usec,endTime_usec", *rows]) + "\n")
    (tmp_path / "trials_to_train.txt").write_text("user01_led.aedat\nuser02_led.aedat\n")
    (tmp_path / "trials_to_test.txt").write_text("user03_led.aedat\n\n")
    return tmp_path


def data(root, **options):
    return DVSFrames(
        str(root), **{"time_steps": 4, "batch_size": 4, "size": None, "validation": 11, "workers": 0} | options
    )


def test_samples_are_what_the_tables_say(root):
    made = data(root)
    made.setup("fit")
    made.setup("test")
    assert made.num_classes == len(made.class_names) == 11
    assert [len(made.arrays(part).targets) for part in ("train", "validation", "test")] == [11, 11, 11]
    assert made.arrays("test").targets.tolist() == [*range(11)]
    whole = read_events(root / "user03_led.aedat")
    expected = [integrate_by_count(whole.between(1000 * i, 1000 * i + 900), 4, "number") for i in range(11)]
    assert torch.equal(made.arrays("test").images, torch.stack(expected))
    assert torch.equal(data(root).load("test").images, torch.stack(expected))  # as they were kept
    assert made.arrays("train").images.sum() + made.arrays("validation").images.sum() == sum(
        len(read_events(root / f"user{n:02}_led.aedat").between(1000 * i, 1000 * i + 900).t)
        for n in (1, 2)
        for i in range(11)
    )


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("trials_to_test.txt", "../user03_led.aedat", "trials_to_test.txt lists '../user03_led.aedat'"),
        ("trials_to_test.txt", "\n", "trials_to_test.txt lists no recordings"),
        ("trials_to_test.txt", "user04_led.aedat", "user04_led_labels.csv is missing"),
        ("user03_led_labels.csv", "class,a,b\n1,2\n", "user03_led_labels.csv has the row '1,2'"),
        ("user03_led_labels.csv", "class,a,b\n12,0,5\n", "user03_led_labels.csv has class 12: expected 1 to 11"),
        (
            "user03_led_labels.csv",
            "class,a,b\n1,9000000,9000001\n",
            "user03_led.aedat from 9000000 to 9000001 us: there are no",
        ),
    ],
)
def test_bad_tables_are_named(root, file, content, message):
    (root / file).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError, RuntimeError), match=message):
        data(root, validation=0).load("test")


def test_a_recording_that_is_a_link_out_of_the_folder(root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "user03_led.aedat"
    (root / "user03_led.aedat").rename(outside)
    (root / "user03_led.aedat").symlink_to(outside)
    with pytest.raises(ValueError, match=r"user03_led\.aedat leads to .*outside.*set follow_symlinks"):
        data(root, validation=0).load("test")
    assert len(data(root, validation=0, follow_symlinks=True).load("test").targets) == 11
