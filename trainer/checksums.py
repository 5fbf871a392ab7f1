"""`checksums.json` in a checkpoint: size and CRC-32 of its files, and the CRC-32 of itself.

Bytes that changed on a disk, or in a copy, are found before they are trained on or exported. CRC-32 finds every single
flipped bit, at 20 GB/s; SHA-256, at 1.2 GB/s, would take as long as writing the files.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from shards.atomic import atomic_write
from shards.checksum import crc32
from shards.errors import UserError
from shards.regular_file import open_regular, read_regular

log = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"
_VERSION = 1
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How safetensors ends its text of an error of the system."""
_PIECE = 16 << 20  # bytes
_DO = "it has changed since it was written: take another copy of it"


class ListedFiles:
    """Writes files into a folder, and their list, `checksums.json`, when the `with` block ends without an error."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, dict[str, int]] = {}

    def __enter__(self) -> ListedFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            body = {"version": _VERSION, "files": self._files}
            sealed = {**body, "crc32": _checksum(body)}
            atomic_write(self.folder / CHECKSUMS, (json.dumps(sealed, indent=1, sort_keys=True) + "\n").encode())

    def write(self, name: str, data: bytes) -> None:
        """Write and list the file `name`. Raises `OSError`."""
        self._files[name] = {"bytes": len(data), "crc32": crc32(data)}
        atomic_write(self.folder / name, data)

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write and list the safetensors file `name`; other threads go on meanwhile. Raises `OSError`."""
        path = self.folder / name
        path.touch()
        mode = path.stat().st_mode  # safetensors replaces the file by one that others cannot read
        try:
            save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, path)
        except SafetensorError as error:
            number = int(found[1]) if (found := _OS_ERROR.search(str(error))) else errno.EIO
            raise OSError(number, os.strerror(number) if found else str(error), str(path)) from None
        with open(path, "rb+") as file:
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        self.add(name)

    def add(self, name: str) -> None:
        """List the file `name`, which exists. Raises `OSError`."""
        self._files[name] = _measured(self.folder / name)


def check_files(folder: Path, names: Iterable[str] | None = None) -> bool:
    """Compare files with `checksums.json` in the same folder, and return whether there is one.

    Args:
        folder: of a checkpoint.
        names: files to compare, as far as they are listed; all listed files by default.

    Raises:
        UserError: a file is missing or has changed, or the list itself has.
    """
    listed = _read(folder / CHECKSUMS)
    if listed is None:
        return False
    for name in listed if names is None else [name for name in names if name in listed]:
        path = folder / name
        try:
            measured = _measured(path)
        except FileNotFoundError:
            raise UserError("no such file", where=str(path), wanted=f"as {CHECKSUMS} says") from None
        except OSError as error:
            raise UserError("cannot be read", where=str(path), met=str(error)) from None
        if measured != listed[name]:
            here, there = (f"{sums['bytes']:,} bytes, CRC-32 {sums['crc32']}" for sums in (measured, listed[name]))
            do = f"{_DO}; if the change was meant, remove {CHECKSUMS}"
            raise UserError("not the bytes that were written", where=str(path), met=here, wanted=there, do=do)
    return True


def check_checkpoint(folder: Path, names: Iterable[str] | None = None) -> None:
    """Check files as `check_files` does; log a warning where the checkpoint is of a release without checksums."""
    if not check_files(folder, names):
        log.warning("%s: no %s, as an earlier release left it: its files are taken unchecked", folder, CHECKSUMS)


def _measured(path: Path) -> dict[str, int]:
    size = 0
    checksum = 0
    with open_regular(path) as file:
        while piece := file.read(_PIECE):
            size += len(piece)
            checksum = crc32(piece, checksum)
    return {"bytes": size, "crc32": checksum}


def _read(path: Path) -> dict[str, dict[str, int]] | None:
    """Return the files listed in `path`; None where there is no such file."""
    try:
        body = json.loads(read_regular(path))
        checksum = body.pop("crc32")
        if body["version"] == _VERSION and checksum == _checksum(body):
            files: dict[str, dict[str, int]] = body["files"]
            return files
        found = f"version {body['version']}, CRC-32 {checksum}"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        found = str(error)
    expected = f"version {_VERSION} and the CRC-32 of itself"
    raise UserError("not a list of checksums", where=str(path), met=found, wanted=expected, do=_DO)


def _checksum(body: dict[str, Any]) -> int:
    return crc32(json.dumps(body, sort_keys=True).encode())
