"""A sharding run: plan, have an engine write the shards, write index, ledger and manifest.

It may be killed at any moment; the same call goes on and ends with the same bytes.
"""

from __future__ import annotations

import errno
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from pipeline.dataset import RawDataset, find_dataset
from pipeline.engines import AGAIN, EngineName, engine_named
from pipeline.estimate import check_room, free_bytes
from pipeline.finish import codec_in_use, finish, finished_manifest, read_manifest, too_many_bad
from pipeline.plan import Plan, make_plan
from pipeline.raw_files import check_unchanged
from pipeline.request import Request
from pipeline.task import Progress
from pipeline.workspace import TaskShare, Workspace
from shards.errors import UserError
from shards.format import MANIFEST, WORK
from shards.manifest import LedgerLine, Manifest
from shards.printable import printable
from shards.size import size_text
from shards.storage.store import LocalFolder, Store, store_at

_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class RunSummary:
    """A finished set."""

    manifest: Manifest
    place: str
    written_now: int
    """Number of shards that this call wrote."""
    seconds: float


@dataclass(frozen=True)
class TaskSummary:
    """The share of a set that one task wrote."""

    place: str
    share: TaskShare
    options: dict[str, Any]
    """Options of the source, with what it counted while it found the inputs of the whole set."""
    inputs: int
    samples: int
    left_out: dict[str, int]
    """Number of inputs that did not become samples, by reason."""
    shards: int
    written_now: int
    """Number of shards that this call wrote."""
    seconds: float


@dataclass(frozen=True)
class _OpenRun:
    """A run whose shards may be written."""

    workspace: Workspace
    dataset: RawDataset
    plan: Plan


def with_codec_in_use(request: Request, out: str | Path | Store, overwrite: bool = False) -> Request:
    """Return a request whose codec is that of the set in `out`, where it names none and the set is to be gone on with.

    Raises:
        UserError: no set can be in `out`, or what is there cannot be read.
    """
    if request.codec is not None or overwrite:
        return request
    return replace(request, codec=codec_in_use(store_at(out) if isinstance(out, (str, Path)) else out))


def run(
    request: Request,
    out: str | Path,
    workers: int | None = None,
    max_bad: float = 0.05,
    *,
    overwrite: bool = False,
    engine: EngineName = "local",
    force: bool = False,
    command: str = "",
) -> RunSummary:
    """Write the shard set of a request to `out`, a folder or a URL of an object store.

    Args:
        workers: of the engine; None for as many as there are processors.
        max_bad: the share of bad inputs, of all, that stops the run.
        overwrite: replace a set that was made otherwise.
        force: begin even where the disk will not hold the set, and keep shards of raw files that have new times.
        command: the command that goes on with the run, for a message.

    Raises:
        UserError: too many bad inputs, another set there, a full disk, a dead worker. What is done stays.
    """
    started = time.monotonic()
    store = store_at(out)
    with _one_line_errors(store, command), _open_run(request, store, None, overwrite, force) as opened:
        if isinstance(opened, Manifest):
            return RunSummary(opened, str(store), 0, time.monotonic() - started)
        written, _ = _write(opened, opened.plan.shards, workers, max_bad, engine)
        manifest = finish(opened.plan, opened.workspace, max_bad)
        return RunSummary(manifest, str(store), written, time.monotonic() - started)


def run_task(
    request: Request,
    out: str | Path,
    share: TaskShare,
    workers: int | None = None,
    max_bad: float = 0.05,
    *,
    force: bool = False,
    command: str = "",
) -> TaskSummary | RunSummary:
    """Write one task's share of the shards to `out`; `merge` finishes the set.

    Returns:
        What this task did; the set's summary where the set is finished already.

    Raises:
        UserError: as `run`. Too many bad inputs: so many in this share that the whole set has too many.
    """
    started = time.monotonic()
    store = store_at(out)
    with _one_line_errors(store, command), _open_run(request, store, share, False, force) as opened:
        if isinstance(opened, Manifest):
            return RunSummary(opened, str(store), 0, time.monotonic() - started)
        plan = opened.plan
        shards = share.select(plan.shards)
        written, bad = _write(opened, shards, workers, max_bad, "local")
        samples = 0
        ledger: list[LedgerLine] = []
        for _, note in opened.workspace.notes(plan, shards):
            samples += note.shard.samples
            ledger += note.ledger
        if bad > plan.most_bad(max_bad):
            raise too_many_bad(plan, ledger, max_bad, str(store))
        return TaskSummary(
            place=str(store),
            share=share,
            options=plan.options,
            inputs=plan.count(shards),
            samples=samples,
            left_out=dict(sorted(Counter(line.reason for line in ledger).items())),
            shards=len(shards),
            written_now=written,
            seconds=time.monotonic() - started,
        )


def merge(out: str | Path, max_bad: float) -> RunSummary:
    """Finish the set at `out` whose shards were written by tasks.

    Raises:
        UserError: shards are missing, a task still runs, too many bad inputs, no set there.
    """
    started = time.monotonic()
    store = store_at(out)
    with _one_line_errors(store):
        finished = MANIFEST in store.sizes()
        kept = store.sizes(WORK)
        if not finished and "plan" not in kept:
            do = "give the place that the tasks wrote to, down to the name of the source"
            raise UserError("no shard set here", where=str(store), do=do)
        if not kept:
            if isinstance(store, LocalFolder):  # a run was killed when it had emptied the workspace
                with suppress(OSError):
                    store.work.rmdir()
            return RunSummary(read_manifest(store), str(store), 0, time.monotonic() - started)
        with Workspace(store) as workspace:
            plan = workspace.saved_plan()
            if finished or plan is None:  # a run was killed after its manifest, before the workspace was removed
                workspace.remove()
                return RunSummary(read_manifest(store), str(store), 0, time.monotonic() - started)
            return RunSummary(finish(plan, workspace, max_bad), str(store), 0, time.monotonic() - started)


