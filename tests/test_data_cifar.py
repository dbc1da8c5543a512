"""CIFAR from files in the official layout, and files that are not."""

import codecs
import os
import pickle
import random
import time
import tracemalloc

import numpy as np
import pytest
import torch

from ckdsnn.data import CIFAR, cifar, pickled
from ckdsnn.data.cifar import LAYOUTS, read_batch
from ckdsnn.data.split import split_off

TRAIN = LAYOUTS["cifar10"].train


def write(path, count, seed, labels=None, key=b"labels", protocol=2, **changes):
    rng = np.random.default_rng(seed)
    labels = [i % 10 for i in range(count)] if labels is None else labels
    content = {b"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8), key: labels, **changes}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return content


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate((*TRAIN, "test_batch")):
        write(tmp_path / "cifar-10-batches-py" / name, 40, number)
    return tmp_path


def official(pixels, labels, label_key=b"labels"):
    """The bytes that Python 2's cPickle wrote in the official files: protocol 2, all text in 8-bit strings."""

    def text(value):
        return b"U" + bytes([len(value)]) + value  # SHORT_BINSTRING

    def number(value):
        return b"K" + bytes([value]) if value < 256 else b"M" + value.to_bytes(2, "little")

    dtype = b"cnumpy\ndtype\nq\x05" + text(b"u1") + b"K\x00K\x01\x87Rq\x06(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xff"
    dtype += b"J\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85" + text(b"b") + b"\x87Rq\x04"
    array += b"(K\x01" + b"".join(map(number, pixels.shape)) + b"\x86" + dtype + b"\x89"
    array += b"T" + pixels.size.to_bytes(4, "little") + pixels.tobytes() + b"tb"
    names = b"]q\x07(" + b"".join(text(b"%d.png" % i) + b"q\x08" for i in range(len(pixels))) + b"e"
    values = b"]q\x09(" + b"".join(number(label) for label in labels) + b"e"
    entries = {b"data": array, label_key: values, b"batch_label": text(b"training batch 1 of 5"), b"filenames": names}
    return b"\x80\x02}q\x01(" + b"".join(text(key) + entry for key, entry in entries.items()) + b"u."


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
LABELS = [i % 10 for i in range(20)]


def read_only(array):
    array.setflags(write=False)
    return array


REWRITTEN = {
    "str": {"data": PIXELS, "labels": LABELS, "filenames": ["a.png"] * 20},
    "bytes": {b"data": PIXELS, b"labels": LABELS, b"filenames": [b"a.png", b""], b"batch_label": b""},
    "numpy numbers": {"data": PIXELS, "labels": [np.int64(label) for label in LABELS], "n": [np.float32(0.5), True]},
    "label array": {b"data": PIXELS, b"labels": np.array(LABELS)},
    "big endian": {b"data": PIXELS, b"labels": np.array(LABELS, dtype=">i2")},
    "columns first": {"data": np.asfortranarray(PIXELS), "labels": tuple(LABELS)},
    "read only": {"data": read_only(PIXELS.copy()), "labels": LABELS},
    "not contiguous": {"data": np.repeat(PIXELS, 2, axis=1)[:, ::2], "labels": LABELS},
}


def test_official_bytes_are_a_pickle():
    content = pickle.loads(official(PIXELS, LABELS), encoding="latin1")
    assert np.array_equal(content["data"], PIXELS)
    assert content["labels"] == LABELS


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("content", REWRITTEN)
def test_files_that_python_3_has_written_again(tmp_path, content, protocol):
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps(REWRITTEN[content], protocol=protocol))
    images, targets = read_batch(path, "labels", 10)
    assert images.dtype == torch.uint8
    assert torch.equal(images, torch.from_numpy(PIXELS).reshape(20, 3, 32, 32))
    assert targets.dtype == torch.int64
    assert targets.tolist() == LABELS


@pytest.mark.parametrize("label_key", ["labels", "fine_labels"])
def test_official_files(tmp_path, label_key):
    (tmp_path / "batch").write_bytes(official(PIXELS, LABELS, label_key.encode()))
    images, targets = read_batch(tmp_path / "batch", label_key, 100)
    assert torch.equal(images.flatten(1), torch.from_numpy(PIXELS))
    assert targets.tolist() == LABELS


def as_official(root):
    for path in (root / "cifar-10-batches-py").iterdir():
        content = pickle.loads(path.read_bytes())
        path.write_bytes(pickle.dumps({k.decode(): v for k, v in content.items()}, protocol=2))


