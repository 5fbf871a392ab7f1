"""One shard, from its raw inputs to a tar under its final name. The unit of work, of parallelism and of resuming."""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.boundary import input_errors, read_sample
from pipeline.dataset import Job
from pipeline.raw import RawInput
from shards.archive import Entry, ShardWriter, encode_sample
from shards.errors import BadInput, DroppedInput
from shards.format import WORK
from shards.manifest import LedgerLine, ShardInfo, sha256
from shards.memory import keep_freed_memory
from shards.sample import Sample
from shards.storage.store import Store
from shards.strict_json import parse_json
from shards.table_file import KINDS, PartWriter
from shards.table_kind import WrittenContent


@dataclass(frozen=True)
class PartInfo:
    """A shard's part of a table, kept beside its note."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardNote:
    """Note of a shard that is kept until its set is finished. It is written after the tar: it marks the tar as done."""

    shard: ShardInfo
    """With 0 samples: no tar was written, every input is in the ledger."""
    entries: list[Entry] = field(default_factory=list)
    """Rows of the index."""
    ledger: list[LedgerLine] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    """Counts that were made on the way."""
    objects: int = 0
    without_objects: int = 0
    """Number of samples without objects."""
    parts: dict[str, PartInfo] = field(default_factory=dict)
    """By the name of the table. Older releases wrote none, or not of all tables; nor does a shard without samples."""

    @property
    def bad(self) -> int:
        """Number of bad inputs."""
        return sum(line.bad for line in self.ledger)

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ShardNote:
        """Parse a note; raises `ValueError` where `data` is none, or a damaged one."""
        try:
            body = parse_json(data)
            note = cls(
                shard=ShardInfo(**body["shard"]),
                entries=[Entry(**entry) for entry in body["entries"]],
                ledger=[LedgerLine(**line) for line in body["ledger"]],
                notes=body["notes"],
                objects=body["objects"],
                without_objects=body.get("without_objects", 0),  # older releases knew no such samples
                parts={name: PartInfo(**part) for name, part in body.get("parts", {}).items()},  # nor these
            )
            counts = [note.objects, note.without_objects, note.shard.samples, note.shard.bytes, *note.notes.values()]
            counts += [part.bytes for part in note.parts.values()]
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a note of a shard: {error}") from None
        if any(type(count) is not int or count < 0 for count in counts) or note.shard.samples != len(note.entries):
            raise ValueError("not a note of a shard: counts")
        return note


def note_name(shard_name: str) -> str:
    """Return the name of a shard's note in a store."""
    return f"{WORK}/{shard_name}.json"


def part_name(shard_name: str, table: str) -> str:
    """Return the name in a store of a shard's part of a table."""
    return f"{WORK}/{shard_name}.{table}{PART}"


PART = ".part"


@dataclass(frozen=True)
class Progress:
    """Functions that are called while shards are written."""

    advance: Callable[[int], object] = lambda count: None
    """Called with the number of inputs that are done since the last call."""
    leave_out: Callable[[LedgerLine], object] = lambda line: None
    """Called with each input that does not become a sample, at once."""


