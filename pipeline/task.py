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

from pipeline.formats import make_sample
from pipeline.plan import Job
from pipeline.raw import RawInput
from pipeline.records import open_records
from pipeline.store import WORK, Store
from shards.archive import Entry, ShardWriter
from shards.errors import BadInput, DroppedInput
from shards.manifest import LedgerLine, ShardInfo
from shards.memory import keep_freed_memory
from shards.sample import Sample


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
        body = json.loads(data)
        return cls(
            shard=ShardInfo(**body["shard"]),
            entries=[Entry(**entry) for entry in body["entries"]],
            ledger=[LedgerLine(**line) for line in body["ledger"]],
            notes=body["notes"],
            objects=body["objects"],
        )


def note_of(name: str) -> str:
    """Where the note of the shard `name` stands in a store."""
    return f"{WORK}/{name}.json"


def read_sample(job: Job, path: str) -> tuple[Sample, Counter[str]]:
    """Read one input and make its sample; raises `BadInput`, which names the file."""
    try:
        path.encode()
        parts = open_records(job.records).parts(path)
        return make_sample(job.source.load(job.root, path, job.options, parts), job.recipe)
    except UnicodeEncodeError:
        raise BadInput("file name is not UTF-8", where=repr(path), do="rename it") from None
    except BadInput as error:
        raise type(error)(error.what, where=path, met=error.met, wanted=error.wanted, do=error.do) from None


def write_shard(
    job: Job, inputs: Sequence[RawInput], name: str, store: Store, temporary_folder: Path, tick: Callable[[int], object]
) -> Done:
    """Write `name.tar` and then its note `.work/name.json` into `store`; both appear whole or not at all.

    The bytes follow from the arguments alone: done twice, even at the same time, it does no harm.

    Args:
        temporary_folder: for the tar while it grows, on a local disk; of a `Folder`, on the disk of that folder.
        tick: called with 1 after each input.
    """
    keep_freed_memory()
    tar, temporary = f"{name}.tar", temporary_folder / f"{name}.{uuid.uuid4().hex}.tmp"
    ledger: list[LedgerLine] = []
    notes: Counter[str] = Counter()
    objects = 0
    try:
        # While a sample is encoded and written, the next is read and resized: most of both is done without the
        # interpreter's lock.
        with open(temporary, "wb") as file, ThreadPoolExecutor(1) as encoder:
            writer = ShardWriter(file, job.codec)
            written: Future[None] | None = None
            for item in inputs:
                try:
                    sample, counted = read_sample(job, item.path)
                except BadInput as error:
                    detail = f"met {error.met}; wanted {error.wanted}" + (f"; {error.do}" if error.do else "")
                    ledger.append(LedgerLine(item.path, error.what, detail, not isinstance(error, DroppedInput)))
                else:
                    if written:
                        written.result()
                    written = encoder.submit(writer.write, sample)
                    notes += counted
                    objects += len(sample.meta["objects"])
                tick(1)
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
    done = Done(info, writer.entries, ledger, dict(sorted(notes.items())), objects)
    store.put(note_of(name), done.to_bytes())
    return done
