"""A finished shard set written once more, in part or stored otherwise, without the raw data.

It may be stopped at any moment; the same call goes on, and ends with the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from shards.archive import Entry, ShardWriter
from shards.atomic import atomic_write, sync_folder
from shards.checksum import crc32
from shards.errors import BadShard, UserError
from shards.format import INDEX, LEDGER, MANIFEST, WORK
from shards.hidden import is_hidden
from shards.lock import hold_lock
from shards.lossy import Psnr
from shards.manifest import Manifest, ShardInfo, pack_index, sha256
from shards.memory import keep_freed_memory
from shards.printable import printable
from shards.program import check_set, copy_again
from shards.reader import ShardSet
from shards.regular_file import read_regular
from shards.strict_json import parse_json

Put = Callable[[ShardWriter, int], object]
"""Writes the sample that stands at a position of the set that is read."""
_AGAIN = "mend it and give the same command: it goes on where it stopped"


@dataclass(frozen=True)
class Part:
    """One tar to be written."""

    name: str
    positions: NDArray[np.int64]
    """Of its samples in the set that is read."""


def rewrite(
    source: ShardSet, out: Path, target: Manifest, ledger: bytes, parts: Sequence[Part], put: Put, threads: int = 1
) -> Manifest:
    """Write the set that `target` tells of into `out`; return its manifest.

    Args:
        target: its shards, the index's checksum and the PSNR that its samples tell of are filled in.
        threads: each takes one tar at a time.

    Raises:
        UserError: another set in `out`, a full disk, what `put` raises. What is done stays.
    """
    keep_freed_memory()
    work = out / WORK
    if (out / MANIFEST).exists():
        met = Manifest.read(out)
        if _unfilled(met) != _unfilled(target):
            raise _another(out)
        shutil.rmtree(work, ignore_errors=True)  # of a run that was killed with its last breath
        return met
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = hold_lock(work / "lock", exclusive=True)
        try:
            _begin(work, {"set": sha256(source.manifest.to_bytes()), "target": sha256(_unfilled(target).to_bytes())})
            _write(out, work, parts, put, target, threads)
            manifest, index = _fill(target, work, parts)
            for name, data in ((INDEX, index), (LEDGER, ledger), (MANIFEST, manifest.to_bytes())):
                atomic_write(out / name, data, temporary_folder=work)
            shutil.rmtree(work)
            return manifest
        finally:
            os.close(lock)
    except OSError as error:
        where, why = str(error.filename or out), str(error.strerror)
        raise UserError("cannot write", where=where, met=why, do=_AGAIN) from None


def read_checked_ledger(source: ShardSet) -> bytes:
    """The ledger of a set; raises `BadShard` unless it is what the manifest says. The index was compared when the set
    was opened.
    """
    path = source.folder / LEDGER
    expected = source.manifest.ledger_sha256
    try:
        ledger = read_regular(path)
    except OSError as error:
        raise BadShard(
            "not a ledger", where=str(path), met=str(error.strerror), wanted=f"SHA-256 {expected}", do=copy_again()
        ) from None
    if (digest := sha256(ledger)) != expected:
        raise BadShard("SHA-256", where=str(path), met=digest, wanted=expected, do=check_set())
    return ledger


def checked_bytes(source: ShardSet, position: int) -> memoryview:
    """A sample's bytes in its tar, compared once more where they are copied.

    Raises:
        BadShard: they are not those that the index counted.
    """
    data, wanted = source.stored(position), int(source.index[position]["crc32"])
    if (met := crc32(data)) != wanted:
        where = f"{source.folder}: {source.key(position)}"
        raise BadShard("CRC-32 of the sample", where=where, met=str(met), wanted=str(wanted), do=check_set())
    return data


def _unfilled(manifest: Manifest) -> Manifest:
    return replace(manifest, shards=(), index_sha256="", psnr=None)


def _another(out: Path) -> UserError:
    return UserError("another shard set stands here", where=str(out), do="give another --out")


def _begin(work: Path, wanted: dict[str, str]) -> None:
    """Go on with the run that `work` is of, or begin one in an empty folder."""
    plan = work / "plan"
    try:
        begun = parse_json(plan.read_bytes()) if plan.exists() else None
    except ValueError:
        begun = {}  # damaged: of nobody knows which set
    tars = [tar for tar in work.parent.glob("*.tar") if not is_hidden(tar.name)]
    if begun not in (None, wanted) or (begun is None and tars):
        raise _another(work.parent)
    for leftover in work.glob("*.tmp"):
        leftover.unlink()
    if begun is None:
        atomic_write(plan, json.dumps(wanted).encode())


def _write(out: Path, work: Path, parts: Sequence[Part], put: Put, target: Manifest, threads: int) -> None:
    stopped = threading.Event()
    with (
        tqdm(total=target.samples, unit="sample", desc=printable(out.name), mininterval=0.5) as bar,
        ThreadPoolExecutor(threads) as pool,
    ):

        def tick(count: int) -> None:
            bar.update(count)
            if stopped.is_set():
                raise CancelledError

        tasks = [pool.submit(_write_part, part, out, work, put, target, tick) for part in parts]
        try:
            for task in as_completed(tasks):
                task.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write_part(part: Part, out: Path, work: Path, put: Put, target: Manifest, tick: Callable[[int], object]) -> None:
    """Write one tar and then its note; both appear whole or not at all. Where they stand already, nothing is done."""
    tar, note, temporary = out / part.name, work / f"{part.name}.json", work / f"{part.name}.tmp"
    if note.exists() and tar.exists():
        try:
            stands = tar.stat().st_size == _read_note(note)[0].bytes
        except (ValueError, TypeError, KeyError):
            stands = False  # damaged on its disk: the tar is written once more
        if stands:
            tick(len(part.positions))
            return
    try:
        with open(temporary, "wb") as file:
            writer = ShardWriter(file, target.codec)
            for position in part.positions:
                put(writer, int(position))
                tick(1)
            digest = writer.close()
            file.flush()
            os.fsync(file.fileno())
        info = ShardInfo(part.name, len(writer.entries), writer.size, digest)
        os.replace(temporary, tar)
        sync_folder(out)
    finally:
        temporary.unlink(missing_ok=True)
    body = {"shard": asdict(info), "entries": [asdict(entry) for entry in writer.entries]}
    atomic_write(note, json.dumps(body).encode())


def _read_note(note: Path) -> tuple[ShardInfo, list[Entry]]:
    body = parse_json(note.read_bytes())
    return ShardInfo(**body["shard"]), [Entry(**entry) for entry in body["entries"]]


def _fill(target: Manifest, work: Path, parts: Sequence[Part]) -> tuple[Manifest, bytes]:
    """The manifest and the index of what stands; a note at a time, for those of a large set take much memory."""
    infos: list[ShardInfo] = []
    ratios = array("d")

    def entries() -> Iterator[list[Entry]]:
        for part in parts:
            info, found = _read_note(work / f"{part.name}.json")
            infos.append(info)
            ratios.extend(ratio for entry in found for ratio in entry.psnr)
            yield found

    index = pack_index(entries())
    return replace(target, shards=tuple(infos), index_sha256=sha256(index), psnr=Psnr.of(ratios)), index
