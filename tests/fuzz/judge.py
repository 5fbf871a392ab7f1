"""Run the product on one damaged input, in a fork with limits on time and memory, and name its faults."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import cli
from shards.manifest import read_ledger
from shards.reader import ShardSet
from tests.fuzz.mutate import MARK, Mutation, mutate
from tests.layouts import CASES, FORMS, Case

SECONDS = 60
"""Limit of an input's run. An input of some kilobytes takes a tenth of a second: more than this is a hang."""
MEBIBYTES = 1024
"""Memory that an input may use in addition to what the process used before: a picture of the largest size, decoded."""
ADDRESSES = 4 << 30
"""Limit of its address space in bytes: a larger allocation fails, so that no input can fill the machine."""
KINDS = ("traceback", "hang", "memory", "lost", "broken set", "executed", "unsaid")
SET = "set"
"""The target that is not a source: a finished shard set, whose own files are damaged."""
TARGETS = (*CASES, *FORMS, SET)


@dataclass
class Verdict:
    target: str
    seed: int
    number: int
    mutations: list[Mutation]
    status: int | None = None
    """Exit status; None where the process had to be killed."""
    faults: dict[str, str] = field(default_factory=dict)
    """Kind of fault -> its detail."""

    @property
    def name(self) -> str:
        return f"{self.target}:{self.seed}:{self.number}"


@dataclass(frozen=True)
class Pristine:
    """A sound layout of a target, and the samples that it becomes."""

    target: str
    root: Path
    inputs: frozenset[str]
    """Paths of samples and of lines of the ledger."""
    digests: dict[str, bytes]
    """Digest of each sample's tensors, by its key, where the target is a set; else empty."""

    @classmethod
    def made(cls, target: str, folder: Path) -> Pristine:
        root = folder / target / "raw"
        source, case = _source_of(target)
        root.parent.mkdir(parents=True)
        case.write(root)
        out = folder / target / "out"
        shard(target, root, out)
        inputs = _inputs(out / source)
        if target != SET:
            return cls(target, root, inputs, {})
        return cls(target, out / source, inputs, _digests(out / source))


def shard(target: str, root: Path, out: Path) -> None:
    """Run `cli.py shard` in this process."""
    source, case = _source_of(target)
    _cli("shard", "--source", source, "--root", root, "--out", out, "--workers", 1, "--max-bad", 1, *case.options)


def judge(pristine: Pristine, seed: int, number: int, folder: Path) -> Verdict:
    """Damage a copy of a layout in `folder`, run the product on it, and return its faults."""
    draw = random.Random(f"{pristine.target}:{seed}:{number}")
    root = folder / "raw"
    out = folder / "out"
    shutil.copytree(pristine.root, root, copy_function=os.link, symlinks=True)
    verdict = Verdict(pristine.target, seed, number, mutate(root, draw))

    def work() -> None:
        if pristine.target == SET:
            _judge_set(root, pristine)
            return
        shard(pristine.target, root, out)
        _judge_output(pristine, out / _source_of(pristine.target)[0], verdict.mutations)

    report = folder / "report"
    verdict.status, most = _forked(work, report)
    text = report.read_text("utf-8", "replace")
    grown = most - int(text.partition("\n")[0] or most)
    for line in text.splitlines():
        if line.startswith("FAULT "):
            kind, _, detail = line.removeprefix("FAULT ").partition(": ")
            verdict.faults[kind] = detail
    if verdict.status is None:
        verdict.faults["hang"] = f"killed after {SECONDS} s"
    if "Traceback (most recent call last)" in text or (verdict.status or 0) < 0:
        last = [line for line in text.splitlines() if line.strip()][-1:]
        verdict.faults["traceback"] = f"status {verdict.status}: {''.join(last)[:200]}"
    if grown > MEBIBYTES:
        verdict.faults["memory"] = f"{grown} MiB"
    if (folder / MARK).exists() or (root / MARK).exists():
        verdict.faults["executed"] = "hostile input was run"
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    # `verify-shard` prints the faults of a set in a table.
    if verdict.status and len(errors) != 1 and pristine.target != SET and "traceback" not in verdict.faults:
        verdict.faults["unsaid"] = f"status {verdict.status} and {len(errors)} lines that say why"
    return verdict