@contextmanager
def _open_run(
    request: Request, store: Store, share: TaskShare | None, overwrite: bool, force: bool
) -> Iterator[_OpenRun | Manifest]:
    """Begin a run, or go on with it; the manifest where the finished set of the request stands already."""
    request = with_codec_in_use(request, store, overwrite)
    try:
        workspace = Workspace(store, share)
    except OSError as error:
        if error.errno not in _READ_ONLY or (finished := _finished_read_only(request, store)) is None:
            raise
        yield finished
        return
    with workspace:
        opened = _begin(request, workspace, overwrite, force)
        if isinstance(opened, Manifest):
            workspace.remove()
        yield opened


def _finished_read_only(request: Request, store: Store) -> Manifest | None:
    """Return the manifest in `store`, if its set is the finished one of the request, in a place that is read-only."""
    if not isinstance(store, LocalFolder) or MANIFEST not in store.sizes():
        return None
    with TemporaryDirectory() as folder:
        dataset = find_dataset(request, Path(folder, "records"))
        finished = finished_manifest(store, dataset)
        if finished is not None:
            _print_newer(dataset, finished, store)
        return finished


def _print_newer(dataset: RawDataset, finished: Manifest, store: Store) -> None:
    """Check raw files that are newer than the finished set; raises `UserError` where one has changed."""
    if isinstance(store, LocalFolder):
        _print(check_unchanged(store.path, dataset, finished))


def _begin(request: Request, workspace: Workspace, overwrite: bool, force: bool) -> _OpenRun | Manifest:
    try:
        dataset = find_dataset(request, workspace.records)
        for remark in dataset.remarks:
            _print(printable(remark))
        saved = workspace.saved_plan()
        goes_on = saved is not None and saved.digest == dataset.digest
        finished = finished_manifest(workspace.store, dataset)
        if finished is not None and (goes_on or not overwrite):
            _print_newer(dataset, finished, workspace.store)
            return finished
        plan = make_plan(request, dataset, saved)
        if not force:
            check_room(plan, workspace)
        rewritten = workspace.begin(plan, dataset, overwrite, force)
    except (UserError, OSError):
        workspace.leave_as_found()
        raise
    if rewritten:
        _print(f"{rewritten:,} shards are written again: their raw files have changed since (--force keeps them)")
    if workspace.killed_inputs:
        text = f"the run before this one was killed while it read: {', '.join(workspace.killed_inputs)}"
        _print(f"{text}; if this one dies there too, take the input away")
    workspace.share_lock()
    return _OpenRun(workspace, dataset, plan)


def _write(opened: _OpenRun, shards: range, workers: int | None, max_bad: float, engine: EngineName) -> tuple[int, int]:
    """Write those of `shards` that are missing, until there are too many bad inputs.

    Returns:
        (number of shards written, number of bad inputs in all of `shards`).
    """
    plan = opened.plan
    workspace = opened.workspace
    # Notes are not kept: those of a large set together take more memory than all workers.
    done = {shard: note.bad for shard, note in workspace.notes(plan, shards)}
    missing = [shard for shard in shards if shard not in done]
    most_bad = plan.most_bad(max_bad)
    bad = sum(done.values())
    written = 0
    name = printable(str(workspace.store).rpartition("/")[2])
    if bad > most_bad or not missing:
        return 0, bad
    with tqdm(total=plan.count(shards), initial=plan.count([*done]), unit="sample", desc=name, mininterval=0.5) as bar:
        progress = Progress(bar.update, _FirstOfKind())
        write = engine_named(engine)
        with closing(write(opened.dataset, plan, missing, workspace, workers, progress)) as notes:
            for note in notes:
                bad += note.bad
                written += 1
                if bad > most_bad:
                    break
    return written, bad


def _print(text: str) -> None:
    if text:
        tqdm.write(text, file=sys.stderr)


class _FirstOfKind:
    """Prints the first bad input of each kind at once: a run may take days, and the ledger comes at its end."""

    def __init__(self) -> None:
        self._reasons: set[str] = set()

    def __call__(self, line: LedgerLine) -> None:
        if line.bad and line.reason not in self._reasons:
            self._reasons.add(line.reason)
            text = f"bad input, the first of its kind: {line.path}: {line.reason}"
            _print(f"{text}; {line.detail}" if line.detail else text)


@contextmanager
def _one_line_errors(store: Store, command: str = "") -> Iterator[None]:
    """Turn what goes wrong with files into `UserError`; name the `command` where giving it again helps."""
    again = f"{AGAIN}: {command}" if command else AGAIN
    try:
        yield
    except UserError as error:
        if error.do != AGAIN:
            raise
        raise type(error)(error.what, where=error.where, met=error.met, wanted=error.wanted, do=again) from None
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        room = f", {size_text(free_bytes(store.path))} free" if full and isinstance(store, LocalFolder) else ""
        raise UserError(
            "cannot write" if full else "cannot read or write",
            where=str(error.filename or store),
            met=f"{error.strerror or error}{room}",
            do=again,
        ) from None
