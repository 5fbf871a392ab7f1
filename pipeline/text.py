"""Read text files of any size as bytes of UTF-8. Gzip is unpacked, and a byte order mark left out."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline.input_files import is_pointer, refuse_pointer
from shards.errors import BadInput, UserError
from shards.regular_file import open_regular

AGAIN = "download it again"
_MARK = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_BLOCK = 1 << 16
_MOST_UNPACKED = 250  # times the packed size; gzip itself reaches 1032
_ALWAYS_UNPACKED = 1 << 28  # bytes, whatever the ratio
_OTHERS = {
    b"PK\3\4": "a zip file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"\xfd7zXZ\0": "an xz file",
    b"BZh": "a bzip2 file",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\0\0\xfe\xff": "UTF-32",
}


@contextmanager
def open_text(path: Path, error: type[UserError] = UserError) -> Iterator[BufferedReader]:
    """Open a text file for reading its bytes after the byte order mark, unpacked where it is gzip.

    Raises:
        UserError: (or `error`) no such file, a pointer, another encoding or packing, gzip that is damaged,
            cut short or grows without bounds.
    """
    try:
        with open_regular(path) as file, BufferedReader(cast(Any, _Bytes(file, str(path), error)), _BLOCK) as text:
            yield text
    except OSError as failed:
        raise error(
            "cannot be read", where=str(path), met=str(failed.strerror or failed), wanted="a readable file"
        ) from None


def read_text(path: Path, most: int, error: type[UserError] = BadInput) -> bytes:
    """Return all bytes of a text file, at most `most` unpacked; raises as `open_text`."""
    with open_text(path, error) as file:
        return _whole(file, str(path), most, error)


def unpacked(data: bytes, where: str, most: int) -> bytes:
    """Return a text file's bytes without byte order mark, unpacked where they are gzip.

    Raises:
        BadInput: as `open_text`, or what is unpacked takes more than `most` bytes.
    """
    if not data.startswith(_GZIP) and not _is_not_plain(data[:64]):
        return data
    return _whole(_Bytes(io.BytesIO(data), where, BadInput), where, most, BadInput)


def _whole(file: Any, where: str, most: int, error: type[UserError]) -> bytes:
    blocks = []
    size = 0
    while block := file.read(_BLOCK):  # in blocks: a single read would allocate `most` bytes
        blocks.append(block)
        size += len(block)
        if size > most:
            raise error("too large a file", where=where, met=f"more than {most} bytes", wanted="at most that")
    return b"".join(blocks)


class _Bytes(io.RawIOBase):
    """The file that `open_text` buffers: reads, unpacks and checks one block at a time."""

    def __init__(self, file: BinaryIO, where: str, error: type[UserError]) -> None:
        self._where = where
        self._error = error
        self._count = 0
        head = file.read(64)
        self._refuse(head)
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        self._most = max(_ALWAYS_UNPACKED, _MOST_UNPACKED * size)
        self._packed = head.startswith(_GZIP)
        self._file: Any = gzip.GzipFile(fileobj=file, mode="rb") if self._packed else file
        self._start = self._read(64)
        if self._packed:
            self._refuse(self._start)
        self._start = self._start.removeprefix(_MARK)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._start[: len(buffer)] or self._read(len(buffer))
        self._start = self._start[len(data) :]
        buffer[: len(data)] = data
        return len(data)

    def _read(self, most: int) -> bytes:
        try:
            data: bytes = self._file.read(most)
        except EOFError:
            raise self._error(
                "gzip cut short",
                where=self._where,
                met=f"its end after {self._count} unpacked bytes",
                wanted="a whole file",
                do=AGAIN,
            ) from None
        except (gzip.BadGzipFile, zlib.error) as failed:
            raise self._error("damaged gzip", where=self._where, met=str(failed), wanted="gzip", do=AGAIN) from None
        self._count += len(data)
        if self._packed and self._count > self._most:
            raise self._error(
                "gzip that grows too much",
                where=self._where,
                met=f"more than {self._most} unpacked bytes",
                wanted=f"at most {_MOST_UNPACKED} times the packed size",
            )
        return data

    def _refuse(self, head: bytes) -> None:
        refuse_pointer(head, self._where, self._error)
        kind = next((name for start, name in _OTHERS.items() if head.startswith(start)), "")
        if not kind and b"\0" in head[:4] and not head.startswith(_GZIP):
            kind = "UTF-16 or UTF-32 without a mark" if any(head[:4]) else "zero bytes"
        if kind:
            raise self._error(
                "not a text file of UTF-8",
                where=self._where,
                met=kind,
                wanted="UTF-8, or gzip",
                do="save it as UTF-8" if "UTF" in kind else AGAIN if "zero" in kind else "unpack it",
            )


def _is_not_plain(head: bytes) -> bool:
    """Whether a file that begins with `head` is anything but plain text."""
    return is_pointer(head) or b"\0" in head[:4] or head.startswith((_MARK, *_OTHERS))
