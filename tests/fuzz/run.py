"""Count what goes wrong over many damaged inputs; the package's docstring shows how to call it."""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import count, islice
from pathlib import Path

from tqdm import tqdm

from tests.fuzz.judge import KINDS, TARGETS, Pristine, Verdict, judge

_pristine: dict[str, Pristine] = {}
_folder = Path()
_keep: Path | None = None
_always = False


def main(arguments: list[str]) -> int:
    """Return 0 where nothing went wrong, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, help="stop after so many minutes")
    parser.add_argument("--inputs", type=int, help="stop after so many inputs")
    parser.add_argument("--seed", type=int, default=0, help="other inputs with another seed")
    parser.add_argument("--target", nargs="*", default=TARGETS, choices=TARGETS, help="sources, or set")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--only", metavar="TARGET:SEED:NUMBER", help="one input, as an earlier run named it")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the files of inputs with a fault in DIR")
    options = parser.parse_args(arguments)
    if options.only:
        target, seed, number = options.only.rsplit(":", 2)
        inputs: Iterator[tuple[str, int, int]] = iter([(target, int(seed), int(number))])
        options.target = [target]
    else:
        inputs = ((target, options.seed, number) for number in count() for target in options.target)
        inputs = islice(inputs, options.inputs if options.inputs or options.minutes else len(options.target) * 10)
    end = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        start = (Path(folder), tuple(options.target), options.keep, bool(options.only))
        if options.only or (options.jobs == 1 and not options.minutes):
            _begin(*start)
            verdicts = [_judged(item) for item in inputs]
            for verdict in verdicts:
                _tell(verdict)
        else:
            verdicts = _pooled(inputs, options.jobs, end, options.inputs, start)
    print(_table(verdicts))
    return int(any(verdict.faults for verdict in verdicts))


def _pooled(
    inputs: Iterator[tuple[str, int, int]], jobs: int, end: float, total: int | None, start: tuple[object, ...]
) -> list[Verdict]:
    verdicts: list[Verdict] = []
    running: set[Future[Verdict]] = set()
    with (
        ProcessPoolExecutor(jobs, mp.get_context("spawn"), _begin, start) as pool,
        tqdm(total=total, unit="input", mininterval=1) as bar,
    ):
        while True:
            ahead = 2 * jobs - len(running) if time.monotonic() < end else 0
            running.update(pool.submit(_judged, item) for item in islice(inputs, ahead))
            if not running:
                return verdicts
            ready, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ready:
                verdict = future.result()
                verdicts.append(verdict)
                bar.update()
                _tell(verdict)


def _tell(verdict: Verdict) -> None:
    """Print the faults of an input, if it has some."""
    if verdict.faults:
        what = "; ".join(f"{kind}: {detail}" for kind, detail in verdict.faults.items())
        tqdm.write(f"{verdict.name}: {', '.join(map(str, verdict.mutations))}: {what}")


def _begin(folder: Path, targets: tuple[str, ...], keep: Path | None, always: bool) -> None:
    """Write the sound layouts, once per process."""
    global _folder, _keep, _always
    _folder = Path(tempfile.mkdtemp(dir=folder))
    _keep = keep
    _always = always
    quiet = os.open(os.devnull, os.O_WRONLY)
    saved = os.dup(1), os.dup(2)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    try:
        _pristine.update({target: Pristine.made(target, _folder / "pristine") for target in targets})
    finally:
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)


def _judged(item: tuple[str, int, int]) -> Verdict:
    target, seed, number = item
    folder = _folder / f"{target}-{seed}-{number}"
    folder.mkdir()
    try:
        verdict = judge(_pristine[target], seed, number, folder)
        if _always:
            print((folder / "report").read_text("utf-8", "replace"))
            print("damage:", *map(str, verdict.mutations), sep="\n  ")
        if _keep and (verdict.faults or _always):
            shutil.copytree(folder, _keep / folder.name, symlinks=True, ignore=_special, dirs_exist_ok=True)
        return verdict
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _special(folder: str, names: list[str]) -> list[str]:
    """Return the FIFOs of a folder, which cannot be copied."""
    return [name for name in names if Path(folder, name).is_fifo()]


def _table(verdicts: list[Verdict]) -> str:
    """Return a table per target: inputs, those with status 0, those refused in one line, and each kind of fault."""
    heads = ("target", "inputs", "taken", "refused", *KINDS)
    rows = []
    for target in [*dict.fromkeys(verdict.target for verdict in verdicts), "all"]:
        of = [verdict for verdict in verdicts if target in (verdict.target, "all")]
        faults = Counter(kind for verdict in of for kind in verdict.faults)
        taken = sum(verdict.status == 0 for verdict in of)
        rows.append((target, len(of), taken, len(of) - taken, *(faults[kind] for kind in KINDS)))
    widths = [max(len(str(row[i])) for row in [heads, *rows]) for i in range(len(heads))]
    lines = [
        "  ".join(str(cell).rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [heads, *rows]
    ]
    return "\n".join(lines)