def _source_of(target: str) -> tuple[str, Case]:
    source = "folder" if target == SET else target
    return FORMS[target] if target in FORMS else (source, CASES[source])


def _cli(*arguments: object) -> None:
    try:
        with patch.object(sys, "argv", [str(Path(cli.__file__)), *map(str, arguments)]):
            cli.main()
    except SystemExit as end:
        if end.code not in (0, None):
            raise


def _fault(kind: str, detail: object) -> None:
    print(f"FAULT {kind}: {ascii(detail)[:300]}", flush=True)


def _inputs(folder: Path) -> frozenset[str]:
    shards = ShardSet(folder)
    paths = [shards.sample(position)[0]["path"] for position in range(len(shards))]
    return frozenset([*paths, *(line.path for line in read_ledger(folder))])


def _digests(folder: Path) -> dict[str, bytes]:
    """Return key -> digest of each sample of a set, decoded whole."""
    shards = ShardSet(folder)
    out = {}
    for position in range(len(shards)):
        sample = shards[position]
        arrays = {name: _crc32(value) for name, value in sample.items() if isinstance(value, np.ndarray)}
        out[sample["__key__"]] = json.dumps([arrays, sample["meta"]], sort_keys=True).encode()
    return out


def _crc32(array: np.ndarray[Any, Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)


def _judge_output(pristine: Pristine, folder: Path, mutations: list[Mutation]) -> None:
    """Check a set that was written with status 0: it is whole, all readers accept it, and no input is lost."""
    shards = ShardSet(folder)
    ledger = read_ledger(folder)
    manifest = shards.manifest
    if manifest.inputs != manifest.samples + len(ledger):
        _fault("lost", f"{manifest.inputs} inputs, {manifest.samples} samples, {len(ledger)} lines of the ledger")
    for line in ledger:
        if not line.reason or "met ; " in line.detail or "wanted ;" in line.detail:
            _fault("unsaid", f"{line.path}: {line.reason} ({line.detail})")
    try:
        _cli("verify-shard", folder, "--workers", 1)
    except SystemExit as end:
        print(end.code)
        _fault("broken set", "verify-shard fails")
        return
    if mutations and all(mutation.within for mutation in mutations):
        # Nothing but the data of some inputs is damaged.
        gone = pristine.inputs - _inputs(folder)
        if gone:
            _fault("lost", sorted(gone))
    for position in range(len(shards)):
        shards[position]


def _judge_set(folder: Path, pristine: Pristine) -> None:
    """Check a damaged set: verification finds the damage, or every sample is unchanged."""
    with contextlib.suppress(SystemExit):
        _cli("stats", folder, "--out", folder.parent / "stats")
    _cli("verify-shard", folder, "--workers", 1)
    if _digests(folder) != pristine.digests:
        _fault("broken set", "verify-shard passes other tensors")


def _forked(work: Callable[[], None], report: Path) -> tuple[int | None, int]:
    """Run `work` in a fork; its output goes to `report`.

    Returns:
        The exit status (negative: a signal; None: killed after `SECONDS`), and the most memory that it held, in MiB.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        _child(work, report)
    handle = os.pidfd_open(process)
    try:
        ready, _, _ = select.select([handle], [], [], SECONDS)
        if not ready:
            os.kill(process, signal.SIGKILL)
        _, status, usage = os.wait4(process, 0)
    finally:
        os.close(handle)
    code = os.waitstatus_to_exitcode(status) if ready else None
    return code, usage.ru_maxrss // 1024


def _own_memory() -> int:
    """Return the MiB of memory that this process uses now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() >> 20


def _child(work: Callable[[], None], report: Path) -> None:
    code = 1
    try:
        descriptor = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", errors="surrogateescape", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        print(_own_memory())  # less than its parent's: pages of libraries come when they are used
        claimed = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (claimed + ADDRESSES,) * 2)
        work()
        code = 0
    except SystemExit as end:
        code = 1 if isinstance(end.code, str) else int(end.code or 0)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
