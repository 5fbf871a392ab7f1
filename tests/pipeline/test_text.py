"""Text files as Windows, packers and broken downloads leave them."""

from __future__ import annotations

import gzip
import os
import zipfile
from pathlib import Path

import pytest

import pipeline.text
from pipeline.tables import read_table
from pipeline.text import open_text, read_text, unpacked
from shards.errors import BadInput, UserError

TEXT = b"MaskPath,LabelName\r\na.png,/m/01\r\n" + "é,ü\n".encode()
MARK = b"\xef\xbb\xbf"


def put(folder: Path, data: bytes) -> Path:
    (folder / "a.csv").write_bytes(data)
    return folder / "a.csv"


def _gzip(data: bytes) -> bytes:
    """Packed without a time: tests are named after their values, and all processes must find the same names."""
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize(
    "data",
    [
        TEXT,
        MARK + TEXT,
        _gzip(TEXT),
        _gzip(MARK + TEXT),
        _gzip(TEXT[:9]) + _gzip(TEXT[9:]),
        MARK,
        b"",
    ],
)
def test_a_mark_is_left_out_and_gzip_unpacked(tmp_path, data):
    expected = TEXT if len(data) > 3 else b""
    path = put(tmp_path, data)
    assert read_text(path, 999) == expected == unpacked(data, "a", 999)
    assert [*read_table(path)] == ([["MaskPath", "LabelName"], ["a.png", "/m/01"], ["é", "ü"]] if expected else [])
    with open_text(path) as file:
        assert b"".join(iter(lambda: file.read(5), b"")) == expected


def as_zip(folder: Path) -> bytes:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("a.csv", TEXT)
    return (folder / "a.zip").read_bytes()


def test_what_is_no_text_of_utf_8_is_named(tmp_path):
    for data, message in (
        (
            TEXT.decode().encode("utf-16"),
            "not a text file of UTF-8; met UTF-16; wanted UTF-8, or gzip; save it",
        ),
        (TEXT.decode().encode("utf-16-be"), "met UTF-16 or UTF-32 without a mark"),
        (gzip.compress(TEXT.decode().encode("utf-16")), "met UTF-16;"),
        (bytes(100), "met zero bytes; wanted UTF-8, or gzip; download it again"),
        (as_zip(tmp_path), "met a zip file; wanted UTF-8, or gzip; unpack it"),
        (b"\x28\xb5\x2f\xfd...", "met a zstd file"),
        (gzip.compress(TEXT)[:-9], "gzip cut short; met its end after .* unpacked bytes; .*download it again"),
        (gzip.compress(TEXT)[:14] + b"\xff" * 40, "(damaged gzip|gzip cut short); .*download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer, not the file; .*fetch the file itself"),
    ):
        path = put(tmp_path, data)
        for read in (
            lambda p: read_text(p, 999),
            lambda p: [*read_table(p)],
            lambda p: unpacked(p.read_bytes(), "a.csv", 999),
        ):
            with pytest.raises(UserError, match=rf"a\.csv: .*{message}"):
                read(path)
    with pytest.raises(UserError, match=r"none: cannot be read; met No such file"):
        read_text(tmp_path / "none", 9)


def test_gzip_is_bounded_by_size_and_by_ratio(tmp_path, monkeypatch):
    path = put(tmp_path, gzip.compress(b"1," * 5_000_000))
    monkeypatch.setattr(pipeline.text, "_ALWAYS_UNPACKED", 1 << 20)
    with pytest.raises(UserError, match=r"gzip that grows too much; met more than \d+ unpacked bytes; wanted at most"):
        sum(map(len, read_table(path)))
    with pytest.raises(BadInput, match="too large a file; met more than 1000 bytes"):
        read_text(path, 1000)
    with pytest.raises(BadInput, match="too large a file; met more than 1000 bytes"):
        unpacked(path.read_bytes(), "a", 1000)


def test_a_pipe_and_a_folder_are_no_files_and_nothing_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(
            UserError, match=r"cannot be read; met (a named pipe|Is a directory).*; wanted a readable file"
        ):
            read_text(tmp_path / name, 9)


def test_a_broken_table_is_reported_with_its_line(tmp_path):
    for data, message in (
        (b"a,b\n\xe9,c\n", "met the byte 0xe9 behind line .*; wanted UTF-8; save it as UTF-8"),
        (
            b'a,b\n1,2\n3,"' + b"x" * 140_000,
            "field larger than field limit .* behind line [23]; wanted values",
        ),
    ):
        with pytest.raises(UserError, match=rf"not a whole CSV; .*{message}"):
            [*read_table(put(tmp_path, data))]
