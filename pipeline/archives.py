"""Read members of tar and zip files in place: a member is found once, and read with one seek.

A member is described as JSON, so that `pipeline.records` can keep it: `at` (its place in the archive) and `bytes` (its
size); of a zip also `packed` (its compressed size), `method` and `crc`.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pipeline.input_files import MAX_BYTES, open_input, refuse_pointer
from shards.checksum import crc32
from shards.errors import BadInput

Member = dict[str, int]
_BLOCK = 512  # of a tar
_LOCAL_HEADER = 30  # bytes of a zip member's own header, before its name and extra field


def tar_members(path: Path) -> Iterator[tuple[str, Member]]:
    """Yield name and place of each regular file in an uncompressed tar, in its order. Links and devices are skipped.

    Raises:
        BadInput: after the last whole member, where the tar is damaged or cut short.
    """
    try:
        with _opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (info := tar.next()) is not None and info.offset_data + info.size <= size:
                    if info.isreg() and not info.issparse():
                        yield info.name, {"at": info.offset_data, "bytes": info.size}
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
                end = tar.offset  # of the headers; tarfile reads a damaged header as the end
            file.seek(end)
            whole = file.read(_BLOCK) == bytes(_BLOCK)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise BadInput("not a whole tar file", where=str(path), met=str(error), do="fetch it again") from None
    if not whole:
        raise BadInput(
            "not a whole tar file",
            where=str(path),
            met=f"no header and no end at byte {end} of {size}",
            do="fetch it again",
        )


def zip_members(path: Path) -> Iterator[tuple[str, Member]]:
    """Yield name and place of each file in a zip; raises `BadInput` where the zip is damaged or cut short."""
    try:
        with _opened(path) as file, zipfile.ZipFile(file) as opened:
            for info in opened.infolist():
                if not info.is_dir():
                    method = info.compress_type if not info.flag_bits & 1 else -1  # encrypted
                    place = {"at": info.header_offset, "packed": info.compress_size, "method": method}
                    yield info.filename, {**place, "bytes": info.file_size, "crc": info.CRC}
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise BadInput("not a whole zip file", where=str(path), met=str(error), do="fetch it again") from None


def read_member(path: Path, member: Mapping[str, int]) -> bytes:
    """Return a member's bytes.

    Raises:
        BadInput: the archive is not there or was changed, the member is damaged, encrypted or larger than `MAX_BYTES`.
    """
    if max(member["bytes"], member.get("packed", 0)) > MAX_BYTES:
        raise BadInput(
            "too large a file", where=str(path), met=f"{member['bytes']} bytes", wanted=f"at most {MAX_BYTES}"
        )
    try:
        with open_input(path) as file:
            if "crc" not in member:
                file.seek(member["at"])
                data = file.read(member["bytes"])
            else:
                if not seek_content(file, member["at"]):
                    raise BadInput("damaged member of a zip", where=str(path), met=f"no header at {member['at']}")
                data = _unpack(file.read(member["packed"]), member, path)
    except OSError as error:
        raise BadInput("cannot be read", where=str(path), met=str(error.strerror)) from None
    if len(data) != member["bytes"] or crc32(data) != member.get("crc", crc32(data)):
        raise BadInput(
            "damaged member of an archive",
            where=str(path),
            met=f"{len(data)} bytes of {member['bytes']}, or a wrong checksum",
            do="fetch the archive again",
        )
    return data


def seek_content(file: BinaryIO, at: int) -> bool:
    """Move to the content of the member of a zip whose own header is at `at`; return whether there is such a header."""
    file.seek(at)
    head = file.read(_LOCAL_HEADER)
    skipped = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    file.seek(skipped, os.SEEK_CUR)
    return len(head) == _LOCAL_HEADER and head.startswith(b"PK\3\4")


def member_path(name: str) -> str:
    """Return a member's name as a relative path; raises `BadInput` where it would leave the archive's folder."""
    if "/" not in name and name not in ("", ".", "..") and "\0" not in name:
        return name
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\0" in name or not pure.parts:
        raise BadInput("path leaves the archive", met=name, wanted="a relative path without ..")
    return pure.as_posix()


def _unpack(packed: bytes, member: Mapping[str, int], path: Path) -> bytes:
    if member["method"] == zipfile.ZIP_STORED:
        return packed
    if member["method"] != zipfile.ZIP_DEFLATED:
        raise BadInput(
            "a zip that cannot be read",
            where=str(path),
            met="encryption" if member["method"] < 0 else f"method {member['method']}",
            wanted="stored or deflated members",
        )
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, member["bytes"] + 1)
    except zlib.error as error:
        raise BadInput("damaged member of an archive", where=str(path), met=str(error)) from None


def _opened(path: Path) -> BinaryIO:
    """Open an archive; raises `BadInput` where there is none, or a pointer to one."""
    file = open_input(path)
    try:
        refuse_pointer(file.read(64), str(path))
        file.seek(0)
        return file
    except BaseException:
        file.close()
        raise
