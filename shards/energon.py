"""Files for Megatron-Energon beside the tars of a set: a folder `.nv-meta`, and the places of the samples in each tar.

It is what `energon prepare` writes, made of the index alone where that suffices, and with a sample loader that calls
this project's decoder. The bytes follow from the set and the share of its validation part; those of index.sqlite also
from SQLite's version. Samples are not read and not compared.
"""

from __future__ import annotations

import json
import os
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from tqdm import tqdm

from shards.archive import BLOCK, MappedTar, split_name
from shards.atomic import atomic_write, sync_folder
from shards.errors import UserError
from shards.format import VERSION
from shards.manifest import ShardInfo
from shards.printable import printable
from shards.program import command
from shards.reader import ShardSet

FOLDER = ".nv-meta"
_INFO = ".info.json"
_INDEX = "index.sqlite"
_PLACES = ".idx"
"""End of the name of the file that holds the places of a tar's samples; the tar's name stands before it."""
_DATASET = """\
sample_type:
  __module__: shards.energon_sample
  __class__: SegmentationSample
part_filter: sample_loader.py:part_filter
sample_loader: sample_loader.py:sample_loader
decoder: null
"""
_LOADER = '''\
"""Written by `sa2va-shards energon`: decodes the samples of this set for Megatron-Energon."""

from shards.energon_sample import load_sample


def part_filter(part):
    """Read every member of a sample: its JSON has a checksum of each."""
    return True


def sample_loader(sample):
    """Return the fields of shards.energon_sample.SegmentationSample."""
    return load_sample(sample)
'''
_TABLES = """
PRAGMA page_size = 4096;
CREATE TABLE samples (
    tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, sample_index INTEGER NOT NULL,
    byte_offset INTEGER, byte_size INTEGER
);
CREATE TABLE sample_parts (
    tar_file_id INTEGER, sample_index INTEGER, part_name TEXT, content_byte_offset INTEGER, content_byte_size INTEGER
);
"""
_INDICES = """
CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full
    ON sample_parts(tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size);
"""


def prepare(folder: Path, share: float = 0.0) -> dict[str, list[str]]:
    """Write what Megatron-Energon needs to load the set in `folder`, in place of what an earlier run wrote.

    Args:
        share: of the samples that go into the part `val`, in whole tars, the last ones.

    Returns:
        The names of the tars of each part.

    Raises:
        UserError: the set cannot be prepared, or the folder cannot be written.
    """
    shards = ShardSet(folder)
    manifest = shards.manifest
    if manifest.version < VERSION:
        do = f"write it again with {command(f'recode {folder} --codec {manifest.codec} --out NEW')}"
        raise UserError("a set of format version 1", where=str(folder), do=do)
    keys = shards.index["key"]
    if len(np.unique(keys)) < len(keys):
        raise UserError("two samples of one key, which Megatron-Energon refuses", where=str(folder))
    parts = _parts(manifest.shards, share, str(folder))
    inside = folder / FOLDER
    try:
        inside.mkdir(exist_ok=True)
        (inside / _INFO).unlink(missing_ok=True)  # without it the folder is no dataset, until all is written
        for leftover in inside.glob(".*.tmp"):  # of a run that was killed
            leftover.unlink()
        _write_places(shards, inside)
        _write_index(shards, inside / _INDEX)
        atomic_write(inside / "index.uuid", str(uuid.UUID(manifest.checksum[:32])).encode())
        atomic_write(inside / "dataset.yaml", _DATASET.encode())
        atomic_write(inside / "sample_loader.py", _LOADER.encode())
        atomic_write(inside / "split.yaml", _split(parts).encode())
        counts = {info.name: info.samples for info in manifest.shards}
        atomic_write(inside / _INFO, (json.dumps({"shard_counts": counts}, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError("cannot be written", where=str(error.filename or inside), met=str(error.strerror)) from None
    return parts


def _parts(tars: Sequence[ShardInfo], share: float, where: str) -> dict[str, list[str]]:
    """Return the names of the tars of each part; raises `UserError` where none is left for training."""
    names = [info.name for info in tars]
    count = 0
    samples = 0
    while share > 0 and (not count or samples < share * sum(info.samples for info in tars)):
        count += 1
        samples += tars[-count].samples
    if count == len(tars):
        do = f"cut the set in two with {command('split')}, or write it with a smaller --shard-size"
        raise UserError("too few tars for two parts", where=where, met=str(len(tars)), do=do)
    return {"train": names[: len(names) - count], "val": names[len(names) - count :], "test": []}


def _split(parts: dict[str, list[str]]) -> str:
    lines = ["split_parts:"]
    for part, names in parts.items():
        lines += [f"  {part}:", *(f"  - {json.dumps(name)}" for name in names)] if names else [f"  {part}: []"]
    return "\n".join([*lines, "exclude: []", ""])


def _write_places(shards: ShardSet, temporary_folder: Path) -> None:
    """Write beside each tar where its samples begin, and where the last one ends: uint64, little endian."""
    for shard, info in enumerate(shards.manifest.shards):
        rows = shards.index[shards.index["shard"] == shard]
        ends = rows["offset"] + rows["size"]
        places = np.concatenate([rows["offset"], ends[-1:]]).astype("<u8")
        atomic_write(shards.folder / f"{info.name}{_PLACES}", places.tobytes(), temporary_folder)


def _write_index(shards: ShardSet, path: Path) -> None:
    """Write the database of samples and members, by which Megatron-Energon finds single ones."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(temporary)) as database:
            database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _TABLES)
            total = len(shards)
            with tqdm(total=total, unit="sample", desc=printable(shards.folder.name), mininterval=0.5) as bar:
                for shard, info in enumerate(shards.manifest.shards):
                    rows = shards.index[shards.index["shard"] == shard]
                    places = zip(rows["key"].tolist(), rows["offset"].tolist(), rows["size"].tolist(), strict=True)
                    samples = ((shard, key.decode(), n, at, size) for n, (key, at, size) in enumerate(places))
                    database.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", samples)
                    members = _members(shards.folder / info.name, shard)
                    database.executemany("INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", members)
                    bar.update(info.samples)
            database.executescript(_INDICES)
            database.commit()
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except sqlite3.Error as error:
        raise UserError("cannot be written", where=str(path), met=str(error)) from None
    finally:
        temporary.unlink(missing_ok=True)


def _members(tar: Path, shard: int) -> Iterator[tuple[int, int, str, int, int]]:
    """Yield (position of the tar, position of the sample in it, name after the key, place, size) of each member."""
    last = ""
    sample = -1
    for offset, name, data in MappedTar(tar).members():
        key, part = split_name(name)
        sample += key != last
        last = key
        yield shard, sample, part, offset + BLOCK, len(data)
