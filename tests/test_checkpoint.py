"""Checkpoints as files: written whole, with the mode that the umask says, refused where a bit has changed."""

import os
import stat

import pytest

from ckdsnn.checkpoint import save_atomically, write_text_atomically


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