def test_validation_is_held_out_of_training(root, capsys):
    as_official(root)
    data = CIFAR(str(root), validation=50, batch_size=10)
    data.setup("fit")
    data.setup("test")
    train, validation = data.arrays("train"), data.arrays("validation")
    assert (len(train.targets), len(validation.targets), len(data.arrays("test").targets)) == (150, 50, 40)
    assert torch.bincount(validation.targets).tolist() == [5] * 10
    rows = {tuple(image.flatten()[:20].tolist()) for image in (*train.images, *validation.images)}
    assert len(rows) == 200  # no image in both
    other = CIFAR(str(root), validation=50, batch_size=10, seed=7)
    other.setup("fit")
    assert torch.equal(other.arrays("validation").images, validation.images)
    assert "note: not the official files in" in capsys.readouterr().out


def test_a_process_decodes_a_data_set_once(root, monkeypatch, capsys):
    """As the runs of a sweep need it, one after another; a file that has changed is read again."""
    as_official(root)
    read = []
    monkeypatch.setattr(cifar, "read_batch", lambda path, *rest: read.append(path.name) or read_batch(path, *rest))
    for _ in range(2):  # with the note in the log of each
        images = CIFAR(str(root), validation=0, batch_size=10).load("train").images
        assert "note: not the official files in" in capsys.readouterr().out
    names = [f"data_batch_{number}" for number in range(1, 6)]
    assert read == names
    path = root / "cifar-10-batches-py" / "data_batch_1"
    content = pickle.loads(path.read_bytes())
    size = path.stat().st_size
    path.write_bytes(pickle.dumps({**content, "data": content["data"][::-1].copy()}, protocol=2))
    os.utime(path, ns=(1, 1))
    assert path.stat().st_size == size
    changed = CIFAR(str(root), validation=0).load("train").images
    assert read == names * 2
    assert torch.equal(changed, torch.cat([images[:40].flip(0), images[40:]]))


def test_a_part_of_the_training_samples(root):
    as_official(root)
    options = {"validation": 50, "batch_size": 10}
    (whole, part), (validation, same) = (
        [data.load(which) for data in (CIFAR(str(root), **options), CIFAR(str(root), train_samples=60, **options))]
        for which in ("train", "validation")
    )
    assert torch.equal(validation.images, same.images)
    assert torch.bincount(part.targets).tolist() == [6] * 10
    rows = {tuple(image.flatten()[:20].tolist()) for image in whole.images}
    assert {tuple(image.flatten()[:20].tolist()) for image in part.images} < rows
    with pytest.raises(ValueError, match="train_samples is 151, but there are 150 to train on"):
        CIFAR(str(root), train_samples=151, **options).load("train")
    with pytest.raises(ValueError, match="train_samples must be at least 1, got 0"):
        CIFAR(str(root), train_samples=0, **options)


def test_without_validation_there_is_no_loader_for_it(root):
    as_official(root)
    data = CIFAR(str(root), validation=0, batch_size=10)
    data.setup("fit")
    assert len(data.arrays("train").targets) == 200
    assert data.val_dataloader() == []
    assert not data.has_validation


