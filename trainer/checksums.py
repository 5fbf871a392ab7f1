"""`checksums.json` in a checkpoint: size and CRC-32 of its files, and the CRC-32 of itself.

Bytes that change on a disk or on the way to another one are found before they are trained on or exported. CRC-32 finds
every single flipped bit, at 20 GB/s; SHA-256, at 1.2 GB/s, would take as long as writing the files.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from shards.atomic import atomic_write
from shards.checksum import crc32
from shards.errors import UserError
from shards.regular_file import open_regular, read_regular

log = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"
_VERSION = 1
_PIECE = 16 << 20  # bytes
_DO = "it has changed since it was written: take another copy of it"


class ListedFiles:
    """Files of a folder that `checksums.json` lists, which is written when the `with` block ends well."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, dict[str, int]] = {}

    def __enter__(self) -> ListedFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            body = {"version": _VERSION, "files": self._files}
            own = {**body, "crc32": _own_checksum(body)}
            atomic_write(self.folder / CHECKSUMS, (json.dumps(own, indent=1, sort_keys=True) + "\n").encode())

    def write(self, name: str, data: bytes) -> None:
        """Write and list the file `name`. Raises `OSError`."""
        self._files[name] = {"bytes": len(data), "crc32": crc32(data)}
        atomic_write(self.folder / name, data)

    def add(self, name: str) -> None:
        """List the file `name`, which stands there. Raises `OSError`."""
        self._files[name] = _measured(self.folder / name)


def check_files(folder: Path, names: Iterable[str] | None = None) -> bool:
    """Compare files with `checksums.json` in the same folder; return whether there is one.

    Args:
        folder: of a checkpoint.
        names: of the files to compare, as far as they are listed; all that are listed by default.

    Raises:
        UserError: a file is missing or has changed, or the list itself has.
    """
    listed = _read(folder / CHECKSUMS)
    if listed is None:
        return False
    for name in listed if names is None else [name for name in names if name in listed]:
        path, wanted = folder / name, listed[name]
        try:
            met = _measured(path)
        except FileNotFoundError:
            raise UserError("no such file", where=str(path), wanted=f"as {CHECKSUMS} says") from None
        except OSError as error:
            raise UserError("cannot be read", where=str(path), met=str(error)) from None
        if met != wanted:
            said = [f"{sums['bytes']:,} bytes, CRC-32 {sums['crc32']}" for sums in (met, wanted)]
            do = f"{_DO}; if the change was meant, remove {CHECKSUMS}"
            raise UserError("not the bytes that were written", where=str(path), met=said[0], wanted=said[1], do=do)
    return True


def check_checkpoint(folder: Path, names: Iterable[str] | None = None) -> None:
    """As `check_files`; say in the log where the checkpoint is of a release that wrote no checksums."""
    if not check_files(folder, names):
        log.warning("%s: no %s, as an earlier release left it: its files are taken unchecked", folder, CHECKSUMS)


def _measured(path: Path) -> dict[str, int]:
    size, checksum = 0, 0
    with open_regular(path) as file:
        while piece := file.read(_PIECE):
            size += len(piece)
            checksum = crc32(piece, checksum)
    return {"bytes": size, "crc32": checksum}


def _read(path: Path) -> dict[str, dict[str, int]] | None:
    """The files listed in `path`; None where there is no such file."""
    try:
        body = json.loads(read_regular(path))
        own = body.pop("crc32")
        if body["version"] == _VERSION and own == _own_checksum(body):
            files: dict[str, dict[str, int]] = body["files"]
            return files
        met = f"version {body['version']}, CRC-32 {own}"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        met = str(error)
    wanted = f"version {_VERSION} and the CRC-32 of itself"
    raise UserError("not a list of checksums", where=str(path), met=met, wanted=wanted, do=_DO)


def _own_checksum(body: dict[str, Any]) -> int:
    return crc32(json.dumps(body, sort_keys=True).encode())
