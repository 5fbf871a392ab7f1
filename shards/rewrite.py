"""Writing a finished shard set again, in part or with another codec, without the raw data.

It may be stopped at any moment. The same call then goes on and ends with the same bytes.
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
from shards.atomic import atomic_file, atomic_write
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
from shards.table_copy import write_copied_tables

WriteSample = Callable[[ShardWriter, int], object]
"""Writes the sample at this position of the source set."""
_AGAIN = "mend it and give the same command: it goes on where it stopped"


@dataclass(frozen=True)
class PlannedTar:
    """One tar to be written."""

    name: str
    positions: NDArray[np.int64]
    """(N,) positions of its samples in the source set."""


def rewrite(
    source: ShardSet,
    out: Path,
    target: Manifest,
    ledger: bytes,
    tars: Sequence[PlannedTar],
    write_sample: WriteSample,
    threads: int = 1,
    same_pixels: bool = True,
) -> Manifest:
    """Write the set that `target` describes into `out`; return its manifest.

    Args:
        target: manifest of the new set; its shards, checksum of the index and PSNR are filled in here.
        threads: each writes one tar at a time.
        same_pixels: whether the new set's pictures have the pixels that those of `source` have.

    Raises:
        UserError: another set is in `out`, the disk is full, or what `write_sample` raises. Finished tars stay.
    """
    keep_freed_memory()
    work = out / WORK
    if (out / MANIFEST).exists():
        finished = Manifest.read(out)
        if _unfilled(finished) != _unfilled(target):
            raise _another_set(out)
        shutil.rmtree(work, ignore_errors=True)  # of a run that was killed after it wrote the manifest
        return finished
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = hold_lock(work / "lock", exclusive=True)
        try:
            _begin(work, {"set": sha256(source.manifest.to_bytes()), "target": sha256(_unfilled(target).to_bytes())})
            _write(out, work, tars, write_sample, target, threads)
            manifest, index = _fill(target, work, tars)
            for name, data in ((INDEX, index), (LEDGER, ledger)):
                atomic_write(out / name, data, temporary_folder=work)
            positions = np.concatenate([planned.positions for planned in tars])
            write_copied_tables(source, ShardSet(out, manifest=manifest), positions, work, same_pixels)
            atomic_write(out / MANIFEST, manifest.to_bytes(), temporary_folder=work)
            shutil.rmtree(work)
            return manifest
        finally:
            os.close(lock)
    except OSError as error:
        where = str(error.filename or out)
        raise UserError("cannot write", where=where, met=str(error.strerror), do=_AGAIN) from None


def read_checked_ledger(source: ShardSet) -> bytes:
    """Return the ledger of a set; raises `BadShard` unless it has the manifest's checksum."""
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
    """Return the bytes of a sample in its tar, to be copied; raises `BadShard` unless they have the index's CRC-32."""
    data = source.sample_bytes(position)
    expected = int(source.index[position]["crc32"])
    if (checksum := crc32(data)) != expected:
        where = f"{source.folder}: {source.key(position)}"
        raise BadShard("CRC-32 of the sample", where=where, met=str(checksum), wanted=str(expected), do=check_set())
    return data


def _unfilled(manifest: Manifest) -> Manifest:
    """Return the manifest as it is known before anything is written."""
    return replace(manifest, shards=(), index_sha256="", psnr=None)


def _another_set(out: Path) -> UserError:
    return UserError("another shard set stands here", where=str(out), do="give another --out")


def _begin(work: Path, expected: dict[str, str]) -> None:
    """Go on with the run whose files are in `work`, or begin one in an empty folder."""
    plan = work / "plan"
    try:
        begun = parse_json(plan.read_bytes()) if plan.exists() else None
    except ValueError:
        begun = {}  # damaged: of an unknown set
    written = [tar for tar in work.parent.glob("*.tar") if not is_hidden(tar.name)]
    if begun not in (None, expected) or (begun is None and written):
        raise _another_set(work.parent)
    for leftover in work.glob("*.tmp"):
        leftover.unlink()
    if begun is None:
        atomic_write(plan, json.dumps(expected).encode())


def _write(
    out: Path, work: Path, tars: Sequence[PlannedTar], write_sample: WriteSample, target: Manifest, threads: int
) -> None:
    stopped = threading.Event()
    with (
        tqdm(total=target.samples, unit="sample", desc=printable(out.name), mininterval=0.5) as bar,
        ThreadPoolExecutor(threads) as pool,
    ):

        def tick(count: int) -> None:
            bar.update(count)
            if stopped.is_set():
                raise CancelledError

        tasks = [pool.submit(_write_tar, planned, out, work, write_sample, target, tick) for planned in tars]
        try:
            for task in as_completed(tasks):
                task.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write_tar(
    planned: PlannedTar,
    out: Path,
    work: Path,
    write_sample: WriteSample,
    target: Manifest,
    tick: Callable[[int], object],
) -> None:
    """Write one tar and then its note, unless both exist. Each appears whole or not at all."""
    tar = out / planned.name
    note = work / f"{planned.name}.json"
    if note.exists() and tar.exists():
        try:
            is_done = tar.stat().st_size == _read_note(note)[0].bytes
        except (ValueError, TypeError, KeyError):
            is_done = False  # damaged on its disk: the tar is written again
        if is_done:
            tick(len(planned.positions))
            return
    with atomic_file(tar, work / f"{planned.name}.tmp") as file:
        writer = ShardWriter(file, target.codec)
        for position in planned.positions:
            write_sample(writer, int(position))
            tick(1)
        digest = writer.close()
    info = ShardInfo(planned.name, len(writer.entries), writer.size, digest)
    body = {"shard": asdict(info), "entries": [asdict(entry) for entry in writer.entries]}
    atomic_write(note, json.dumps(body).encode())


def _read_note(note: Path) -> tuple[ShardInfo, list[Entry]]:
    body = parse_json(note.read_bytes())
    return ShardInfo(**body["shard"]), [Entry(**entry) for entry in body["entries"]]


def _fill(target: Manifest, work: Path, tars: Sequence[PlannedTar]) -> tuple[Manifest, bytes]:
    """Return manifest and index of the written tars. One note is read at a time: all of them take much memory."""
    infos: list[ShardInfo] = []
    ratios = array("d")

    def entries() -> Iterator[list[Entry]]:
        for planned in tars:
            info, found = _read_note(work / f"{planned.name}.json")
            infos.append(info)
            ratios.extend(ratio for entry in found for ratio in entry.psnr)
            yield found

    index = pack_index(entries())
    return replace(target, shards=tuple(infos), index_sha256=sha256(index), psnr=Psnr.summarise(ratios)), index
