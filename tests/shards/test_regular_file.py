"""Tests that a file that is not a regular one is refused at once.

A pipe would be waited for, and a device never ends.
"""

import os
import socket
import stat
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.annotations import read_items
from pipeline.pictures import read_picture
from shards.archive import MappedTar
from shards.errors import UserError
from shards.manifest import Manifest, read_index, read_ledger
from shards.regular_file import check_regular, open_regular, read_regular
from trainer.released.files import read_json, resolve
from trainer.released.folder import read_sam
from trainer.trained import read_tensors


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_a_file_is_read(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"0123")
    (tmp_path / "link").symlink_to(file)
    assert read_regular(file) == read_regular(tmp_path / "link") == b"0123" and read_regular(file, 2) == b"01"
    with open_regular(file) as opened:
        assert opened.read() == b"0123" and stat.S_ISREG(os.fstat(opened.fileno()).st_mode)


def test_what_is_not_a_regular_file_is_refused(tmp_path, pipe):
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(tmp_path / "socket"))
        for path, what in ((pipe, "a named pipe"), ("/dev/zero", "a device"), (tmp_path / "socket", "a socket")):
            for read in (open_regular, read_regular, check_regular):
                with pytest.raises(OSError, match=f"{what}, not a regular file"):
                    read(path)
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "nothing")
    check_regular(tmp_path)  # libraries say themselves what they make of a folder
    opened = {os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()}
    assert not opened & {str(pipe), "/dev/zero", str(tmp_path / "socket"), str(tmp_path)}


def test_a_pipe_with_a_writer_is_refused_too(pipe):
    descriptor = os.open(pipe, os.O_RDWR)
    os.write(descriptor, b"some bytes")
    with pytest.raises(OSError, match="a named pipe"):
        read_regular(pipe)
    os.close(descriptor)


@pytest.mark.parametrize(
    "read",
    [
        lambda pipe: Manifest.read(pipe.parent),
        lambda pipe: read_index(pipe.parent),
        lambda pipe: read_ledger(pipe.parent),
        MappedTar,
        read_picture,
        lambda pipe: list(read_items(pipe)),
        read_json,
        read_sam,
        read_tensors,
        lambda pipe: resolve(pipe.parent),
    ],
)
def test_every_reader_refuses_a_pipe(pipe, read):
    for name in ("manifest.json", "index.npy", "ledger.jsonl", "model.safetensors"):
        os.mkfifo(pipe.parent / name)
    with pytest.raises(UserError, match=r"a (named )?pipe\b"):
        read(pipe)