class CurrentInput:
    """A file that names the input that a process is reading. Where the process is killed, the file stays.

    Args:
        file: its name ends with `CURRENT_INPUT`.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def __enter__(self) -> CurrentInput:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        self._file.unlink(missing_ok=True)

    def set(self, path: str) -> None:
        """Name the input that is read from now on."""
        line = f"{os.getpid()} {path}\n".encode("utf-8", "surrogateescape")
        os.pwrite(self._descriptor, line, 0)

    @staticmethod
    def parse(file: Path) -> tuple[int, str] | None:
        """Return (process, input) that a file names; None where it names none yet, or is gone."""
        try:
            process, _, path = file.read_bytes().partition(b"\n")[0].decode("utf-8", "surrogateescape").partition(" ")
        except OSError:
            return None
        return (int(process), path) if process.isdecimal() else None


CURRENT_INPUT = ".reading.tmp"


@dataclass
class _ShardContent:
    """Results of a shard's inputs so far."""

    job: Job
    writer: ShardWriter
    progress: Progress
    ledger: dict[int, LedgerLine] = field(default_factory=dict)
    """Lines by the input's number within the shard."""
    notes: Counter[str] = field(default_factory=Counter)
    objects: int = 0
    without_objects: int = 0
    parts: dict[str, PartWriter] = field(default_factory=lambda: {kind.name: PartWriter(kind) for kind in KINDS})
    """Rows of the tables, by their names."""

    def leave_out(self, number: int, path: str, error: BadInput) -> None:
        line = LedgerLine(path, error.what, error.detail, not isinstance(error, DroppedInput))
        self.ledger[number] = line
        self.progress.leave_out(line)

    def write(self, number: int, path: str, sample: Sample, counted: Counter[str]) -> None:
        """Encode and write a sample. One that cannot be stored is left out: nothing of it is in the tar."""
        try:
            with input_errors(self.job.root, path):
                members = encode_sample(sample, self.job.codec)
                content = WrittenContent(sample, len(self.writer.entries), members, self.job.codec)
                rows = {kind.name: kind.rows(content) for kind in KINDS}
        except BadInput as error:
            self.leave_out(number, path, error)
            return
        self.writer.put(sample, members)
        for name, part in self.parts.items():
            part.add(rows[name])
        self.notes += counted
        self.objects += len(sample.meta["objects"])
        self.without_objects += not sample.meta["objects"]

    def note(self, tar: str, digest: str, parts: Mapping[str, bytes]) -> ShardNote:
        """Return the note of the finished tar, with SHA-256 `digest`."""
        entries = self.writer.entries
        info = ShardInfo(tar, len(entries), self.writer.size if entries else 0, digest)
        ledger = [line for _, line in sorted(self.ledger.items())]
        notes = dict(sorted(self.notes.items()))
        kept = {name: PartInfo(len(data), sha256(data)) for name, data in parts.items()}
        return ShardNote(info, entries, ledger, notes, self.objects, self.without_objects, kept)


def write_shard(
    job: Job, inputs: Sequence[RawInput], name: str, store: Store, temporary_folder: Path, progress: Progress
) -> ShardNote:
    """Write `name.tar`, its parts of the tables and then its note `.work/name.json` into `store`.

    Each appears whole or not at all.

    The bytes follow from the arguments alone: done twice, even at the same time, it does no harm.

    Args:
        temporary_folder: for the tar while it grows, on a local disk; for a `Folder`, on the disk of that folder.
    """
    keep_freed_memory()
    tar = f"{name}.tar"
    unique = f"{name}.{uuid.uuid4().hex}"
    temporary = temporary_folder / f"{unique}.tmp"
    try:
        with CurrentInput(temporary_folder / f"{unique}{CURRENT_INPUT}") as current, open(temporary, "wb") as file:
            content = _ShardContent(job, ShardWriter(file, job.codec), progress)
            _write_samples(inputs, content, current)
            digest = content.writer.close()
            file.flush()
            os.fsync(file.fileno())
        parts = {table: part.close() for table, part in content.parts.items()} if content.writer.entries else {}
        note = content.note(tar, digest, parts)
        if note.entries:
            store.put_file(temporary, tar)
    finally:
        temporary.unlink(missing_ok=True)
    for table, data in parts.items():
        store.put(part_name(name, table), data)
    store.put(note_name(name), note.to_bytes())
    return note


def _write_samples(inputs: Sequence[RawInput], content: _ShardContent, current: CurrentInput) -> None:
    # While a sample is encoded and written, the next is read and resized: most of both is done without the
    # interpreter's lock.
    with ThreadPoolExecutor(1) as encoder:
        written: Future[None] | None = None
        for number, item in enumerate(inputs):
            current.set(item.path)
            try:
                sample, counted = read_sample(content.job, item.path)
            except BadInput as error:
                content.leave_out(number, item.path, error)
            else:
                if written:
                    written.result()
                written = encoder.submit(content.write, number, item.path, sample, counted)
            content.progress.advance(1)
        if written:
            written.result()
