"""Checkpoints as files: written whole, with the mode that the umask says, refused where a bit has changed."""

import copy
import os
import pickle
import resource
import signal
import stat
import warnings
import zipfile

import pytest
import torch

from ckdsnn.checkpoint import SCHEMA, RunError, load_checkpoint, load_run, save_atomically, write_text_atomically


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_the_umask_decides_who_may_read_a_checkpoint(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_atomically({"step": 1}, tmp_path / "last.ckpt")
        write_text_atomically("step: 1\n", tmp_path / "config.yaml")
        (tmp_path / "plain").write_text("")
    finally:
        os.umask(before)
    assert mode(tmp_path / "last.ckpt") == mode(tmp_path / "config.yaml") == mode(tmp_path / "plain") == 0o666 & ~umask


@pytest.fixture
def path(tmp_path):
    made = {"network": {"name": "n", "options": {}, "num_classes": 2, "in_channels": 1}, "config": {}, "finished": True}
    torch.manual_seed(0)
    save_atomically({"ckdsnn": made, "state_dict": {"w": torch.randn(300), "i": torch.arange(5)}}, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


def test_a_flipped_bit_is_noticed(path):
    """Wherever it is: either the file is refused, or the bit was one of padding and nothing else is read."""
    whole, content = path.read_bytes(), load_checkpoint(path)
    assert same(load_run(path), content)
    refused = 0
    for place in range(0, 8 * len(whole), 131):
        broken = bytearray(whole)
        broken[place // 8] ^= 1 << place % 8
        path.write_bytes(broken)
        try:
            assert same(load_checkpoint(path), content), place
        except RunError:
            refused += 1
    assert refused > 50
    start = whole.index(content["state_dict"]["w"].numpy().tobytes())
    for place in (start, start + 600, start + 1199):  # the weights themselves
        broken = bytearray(whole)
        broken[place] ^= 16
        path.write_bytes(broken)
        with pytest.raises(RunError, match=r"cannot be read: the checksum of .*data/0 does not fit"):
            load_checkpoint(path)


def test_a_file_that_was_cut_short_is_refused(path):
    whole = path.read_bytes()
    for size in (0, 1, 2, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(RunError, match=rf"\({size} bytes\) cannot be read"):
            load_checkpoint(path)


def test_objects_in_a_checkpoint_are_neither_built_nor_recommended(path):
    torch.save({"code": print}, path)
    with pytest.raises(RunError, match="it holds 'print', and only tensors and plain values are read") as refused:
        load_checkpoint(path)
    assert "weights_only" not in str(refused.value)
    torch.save([1, 2], path)
    with pytest.raises(RunError, match="it holds list, not a dictionary"):
        load_checkpoint(path)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_that_torch_save_has_not_written(path, protocol):
    path.write_bytes(pickle.dumps({"step": 1}, protocol))
    why = "Invalid magic number" if protocol == 2 else "it is no file of torch.save"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(RunError, match=why):
            load_checkpoint(path)
    assert said == []


def test_a_file_that_would_grow_in_memory_is_refused(path):
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(RunError, match="it is compressed"):
        load_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", bytes(10_000))
        once = archive.infolist()[0]
        for number in range(1, 50):  # all of them are the bytes of the first
            again = copy.copy(once)
            again.filename = f"archive/data/{number}"
            archive.filelist.append(again)
    with pytest.raises(RunError, match="its parts overlap"):
        load_checkpoint(path)


def test_a_full_disk_leaves_the_old_file(path):
    whole = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal_before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(RunError, match=rf"cannot write {path}: File too large; .* as it was\. Make room"):
            save_atomically({"w": torch.zeros(100_000)}, path)
        with pytest.raises(RunError, match=r"cannot write .*new\.json: File too large; no file of that name is left"):
            write_text_atomically("x" * 100_000, path.with_name("new.json"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, signal_before)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_one_is_named(path):
    with pytest.raises(RunError, match=r"cannot write .*a\.ckpt/last\.ckpt: (Not a directory|File exists)"):
        save_atomically({}, path / "last.ckpt")


@pytest.mark.parametrize("keys", [("state_dict",), ("ckdsnn", "network"), ("ckdsnn", "config"), ("ckdsnn", "finished"),
                                  ("ckdsnn", "network", "name"), ("ckdsnn", "network", "in_channels")])  # fmt: skip
@pytest.mark.parametrize("value", [None, True, torch.zeros(2)])
def test_missing_and_wrong_keys_are_named(path, keys, value):
    content = load_checkpoint(path)
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    if value is None:
        del inner[keys[-1]]
    elif keys[-1] == "finished":
        inner[keys[-1]] = 1
    else:
        inner[keys[-1]] = value
    save_atomically(content, path)
    with pytest.raises(RunError, match=rf"{path} has no usable {'.'.join(keys)}, which every run of ckdsnn writes"):
        load_run(path)


@pytest.mark.parametrize("schema", [SCHEMA + 1, -1, "1", True, torch.zeros(2)])
def test_a_schema_of_another_version_is_refused(path, schema):
    content = load_checkpoint(path)
    content["ckdsnn"]["schema"] = schema
    save_atomically(content, path)
    with pytest.raises(RunError, match=rf"has schema .*, this version of ckdsnn knows up to {SCHEMA}: use the version"):
        load_run(path)
