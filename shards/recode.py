"""A shard set once more with another codec: every tensor bit-equal, without the raw data.

It may be stopped at any moment; the same call goes on, and ends with the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from shards import codec
from shards.archive import Entry, ShardWriter
from shards.atomic import atomic_write, sync_folder
from shards.errors import BadShard, UserError
from shards.format import INDEX, LEDGER, MANIFEST, Codec
from shards.lock import hold_lock
from shards.manifest import Manifest, ShardInfo, pack_index, sha256
from shards.reader import Array, ShardSet, decode_field
from shards.sample import FrameTensors, Sample

_Note = tuple[ShardInfo, list[Entry]]
_LOOK = "look at the set with cli.py verify-shard"
_AGAIN = "mend it and give the same command: it goes on where it stopped"


def recode(folder: Path, out: Path, pictures: Codec, threads: int = 1) -> Manifest:
    """Write the finished set in `folder` into `out`, its pictures stored as `pictures` says; return the manifest.

    Shards keep their names and samples. Each takes one of the threads.

    Raises:
        UserError: a sample that is not what its checksum says, another set in `out`, a full disk. What is done stays.
    """
    source = ShardSet(folder)
    wanted = {"set": sha256(source.manifest.to_bytes()), "codec": pictures}
    ledger = _side_files(source)
    work = out / ".work"
    if (out / MANIFEST).exists():
        manifest = _finished(source.manifest, out, pictures)
        shutil.rmtree(work, ignore_errors=True)  # of a run that was killed with its last breath
        return manifest
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = hold_lock(work / "lock", exclusive=True)
        try:
            _begin(work, wanted)
            manifest = _recode(source, ledger, out, work, pictures, threads)
            shutil.rmtree(work)
            return manifest
        finally:
            os.close(lock)
    except OSError as error:
        where, met = str(error.filename or out), str(error.strerror)
        raise UserError("cannot write", where=where, met=met, do=_AGAIN) from None


def _side_files(source: ShardSet) -> bytes:
    """The set's ledger; raises `BadShard` unless ledger and index are what the manifest says."""
    manifest, ledger = source.manifest, (source.folder / LEDGER).read_bytes()
    index = (source.folder / INDEX).read_bytes()
    for name, data, wanted in ((INDEX, index, manifest.index_sha256), (LEDGER, ledger, manifest.ledger_sha256)):
        if sha256(data) != wanted:
            raise BadShard("SHA-256", where=str(source.folder / name), met=sha256(data), wanted=wanted, do=_LOOK)
    return ledger


def _finished(source: Manifest, out: Path, pictures: Codec) -> Manifest:
    """The manifest in `out`, if it is that of this very set; raises `UserError` where another stands there."""
    met = Manifest.read(out)
    if replace(met, shards=(), index_sha256="") != replace(source, shards=(), index_sha256="", codec=pictures):
        do = "give another --out"
        raise UserError("another shard set stands here", where=str(out), met=f"{met.source}, {met.codec}", do=do)
    return met


def _begin(work: Path, wanted: dict[str, str]) -> None:
    """Go on with the run that `work` is of, or begin one in an empty folder."""
    plan = work / "plan"
    begun = json.loads(plan.read_bytes()) if plan.exists() else None
    if begun not in (None, wanted) or (begun is None and any(work.parent.glob("*.tar"))):
        raise UserError("another shard set stands here", where=str(work.parent), do="give another --out")
    for leftover in work.glob("*.tmp"):
        leftover.unlink()
    if begun is None:
        atomic_write(plan, json.dumps(wanted).encode())


def _recode(source: ShardSet, ledger: bytes, out: Path, work: Path, pictures: Codec, threads: int) -> Manifest:
    shards, stopped = source.manifest.shards, threading.Event()
    with (
        tqdm(total=len(source), unit="sample", desc=out.name, mininterval=0.5) as bar,
        ThreadPoolExecutor(threads) as pool,
    ):

        def tick(count: int) -> None:
            bar.update(count)
            if stopped.is_set():
                raise CancelledError

        tasks = [pool.submit(_recode_shard, source, i, out, work, pictures, tick) for i in range(len(shards))]
        try:
            for task in as_completed(tasks):
                task.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    notes = [task.result() for task in tasks]
    index = pack_index(entries for _, entries in notes)
    infos = tuple(info for info, _ in notes)
    manifest = replace(source.manifest, shards=infos, index_sha256=sha256(index), codec=pictures)
    for name, data in ((INDEX, index), (LEDGER, ledger), (MANIFEST, manifest.to_bytes())):
        atomic_write(out / name, data, temporary_folder=work)
    return manifest


def _recode_shard(
    source: ShardSet, shard: int, out: Path, work: Path, pictures: Codec, tick: Callable[[int], object]
) -> _Note:
    """Write one tar and then its note; both appear whole or not at all. Where they stand already, nothing is done."""
    name = source.manifest.shards[shard].name
    rows = (source.index["shard"] == shard).nonzero()[0]
    note, temporary = work / f"{name}.json", work / f"{name}.tmp"
    if note.exists():
        body = json.loads(note.read_bytes())
        tick(len(rows))
        return ShardInfo(**body["shard"]), [Entry(**entry) for entry in body["entries"]]
    try:
        with open(temporary, "wb") as file:
            writer = ShardWriter(file, pictures)
            for position in rows:
                writer.write(stored_sample(source, int(position)))
                tick(1)
            digest = writer.close()
            file.flush()
            os.fsync(file.fileno())
        info = ShardInfo(name, len(writer.entries), writer.size, digest)
        os.replace(temporary, out / name)
        sync_folder(out)
    finally:
        temporary.unlink(missing_ok=True)
    body = {"shard": asdict(info), "entries": [asdict(entry) for entry in writer.entries]}
    atomic_write(note, json.dumps(body).encode())
    return info, writer.entries


def stored_sample(shards: ShardSet, position: int) -> Sample:
    """Sample `position` as it was handed to the writer, pictures not normalised.

    Raises:
        BadShard: its bytes are not those that the index counted, or cannot be decoded.
    """
    row, where = shards.index[position], f"{shards.folder}: {shards.key(position)}"
    meta, members = shards.sample(position)
    if (met := zlib.crc32(shards.stored(position))) != row["crc32"]:
        raise BadShard("CRC-32 of the sample", where=where, met=str(met), wanted=str(row["crc32"]), do=_LOOK)
    del meta["crc32"]
    frames: list[dict[str, Array]] = [{} for _ in meta["frames"]]
    for field, data in members.items():
        if field.is_picture:
            value = codec.decode_picture(data, field.shape(shards.recipe, 1)[1])
        else:
            value = decode_field(field, data, shards.recipe)
        frames[(field.frame or 1) - 1][field.name] = value
    return Sample(shards.key(position), meta, tuple(FrameTensors(**frame) for frame in frames))
