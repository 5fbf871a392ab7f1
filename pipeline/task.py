"""One shard, from its raw inputs to a tar under its final name. The unit of work, of parallelism and of resuming."""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.boundary import input_errors, read_sample
from pipeline.plan import Job
from pipeline.raw import RawInput
from shards.archive import Entry, ShardWriter, encode_sample
from shards.errors import BadInput, DroppedInput
from shards.format import WORK
from shards.manifest import LedgerLine, ShardInfo
from shards.memory import keep_freed_memory
from shards.sample import Sample
from shards.storage.store import Store
from shards.strict_json import parse_json


@dataclass(frozen=True)
class Done:
    """What is noted of a shard that is done. The note is written after the tar: it is the mark that the tar stands."""

    shard: ShardInfo
    """With 0 samples: no tar was written, every input is in the ledger."""
    entries: list[Entry] = field(default_factory=list)
    ledger: list[LedgerLine] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    objects: int = 0

    @property
    def bad(self) -> int:
        return sum(line.bad for line in self.ledger)

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Done:
        """Raises `ValueError` where `data` is no note, or a damaged one."""
        try:
            body = parse_json(data)
            note = cls(
                shard=ShardInfo(**body["shard"]),
                entries=[Entry(**entry) for entry in body["entries"]],
                ledger=[LedgerLine(**line) for line in body["ledger"]],
                notes=body["notes"],
                objects=body["objects"],
            )
            counts = [note.objects, note.shard.samples, note.shard.bytes, *note.notes.values()]
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a note of a shard: {error}") from None
        if any(type(count) is not int or count < 0 for count in counts) or note.shard.samples != len(note.entries):
            raise ValueError("not a note of a shard: counts")
        return note


def note_of(name: str) -> str:
    """Where the note of the shard `name` stands in a store."""
    return f"{WORK}/{name}.json"


@dataclass(frozen=True)
class Watch:
    """Functions that `write_shard` calls as it goes."""

    tick: Callable[[int], object] = lambda count: None
    """Called with the number of inputs that are done since the last call."""
    left_out: Callable[[LedgerLine], object] = lambda line: None
    """Called with each input that did not become a sample, at once."""


class Reading:
    """A file that says which process reads which input of a shard: it stays where the process is killed.

    Args:
        file: the name ends as `READING` says.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        self._file.unlink(missing_ok=True)

    def begin(self, path: str) -> None:
        line = f"{os.getpid()} {path}\n".encode("utf-8", "surrogateescape")
        os.pwrite(self._descriptor, line, 0)

    @staticmethod
    def parse(file: Path) -> tuple[int, str] | None:
        """(process, input) that the file at `file` names; None where it had not begun with one, or is gone."""
        try:
            process, _, path = file.read_bytes().partition(b"\n")[0].decode("utf-8", "surrogateescape").partition(" ")
        except OSError:
            return None
        return (int(process), path) if process.isdecimal() else None


READING = ".reading.tmp"


@dataclass
class _Made:
    """Record of what became of the inputs of a shard."""

    job: Job
    writer: ShardWriter
    watch: Watch
    ledger: dict[int, LedgerLine] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    objects: int = 0

    def leave_out(self, number: int, path: str, error: BadInput) -> None:
        self.ledger[number] = line = LedgerLine(path, error.what, error.detail, not isinstance(error, DroppedInput))
        self.watch.left_out(line)

    def write(self, number: int, path: str, sample: Sample, counted: Counter[str]) -> None:
        """Encode and write a sample. One that cannot be stored is left out: nothing of it is in the tar."""
        try:
            with input_errors(self.job.root, path):
                members = encode_sample(sample, self.job.codec)
        except BadInput as error:
            self.leave_out(number, path, error)
            return
        self.writer.put(sample, members)
        self.notes += counted
        self.objects += len(sample.meta["objects"])


def write_shard(
    job: Job, inputs: Sequence[RawInput], name: str, store: Store, temporary_folder: Path, watch: Watch
) -> Done:
    """Write `name.tar` and then its note `.work/name.json` into `store`; both appear whole or not at all.

    The bytes follow from the arguments alone: done twice, even at the same time, it does no harm.

    Args:
        temporary_folder: for the tar while it grows, on a local disk; of a `LocalFolder`, on the disk of that folder.
    """
    keep_freed_memory()
    tar, unique = f"{name}.tar", f"{name}.{uuid.uuid4().hex}"
    temporary = temporary_folder / f"{unique}.tmp"
    try:
        # While a sample is encoded and written, the next is read and resized: most of both is done without the
        # interpreter's lock.
        with (
            Reading(temporary_folder / f"{unique}{READING}") as reading,
            open(temporary, "wb") as file,
            ThreadPoolExecutor(1) as encoder,
        ):
            made = _Made(job, writer := ShardWriter(file, job.codec), watch)
            written: Future[None] | None = None
            for number, item in enumerate(inputs):
                reading.begin(item.path)
                try:
                    sample, counted = read_sample(job, item.path)
                except BadInput as error:
                    made.leave_out(number, item.path, error)
                else:
                    if written:
                        written.result()
                    written = encoder.submit(made.write, number, item.path, sample, counted)
                watch.tick(1)
            if written:
                written.result()
            sha256 = writer.close()
            file.flush()
            os.fsync(file.fileno())
        info = ShardInfo(tar, len(writer.entries), writer.size if writer.entries else 0, sha256)
        if writer.entries:
            store.put_file(temporary, tar)
    finally:
        temporary.unlink(missing_ok=True)
    ledger = [line for _, line in sorted(made.ledger.items())]
    done = Done(info, writer.entries, ledger, dict(sorted(made.notes.items())), made.objects)
    store.put(note_of(name), done.to_bytes())
    return done
