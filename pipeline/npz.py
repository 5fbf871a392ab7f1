"""Read arrays from an npz file that may be broken or hostile: sizes are bounded, and no pickle is read."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.archives import seek_content
from pipeline.input_files import open_input, refuse_pointer
from shards.checksum import crc32
from shards.errors import BadInput

_MAX_HEADER = 1024  # bytes: numpy writes 128, and its parser uses memory for each level of nesting
_CHUNK = 1 << 17  # bytes: read, checksummed and copied while they are in the processor's cache


def read_npz(path: Path, names: Sequence[str], max_values: int) -> dict[str, NDArray[Any]]:
    """Return the arrays `names` of the npz at `path`: numbers or bools only.

    Args:
        max_values: the largest number of values that an array may have; a larger one is not decompressed.

    Raises:
        BadInput: the file is not a whole zip, lacks an array, or holds one of objects, of another kind, or too large.
    """
    try:
        with open_input(path) as file:
            refuse_pointer(file.read(64), str(path))
            with warnings.catch_warnings(), zipfile.ZipFile(file) as archive:
                warnings.simplefilter("ignore")  # numpy's, of headers as Python 2 wrote them
                return {name: _read_member(file, archive, name, max_values) for name in names}
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # zipfile, its decompressors and numpy, which parses headers as Python, raise many kinds
        raise BadInput(
            "not a whole npz file",
            met=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
            wanted="what numpy.savez writes",
        ) from None


def _read_member(file: BinaryIO, archive: zipfile.ZipFile, name: str, max_values: int) -> NDArray[Any]:
    if f"{name}.npy" not in archive.namelist():
        raise BadInput(
            "wrong keys",
            met=", ".join(sorted(item.removesuffix(".npy") for item in archive.namelist()))[:120] or "none",
            wanted=name,
        )
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise BadInput("not a whole npz file", met=f"{name}: npy version {version}", wanted="1.0 or 2.0")
        shape, fortran_order, dtype = read_header(member, max_header_size=_MAX_HEADER)
        if dtype.hasobject:
            raise BadInput("object array", met=f"{name}: {dtype}", wanted="float32", do="it could run code; not read")
        if dtype.kind not in "fiub":
            raise BadInput("wrong dtype", met=f"{name}: {dtype}", wanted="float32")
        values = math.prod(shape)
        left = info.file_size - member.tell()
        if values > max_values:
            raise BadInput("array too large", met=f"{name} {shape}", wanted=f"at most {max_values} values")
        if left != values * dtype.itemsize:  # checked before anything of that size is decompressed
            raise BadInput("not a whole npz file", met=f"{name}: {left} bytes", wanted=f"{shape} {dtype}")
        array = np.empty(values, dtype)
        body = array.view(np.uint8)
        stored = info.compress_type == zipfile.ZIP_STORED
        found = _read_stored(file, info, body) if stored else _read_packed(member, body)
    if found != left:
        met = f"{name}: {found} bytes" if found < left else f"{name}: more bytes"
        raise BadInput("not a whole npz file", met=met, wanted=f"{left} bytes")
    return array.reshape(shape, order="F" if fortran_order else "C")


def _read_stored(file: BinaryIO, info: zipfile.ZipInfo, body: NDArray[np.uint8]) -> int:
    """Read the end of a member that is not compressed into `body`; return how many bytes were there.

    zipfile would copy each byte twice more, and zlib's CRC-32 takes seven times as long.

    Raises:
        BadZipFile: the bytes do not have the zip's checksum.
    """
    seek_content(file, info.header_offset)
    head = file.read(info.file_size - body.size)
    found = file.readinto(body.data)  # type: ignore[attr-defined]
    if found == body.size and crc32(body, crc32(head)) != info.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {info.filename!r}")
    return int(found)


def _read_packed(member: IO[bytes], body: NDArray[np.uint8]) -> int:
    """Decompress the rest of a member into `body`; return how many bytes there are, at most one piece too many."""
    start = 0
    while chunk := member.read(_CHUNK):  # to the end, so that the zip's checksum is compared
        if len(chunk) > body.size - start:
            return start + len(chunk)
        body[start : start + len(chunk)] = np.frombuffer(chunk, np.uint8)
        start += len(chunk)
    return start
