"""Tars read in place: where each member lies, found once, and then one read a member. Nothing is ever extracted."""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath

from pipeline.annotations import inside
from pipeline.pictures import MAX_BYTES
from shards.errors import BadInput, UserError

Place = tuple[int, int]
"""(offset of the data, bytes)."""


def index_tar(path: Path) -> dict[str, Place]:
    """Name (without a leading ./) -> place of each regular file in an uncompressed tar; of equal names the last.

    Links, devices and names that would leave a folder are passed over. Raises `UserError` where the tar is not whole.
    """
    found: dict[str, Place] = {}
    do = "download it again, or take it away: what it should hold is then counted as missing"
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                if member.offset_data + member.size > size:
                    raise UserError("a tar cut short", where=str(path), met=f"{member.name!r} is not whole", do=do)
                if member.isreg() and not member.issparse() and inside(member.name):
                    found[PurePosixPath(member.name).as_posix()] = (member.offset_data, member.size)
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
            end = tar.offset
        with open(path, "rb") as file:
            file.seek(end)
            if any(file.read(tarfile.BLOCKSIZE)):  # tarfile ends without a word at a header that it cannot read
                raise UserError("a damaged tar", where=str(path), met=f"no header at byte {end}", do=do)
    except tarfile.TarError as error:
        raise UserError("not a whole tar", where=str(path), met=str(error), do=do) from None
    except OSError as error:
        raise UserError("cannot be read", where=str(path), met=str(error.strerror)) from None
    return found


def read_member(path: Path, offset: int, size: int) -> bytes:
    """The bytes of a member; raises `BadInput` where they are not there."""
    if size > MAX_BYTES:
        raise BadInput("too large a file", where=str(path), met=f"{size} bytes", wanted=f"at most {MAX_BYTES}")
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise BadInput("cannot be read", where=str(path), met=str(error.strerror)) from None
    if len(data) < size:
        raise BadInput("a tar cut short", where=str(path), met=f"{len(data)} bytes", wanted=f"{size} bytes")
    return data
