"""Images and frames that were made to do harm, or that are not what their names say: refused, with file and remedy."""

import io
import os
import pickle
import random
import struct
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ckdsnn.checkpoint import RunError
from ckdsnn.data import DVSFrames, ImageFolder
from ckdsnn.data.arrays import ArrayFile, read_frames
from ckdsnn.data.folder import list_images
from ckdsnn.data.images import central_box, read_crop


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, data=b"", depth=8, colour=2):
    """A PNG whose header says `width` x `height`, whatever its data."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.fixture
def bounded():
    """Fails a test that takes much memory (of Python and numpy) or time."""
    tracemalloc.start()
    start = time.process_time()
    yield
    assert time.process_time() - start < 5
    assert tracemalloc.get_traced_memory()[1] < 30_000_000
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (png(12_000, 12_000), "12,000 x 12,000 pixels, more than the 67,108,864"),
        (png(8193, 8192), "8,193 x 8,192 pixels, more"),
        (png(2**31 - 1, 2**31 - 1), ""),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "no JPEG, PNG, BMP or WebP",
        ),  # Pillow would start Ghostscript
        (b"GIF89a" + bytes(100), "no JPEG, PNG, BMP or WebP"),
        (png(10, 10, b"1234"), ""),
        (b"", "no JPEG, PNG, BMP or WebP"),
        (b"BM" + bytes(60), ""),
        (b"RIFF\xff\xff\xff\x7fWEBPVP8 ", ""),
    ],
    ids=range(9),
)
@pytest.mark.usefixtures("bounded")
def test_images_that_promise_or_are_something_else(tmp_path, raw, message):
    (tmp_path / "x.png").write_bytes(raw)
    with pytest.raises(
        ValueError, match=rf"x\.png cannot be read as an image \(.*{message}.*: replace or remove it"
    ) as said:
        read_crop(tmp_path / "x.png", 32, central_box)
    assert "BytesIO" not in str(said.value)


def test_a_progressive_jpeg_of_very_many_scans(tmp_path):
    made = io.BytesIO()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(made, "JPEG", progressive=True)
    raw = made.getvalue()
    last = raw.rindex(b"\xff\xda")
    path = tmp_path / "x.jpg"
    path.write_bytes(raw)
    assert read_crop(path, 8, central_box).shape == (8, 8, 3)
    path.write_bytes(raw[:last] + raw[last:-2] * 300 + raw[-2:])
    with pytest.raises(ValueError, match=r"x\.jpg .*more than 250 scans"):
        read_crop(path, 8, central_box)


@pytest.fixture
def images(tmp_path):
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for number in range(3):
                Image.fromarray(np.full((20, 24, 3), 50 * number, np.uint8)).save(
                    tmp_path / "data" / part / name / f"{number}.png"
                )
    return tmp_path / "data"


def image_folder(root, **options):
    return ImageFolder(str(root), **{"batch_size": 2, "size": 16, "validation": 0, "workers": 0, **options})


def test_what_is_no_regular_file(images):
    os.mkfifo(images / "train" / "cat" / "x.png")
    with pytest.raises(ValueError, match=r"cat/x\.png is no regular file"):
        image_folder(images)
    with pytest.raises(ValueError, match=r"x\.png is no regular file"):  # nobody waits for a writer
        read_crop(images / "train" / "cat" / "x.png", 8, central_box)
    (images / "train" / "cat" / "x.png").unlink()
    (images / "train" / "cat" / "x.png").symlink_to("nowhere.png")
    with pytest.raises(ValueError, match=r"cat/x\.png is no regular file, or a link to nothing: remove it"):
        image_folder(images)
    (images / "train" / "cat" / "x.png").unlink()
    (images / "train" / "cat" / "x.png").symlink_to("x.png")
    with pytest.raises(ValueError, match=r"cat/x\.png is no regular file, or a link to nothing"):
        image_folder(images)
    (images / "train" / "cat" / "x.png").unlink()
    (images / "train" / "cat" / "x.png").mkdir()  # a folder is looked into, as any other
    (images / "train" / "cat" / "._0.png").write_bytes(b"hidden")
    paths, _, _ = list_images(images / "train", images)
    assert [path.name for path in paths] == ["0.png", "1.png", "2.png"] * 2


@pytest.mark.parametrize("kind", ["file", "folder", "class"])
def test_links_out_of_the_folder(images, tmp_path, kind):
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(outside / "secret.png")
    link, target = {
        "file": (images / "train" / "cat" / "x.png", outside / "secret.png"),
        "folder": (images / "train" / "cat" / "more", outside),
        "class": (images / "train" / "wolf", outside),
    }[kind]
    link.symlink_to(target)
    if kind == "class":
        (images / "val" / "wolf").symlink_to(target)
    with pytest.raises(ValueError, match=rf"{link.name} leads to .*outside.*follow_symlinks to true if you trust"):
        image_folder(images)
    paths, _, _ = list_images(images / "train", images, follow_symlinks=True)
    assert len(paths) == 7
    assert len(image_folder(images, follow_symlinks=True).train_dataloader()) == 3


def test_links_within_the_folder(images):
    (images / "train" / "cat" / "x.png").symlink_to("0.png")
    (images / "train" / "cat" / "again").symlink_to(images / "train" / "cat")  # a circle
    paths, targets, _ = list_images(images / "train", images)
    assert [path.name for path in paths] == ["0.png", "1.png", "2.png", "x.png", "0.png", "1.png", "2.png"]
    assert targets == [0] * 4 + [1] * 3


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_stops_training_with_its_name_alone(images, workers):
    (images / "train" / "dog" / "1.png").write_bytes(b"no image")
    with pytest.raises(RunError, match=r"^\S+dog/1\.png cannot be read as an image \(.*\): replace or remove it$"):
        list(image_folder(images, workers=workers).train_dataloader())


def npy(descr, shape, content=b"", version=1):
    head = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(head)) + head + content


def npz(method=zipfile.ZIP_DEFLATED, **members):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return made.getvalue()


def saved(array, **options):
    made = io.BytesIO()
    np.save(made, array, **options)
    return made.getvalue()


SHAPE = (4, 2, 3, 3)
FRAMES = np.arange(72, dtype=np.uint8).reshape(SHAPE)
NAN = FRAMES.astype(np.float32)
NAN[1, 1, 1, 1] = np.nan
REFUSED = {
    "gigabytes promised": (npy("<f8", (4, 2, 2000, 2000), b"1234"), "another size than its content"),
    "gigabytes of zeros": (npz(frames=npy("<f8", (4, 2, 40_000, 40_000))), "40000 x 40000 pixels, up to 2048"),
    "terabytes": (npz(frames=npy("<f8", (4, 2, 2**20, 2**20))), "1048576 x 1048576 pixels"),
    "overflow": (npy("<f8", (4, 2, 2**62, 2**62)), "pixels, up to 2048"),
    "negative": (npy("|u1", (4, 2, -3, -3)), "negative size"),
    "too long": (saved(FRAMES) + b"1", "another size"),
    "too short": (saved(FRAMES)[:-1], "another size"),
    "complex": (saved(FRAMES.astype(np.complex64)), "complex64, and only bool, integers and floating-point are read"),
    "structured": (saved(np.zeros(SHAPE, "u1, f4")), "and only bool"),
    "strings": (saved(FRAMES.astype("U3")), "<U3, and only bool"),
    "bytes": (saved(FRAMES.astype("S3")), "S3, and only bool"),
    "dates": (saved(FRAMES.astype("M8[s]")), "datetime64"),
    "long double": (saved(FRAMES.astype(np.longdouble)), "and only bool"),
    "objects": (saved(np.full(SHAPE, None), allow_pickle=True), "object, and only bool"),
    "NaN": (saved(NAN), "not finite"),
    "infinite": (saved(np.full(SHAPE, 1e300)), "not finite in float32"),
    "three dimensions": (saved(FRAMES[0]), r"array \[2, 3, 3\], expected \[T=4, 2, H, W\]"),
    "no pixels": (saved(FRAMES[..., :0]), "3 x 0 pixels"),
    "pickle": (pickle.dumps(FRAMES), "no file of numpy arrays"),
    "text": (b"1, 2, 3", "no file of numpy arrays"),
    "empty": (b"", "no file of numpy arrays"),
    "code for a shape": (npy("|u1", SHAPE).replace(b"(4,", b"f(4"), "no file of numpy arrays"),
    "header of 4 GB": (b"\x93NUMPY\x02\0\xff\xff\xff\xff{}", "no file of numpy arrays"),
    "header of brackets": (b"\x93NUMPY\x01\0\xff\xff" + b"(" * 65535, "no file of numpy arrays"),
    "two arrays": (npz(a=saved(FRAMES), b=saved(FRAMES)), "its arrays are a, b, none of them named frames"),
    "many arrays": (npz(**{f"a{i}": b"" for i in range(101)}), "more than 100 arrays"),
    "lzma": (npz(zipfile.ZIP_LZMA, frames=saved(FRAMES)), "none that numpy writes"),
    "flipped bit": (npz(zipfile.ZIP_STORED, frames=saved(FRAMES)).replace(b"\x14\x15\x16", b"\x14\x15\x17"), "CRC"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.usefixtures("bounded")
def test_arrays_that_are_no_frames(tmp_path, kind):
    raw, message = REFUSED[kind]
    path = tmp_path / "x.npy"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=rf"x\.npy cannot be read as frames: .*{message}.*; correct or remove it"):
        read_frames(path, 4)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float64, ">u2", ">f4"])
def test_arrays_that_are_frames(tmp_path, dtype):
    array = FRAMES.astype(dtype)
    for content in (
        saved(array),
        saved(np.asfortranarray(array)),
        npz(frames=saved(array), other=saved(array[0])),
        npz(zipfile.ZIP_STORED, any=saved(array)),
        npy(np.dtype(dtype).str, SHAPE, array.tobytes(), version=2),
    ):
        (tmp_path / "x").write_bytes(content)
        frames = read_frames(tmp_path / "x", 4)
        assert frames.dtype == torch.float32
        assert torch.equal(frames, torch.from_numpy(FRAMES.astype(dtype).astype(np.float32)))


def test_no_change_to_an_array_file_does_more_than_refuse_it(tmp_path):
    generator = random.Random(0)
    whole = [saved(FRAMES), npz(frames=saved(FRAMES)), npz(zipfile.ZIP_STORED, t=saved(FRAMES[0, 0, 0]))]
    tracemalloc.start()
    outcomes = []
    for number in range(1500):
        raw = bytearray(whole[number % 3])
        for _ in range(generator.choice((1, 2, 9))):
            at = generator.randrange(len(raw))
            if generator.random() < 0.3:
                del raw[at : at + generator.randrange(1, 9)]
            else:
                raw[at] = generator.randrange(256)
        try:
            file = ArrayFile(bytes(raw))
            outcomes += [
                True for name, header in file.headers.items() if np.prod(header.shape) < 1000 and [file.read(name)]
            ]
        except ValueError:
            outcomes.append(False)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert 50 < sum(outcomes) < 1450


def test_frames_in_a_folder_with_a_pipe_or_a_link(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(3):
            np.save(tmp_path / "data" / name / f"{number}.npy", FRAMES)
    os.mkfifo(tmp_path / "data" / "cat" / "x.npz")
    data = DVSFrames(str(tmp_path / "data"), time_steps=4, size=None, validation=0, batch_size=2)
    with pytest.raises(ValueError, match=r"cat/x\.npz is no regular file"):
        data.setup("fit")
    (tmp_path / "data" / "cat" / "x.npz").unlink()
    np.save(tmp_path / "secret.npy", FRAMES)
    (tmp_path / "data" / "cat" / "x.npy").symlink_to(tmp_path / "secret.npy")
    with pytest.raises(ValueError, match=r"cat/x\.npy leads to .*secret\.npy"):
        data.setup("fit")
    np.save(tmp_path / "data" / "dog" / "1.npy", FRAMES[..., :2])
    (tmp_path / "data" / "cat" / "x.npy").unlink()
    with pytest.raises(ValueError, match=r"dog/1\.npy has frames of 3 x 2 pixels, .*cat/0\.npy of 3 x 3: set size"):
        data.setup("fit")
