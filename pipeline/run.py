"""A sharding run: plan, have an engine write the shards, put down index, ledger and manifest.

It may be killed at any moment; the same call goes on and ends with the same bytes.
"""

from __future__ import annotations

import errno
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from pipeline.engines import AGAIN, EngineName, engine_named
from pipeline.estimate import check_room, free_bytes
from pipeline.finish import finish, finished_manifest, read_manifest, too_many_bad
from pipeline.plan import Plan
from pipeline.raw_files import check_unchanged
from pipeline.task import Watch
from pipeline.work import Share, Work
from shards.errors import UserError
from shards.format import MANIFEST, WORK
from shards.manifest import LedgerLine, Manifest
from shards.printable import printable
from shards.size import size_text
from shards.storage.store import LocalFolder, Store, store_at

_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
MakePlan = Callable[[Callable[[str], tuple[int, int] | None], Path], Plan]


@dataclass(frozen=True)
class Summary:
    """What a run did."""

    manifest: Manifest
    place: str
    written_now: int
    """Shards written by this call; the others stood already."""
    seconds: float


@dataclass(frozen=True)
class ShareSummary:
    """What a task did, and what stands of its share."""

    place: str
    share: Share
    options: dict[str, Any]
    """Options of the source, with what it counted while it found the inputs of the whole set."""
    inputs: int
    samples: int
    left_out: dict[str, int]
    shards: int
    written_now: int
    seconds: float


def run(
    make: MakePlan,
    out: str | Path,
    workers: int | None,
    max_bad: float,
    overwrite: bool = False,
    engine: EngineName = "local",
    force: bool = False,
    command: str = "",
) -> Summary:
    """Write the shard set of a plan to `out`, a folder or a URL of an object store.

    Args:
        make: makes the plan, given what is known of an unfinished run and a file for what the source finds (see
            `make_plan`).
        workers: of the engine; None for as many as there are processors.
        max_bad: the share of bad inputs, of all, that stops the run.
        force: begin even where the disk will not hold it, and keep shards of raw files that have new times.
        command: that goes on with the run, for a message.

    Raises:
        UserError: too many bad inputs, another set there, a full disk, a dead worker. What is done stays.
    """
    started, store = time.monotonic(), store_at(out)
    with _clear_errors(store, command), _opened(store, make) as work:
        if isinstance(work, Manifest):
            return Summary(work, str(store), 0, time.monotonic() - started)
        plan = _begin(make, work, overwrite, force)
        if isinstance(plan, Manifest):
            work.remove()
            return Summary(plan, str(store), 0, time.monotonic() - started)
        written, _ = _write(plan, plan.shards, work, workers, max_bad, engine)
        manifest = finish(plan.outline, work, max_bad)
        return Summary(manifest, str(store), written, time.monotonic() - started)


def run_share(
    make: MakePlan,
    out: str | Path,
    workers: int | None,
    max_bad: float,
    share: Share,
    force: bool = False,
    command: str = "",
) -> ShareSummary | Summary:
    """Write one task's share of the shards to `out`; `merge` finishes the set.

    Raises:
        UserError: as `run`. Too many bad inputs: so many in this share that the whole set has too many.
    """
    started, store = time.monotonic(), store_at(out)
    with _clear_errors(store, command), _opened(store, make, share) as work:
        if isinstance(work, Manifest):
            return Summary(work, str(store), 0, time.monotonic() - started)
        plan = _begin(make, work, False, force)
        if isinstance(plan, Manifest):
            work.remove()
            return Summary(plan, str(store), 0, time.monotonic() - started)
        own = share.of(plan.shards)
        written, bad = _write(plan, own, work, workers, max_bad, "local")
        samples, ledger = 0, list[LedgerLine]()
        for _, note in work.done(plan.outline, own):
            samples += note.shard.samples
            ledger += note.ledger
        if bad > plan.outline.allowed(max_bad):
            raise too_many_bad(plan.outline, ledger, max_bad, str(store))
        return ShareSummary(
            place=str(store),
            share=share,
            options=plan.job.options,
            inputs=sum(len(plan.part(shard)) for shard in own),
            samples=samples,
            left_out=dict(sorted(Counter(line.reason for line in ledger).items())),
            shards=len(own),
            written_now=written,
            seconds=time.monotonic() - started,
        )


def merge(out: str | Path, max_bad: float) -> Summary:
    """Finish the set at `out` whose shards were written by tasks.

    Raises:
        UserError: shards are missing, a task still runs, too many bad inputs, no set there.
    """
    started, store = time.monotonic(), store_at(out)
    with _clear_errors(store):
        finished, known = MANIFEST in store.sizes(), store.sizes(WORK)
        if not finished and "plan" not in known:
            do = "give the place that the tasks wrote to, down to the name of the source"
            raise UserError("no shard set here", where=str(store), do=do)
        if not known:
            return Summary(read_manifest(store), str(store), 0, time.monotonic() - started)
        with Work(store) as work:
            outline = work.outline()
            if finished or outline is None:  # a run was killed with its last breath
                work.remove()
                return Summary(read_manifest(store), str(store), 0, time.monotonic() - started)
            return Summary(finish(outline, work, max_bad), str(store), 0, time.monotonic() - started)