class Calls:
    """Pickled, a call of `function`."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def test_code_in_a_file_does_not_run(root, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = root / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(pickle.dumps({"data": Calls(os.mkdir, "owned"), "labels": []}))
    with pytest.raises(ValueError, match=r"data_batch_3 .* cannot be read: it wants to call posix.mkdir"):
        read_batch(path, "labels", 10)
    assert not (tmp_path / "owned").exists()


FORGED = (3, "|", None, None, None, -1, -1, 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        # An object dtype whose flags say that its elements are no references: numpy would take bytes for pointers.
        (Calls(np.dtype, "O8", False, True, state=(3, "|", None, None, None, -1, -1, 63)), "not of plain numbers"),
        (Calls(np.dtype, "u1", False, True, state=(3, "|", None, None, None, -1, -1, 63)), "parts of its own"),
        (Calls(np.dtype, "u1", False, True, state=(3, "|", (np.dtype("O"), ()), None, None, 1, 1, 0)), "plain numbers"),
        (Calls(np.dtype, "V9", False, True, state=FORGED), "not of plain numbers"),
        (Calls(np.dtype, ["u1"]), "where a name should be"),
        (Calls(np.ndarray, (20, 3072), "u1"), "calls something that is not a function"),  # uninitialised memory
        (np.array([print, None], dtype=object), "not of plain numbers"),
        (np.zeros((20, 3072), np.complex64), "not of plain numbers"),
        (np.zeros(20, "u1, f4"), "not of plain numbers|parts of its own"),
        (
            Calls(np.empty(0).__reduce__()[0], np.ndarray, (0,), b"b", state=(1, (9, 9), np.dtype("u1"), False, b"")),
            "another size than its content",
        ),
        (
            Calls(
                np.empty(0).__reduce__()[0], np.ndarray, (0,), b"b", state=(1, (2, 2), np.dtype("u1"), False, b"12345")
            ),
            "another size than its content",
        ),
        (
            Calls(np.empty(0).__reduce__()[0], np.ndarray, (0,), b"b", state=(1, (-1, 1), np.dtype("u1"), False, b"a")),
            "shape",
        ),
        (Calls(np.empty(0).__reduce__()[0], list, (0,), b"b"), "wants to call builtins.list"),
        (Calls(bytes, 10**12), "makes bytes of something"),
        (Calls(codecs.encode, "data", "rot13"), "encodes something other"),
    ],
)
def test_types_and_arrays_are_not_made_by_call(tmp_path, data, message):
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({"data": data, "labels": LABELS}))
    with pytest.raises(ValueError, match=rf"batch \(\d+ bytes\) cannot be read: .*({message}).*: extract the official"):
        read_batch(path, "labels", 10)


def test_a_file_of_very_many_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(pickled, "MOST_OPCODES", 100)
    (tmp_path / "batch").write_bytes(pickle.dumps(REWRITTEN["numpy numbers"]))
    with pytest.raises(ValueError, match=r"batch \(\d+ bytes\) cannot be read: it has more than 100 parts"):
        read_batch(tmp_path / "batch", "labels", 10)


def test_buffers_outside_of_the_file(tmp_path):
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps(REWRITTEN["str"], protocol=5, buffer_callback=[].append))
    with pytest.raises(ValueError, match=r"batch .*its arrays were written to buffers elsewhere"):
        read_batch(path, "labels", 10)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80\x02]q\x01" + b"h\x01a" * 5 + b".",  # a list in itself
        b"(" * 60_000 + b"t" * 60_000 + b".",  # tuples in tuples
        b"]" * 60_000 + b"a" * 59_999 + b".",  # lists in lists
        b"}(" + b"(" * 60_000 + b"t" * 60_000 + b"Ntus.",  # as a key
        b"\x8e" + (2**62).to_bytes(8, "little") + b"abc.",  # promises more bytes than there are
        b"\x8b" + (2**31 - 1).to_bytes(4, "little") + b"1.",
        b"r\xff\xff\xff\x7f.",
        b"N" * 200_000,
        b"X" + (200_000).to_bytes(4, "little") + b"a" * 200_000 + b"q\x00X\x06\0\0\0latin1q\x01c_codecs\nencode\nq\x02"
        + b"h\x02h\x00h\x01\x86R" * 30_000 + b".",  # 6 GB of copies
        b"}X" + (900_000).to_bytes(4, "little") + b"a" * 900_000 + b"q\x00N" + b"sh\x00N" * 60_000 + b"s.",
        b"I" + b"9" * 1_000_000 + b"\n.",
        b"I4\nI5\n.",
        b"",
        b".",
    ],
    ids=range(14),
)  # fmt: skip
def test_little_files_that_want_much(tmp_path, monkeypatch, raw):
    monkeypatch.setattr(pickled, "MOST_OPCODES", 190_000)
    (tmp_path / "batch").write_bytes(raw)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(ValueError, match=r"batch \(\d+ bytes\) cannot be read"):
        read_batch(tmp_path / "batch", "labels", 10)
    assert time.process_time() - start < 10
    assert tracemalloc.get_traced_memory()[1] < 200 * (len(raw) + 10_000)
    tracemalloc.stop()


MUTATIONS = int(os.environ.get("CKD_MUTATIONS", "1000"))  # of files; more take longer and find more


def test_no_change_to_a_file_does_more_than_refuse_it(tmp_path):
    generator = random.Random(0)
    few = {key: value[:3] for key, value in REWRITTEN["numpy numbers"].items()}
    whole = [official(PIXELS[:3], LABELS[:3])]
    whole += [pickle.dumps(few, protocol=protocol) for protocol in range(6)]
    heads = [len(raw) - 9216 for raw in whole]  # the pixels are of no interest
    path = tmp_path / "batch"
    outcomes = []
    tracemalloc.start()
    for number in range(MUTATIONS):
        raw = bytearray(whole[number % len(whole)])
        for _ in range(generator.choice((1, 1, 2, 5, 20))):
            at = generator.randrange(heads[number % len(whole)])
            at = at if generator.random() < 0.5 else len(raw) - 1 - at
            at %= max(1, len(raw))
            kind = generator.randrange(5)
            if kind == 0:
                raw[at] = generator.randrange(256)
            elif kind == 1:
                raw[at] ^= 1 << generator.randrange(8)
            elif kind == 2:
                del raw[at : at + generator.randrange(1, 9)]
            elif kind == 3:
                other = generator.choice(whole)
                start = generator.randrange(len(other))
                raw[at:at] = other[start : start + generator.randrange(1, 40)]
            else:
                raw[at : at + 4] = b"\xff\xff\xff\x7f"
        path.write_bytes(raw)
        refusal = ""
        try:
            images, targets = read_batch(path, "labels", 10)
            assert images.shape == (len(targets), 3, 32, 32)
        except ValueError as error:
            refusal = str(error)
        assert not refusal or (str(path) in refusal and "extract the official archive again" in refusal)
        outcomes.append(not refusal)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert (
        MUTATIONS // 30 < sum(outcomes) < MUTATIONS * 9 // 10
    )  # neither does every change go unnoticed, nor is every file refused


def test_what_is_no_regular_file(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe is no regular file: remove it"):
        read_batch(tmp_path / "pipe", "labels", 10)
    with pytest.raises(ValueError, match=r"cannot be read: Is a directory|is no regular file"):
        read_batch(tmp_path, "labels", 10)
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(2**40)  # a hole that takes no space
    with pytest.raises(ValueError, match=r"huge has 1,099,511,627,776 bytes, more than the 536,870,912 that are read"):
        read_batch(tmp_path / "huge", "labels", 10)


def test_files_that_are_not_whole(root, tmp_path):
    as_official(root)
    folder = root / "cifar-10-batches-py"
    whole = (folder / "data_batch_2").read_bytes()
    (folder / "data_batch_2").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"data_batch_2 .*cut short"):
        CIFAR(str(root), validation=0).setup("fit")
    (folder / "data_batch_2").unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_2 is missing"):
        CIFAR(str(root), validation=0).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"no folder cifar-100-python: download https://.*md5 eb90"):
        CIFAR(str(root), name="cifar100")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": list(range(20))}, r"labels from 0 to 19, they must lie in \[0, 9\]"),
        ({"key": b"fine_labels"}, "no 'data' and 'labels'"),
        ({"labels": [0] * 19}, r"must hold uint8 \[19, 3072\].*got uint8 \[20, 3072\]"),
        ({b"data": np.zeros((20, 3072), np.int8)}, r"must hold uint8 \[20, 3072\].*got int8 \[20, 3072\]"),
        ({b"data": np.zeros((20, 3071), np.uint8)}, r"must hold uint8 \[20, 3072\].*got uint8 \[20, 3071\]"),
        ({b"data": [0] * 20}, r"must hold uint8 \[20, 3072\].*got list"),
        ({"labels": [0.0] * 20}, "must hold integers as labels, got float"),
        ({"labels": [True] * 20}, "must hold integers as labels, got bool"),
        ({"labels": [0] * 19 + [None]}, "must hold integers as labels, got NoneType"),
        ({"labels": np.zeros(20)}, "must hold integers as labels, got float"),
        ({"labels": [np.float64(1.0)] * 20}, "must hold integers as labels, got float"),
        ({"labels": [np.True_] * 20}, "must hold integers as labels, got bool"),
        ({"labels": ["1"] * 20}, "must hold integers as labels, got str"),
        ({"labels": "a" * 20}, "must hold a list of labels, got str"),
        ({"labels": b"a" * 20}, "must hold a list of labels, got bytes"),
        ({"labels": [0] * 19 + [10**40]}, "labels from 0 to 9223372036854775808, they must"),
        ({"labels": [-1] * 20}, "labels from -1 to -1, they must"),
    ],
)
def test_content_that_does_not_fit(tmp_path, changes, message):
    content = write(tmp_path / "batch", 20, 0, **{k: v for k, v in changes.items() if k != b"data"})
    content |= {k: v for k, v in changes.items() if k == b"data"}
    (tmp_path / "batch").write_bytes(pickle.dumps({k.decode(): v for k, v in content.items()}))
    with pytest.raises(ValueError, match=message):
        read_batch(tmp_path / "batch", "labels", 10)


def test_split_takes_the_same_share_of_every_class():
    targets = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    kept, held_out = split_off(targets, 33, num_classes=3)
    assert len(kept) + len(held_out) == 100
    assert set(kept.tolist()).isdisjoint(held_out.tolist())
    assert torch.bincount(targets[held_out]).tolist() == [23, 7, 3]
    with pytest.raises(ValueError, match=r"leaves nothing of 100 .*data\.validation.*0 holds out none"):
        split_off(targets, 100, 3)
    with pytest.raises(ValueError, match=r"leaves no sample of class 1 .*data\.validation"):
        split_off(targets, 99, 3)