@contextmanager
def _opened(store: Store, make: MakePlan, share: Share | None = None) -> Iterator[Work | Manifest]:
    """The work on the set in `store`, or the manifest of the finished set that stands where nothing can be written."""
    try:
        work = Work(store, share)
    except OSError as error:
        if error.errno not in _READ_ONLY or (finished := _finished_read_only(store, make)) is None:
            raise
        yield finished
        return
    with work:
        yield work


def _finished_read_only(store: Store, make: MakePlan) -> Manifest | None:
    """The manifest in `store`, if its set is the finished one of the plan. Without a lock: nothing can change there."""
    if not isinstance(store, LocalFolder) or MANIFEST not in store.sizes():
        return None
    with TemporaryDirectory() as folder:
        plan = make(lambda digest: (1, 1), Path(folder, "records"))
        finished = finished_manifest(store, plan)
        if finished is not None:
            _say(check_unchanged(store.path, plan, finished))
    return finished


def _begin(make: MakePlan, work: Work, overwrite: bool, force: bool) -> Plan | Manifest:
    """The plan, begun or gone on with; the manifest of the set that stands there, if it is the finished one of it."""
    try:
        plan = make(work.known_plan, work.records)
        finished = finished_manifest(work.store, plan)
        if finished is not None and not (overwrite and work.known_plan(plan.digest) is None):
            if isinstance(work.store, LocalFolder):
                _say(check_unchanged(work.store.path, plan, finished))
            return finished
        if not force:
            check_room(plan, work)
        again = work.begin(plan, overwrite, force)
    except (UserError, OSError):
        work.leave_as_found()
        raise
    if again:
        _say(f"{again:,} shards are written again: their raw files have changed since (--force keeps them)")
    if work.killed_over:
        text = f"the run before this one was killed while it read: {', '.join(work.killed_over)}"
        _say(f"{text}; if this one dies there too, take the input away")
    work.share_lock()
    return plan


def _write(
    plan: Plan, shards: range, work: Work, workers: int | None, max_bad: float, engine: EngineName
) -> tuple[int, int]:
    """Write those of `shards` that are missing, until there are too many bad inputs: (shards, bad inputs in all)."""
    # Notes stay where they are: those of a large set together take more memory than all workers.
    stands = {shard: note.bad for shard, note in work.done(plan.outline, shards)}
    missing = [shard for shard in shards if shard not in stands]
    allowed, bad, written = plan.outline.allowed(max_bad), sum(stands.values()), 0
    inputs, stood = (sum(len(plan.part(shard)) for shard in some) for some in (shards, stands))
    name = str(work.store).rpartition("/")[2]
    if bad > allowed or not missing:
        return 0, bad
    with (
        tqdm(total=inputs, initial=stood, unit="sample", desc=printable(name), mininterval=0.5) as bar,
        closing(engine_named(engine)(plan, missing, work, workers, Watch(bar.update, _FirstOfKind()))) as notes,
    ):
        for note in notes:
            bad, written = bad + note.bad, written + 1
            if bad > allowed:
                break
    return written, bad


def _say(text: str) -> None:
    if text:
        tqdm.write(text, file=sys.stderr)


class _FirstOfKind:
    """Says of each kind of bad input the first, at once: a run may take days, and the ledger comes at its end."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, line: LedgerLine) -> None:
        if line.bad and line.reason not in self._said:
            self._said.add(line.reason)
            text = f"bad input, the first of its kind: {line.path}: {line.reason}"
            _say(f"{text}; {line.detail}" if line.detail else text)


@contextmanager
def _clear_errors(store: Store, command: str = "") -> Iterator[None]:
    """One line for what goes wrong with files; what is mended by `command` names it."""
    again = f"{AGAIN}: {command}" if command else AGAIN
    try:
        yield
    except UserError as error:
        if error.do != AGAIN:
            raise
        raise type(error)(error.what, where=error.where, met=error.met, wanted=error.wanted, do=again) from None
    except OSError as error:
        full, what = error.errno in (errno.ENOSPC, errno.EDQUOT), "cannot read or write"
        room = f", {size_text(free_bytes(store.path))} free" if full and isinstance(store, LocalFolder) else ""
        where, met = str(error.filename or store), f"{error.strerror or error}{room}"
        raise UserError("cannot write" if full else what, where=where, met=met, do=again) from None
