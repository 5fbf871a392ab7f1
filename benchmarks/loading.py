"""How fast batches come: the loader, other libraries, decoding on the fly, and the bound that memory sets.

    python -m benchmarks.loading [--samples 64] [--rounds 5] [--only loader,bound]

One sample is one picture with one object, all four tensors ready as torch tensors in a batch of 8; photographs of
2250 x 1500 (SA-1B's layout, 100 masks each), and pairs as SAV has them. `benchmarks/peers.py` holds the other ways;
those whose library is missing are left out (`pip install sa2va-shards[bench]`).

  loader     shards through trainer.data.loader.Loader with 1 or 2 threads, codecs raw and zstd
  bound      the bytes that raw shards store, copied from the mapped tar into ready batches by as many threads
  cold       as loader, its pages dropped before: from the disk

uint8 and float32 say how `pixel_values` are delivered. All ways take turns; the medians of the rounds are printed, with
the spread, and the ratio of each round's rate to that round's bound with 2 threads. Start-up is the time from making
the loader (and its worker processes) to its first batch.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import peers
from benchmarks.peers import BATCH, Epoch
from benchmarks.raw_files import sa1b, sav
from pipeline.plan import make_plan
from pipeline.run import run
from pipeline.sources import choices_of, source_named
from shards.format import CODECS, INDEX, LOSSY, MANIFEST
from shards.reader import ShardSet
from shards.recipe import RECIPES
from shards.recode import recode
from trainer.data.loader import Loader
from trainer.data.rows import Normalise

FIELDS = ("pixel_values1", "g_pixel_values1", "prompt_masks1", "masks1")
DELIVERED: dict[Normalise, str] = {"device": "uint8", "host": "float32"}
_SHARD_BYTES = 64 << 20
_EXACT = [codec for codec in CODECS if codec not in LOSSY]
_BATCHES = 4  # that a copy goes round: a loader's `prefetch` + 2


@dataclass
class Way:
    """One line of the table."""

    name: str
    workers: int
    stored: int
    """Bytes a sample."""
    make: Callable[[], Epoch]
    epoch: Epoch | None = None
    start: float = 0.0
    rates: list[float] = field(default_factory=list)

    def turn(self) -> None:
        """One epoch, timed; the first one from the start of its processes."""
        started = time.perf_counter()
        if self.epoch is None:
            self.epoch = self.make()
            next(batches := iter(self.epoch()))
            self.start = time.perf_counter() - started
            list(map(lambda _: None, batches))
            return
        count = sum(BATCH for _ in self.epoch())
        self.rates.append(count / (time.perf_counter() - started))


def ours(folder: Path, threads: int, where: Normalise) -> Epoch:
    loader = Loader([str(folder)], fields=FIELDS, batch_size=BATCH, seed=0, threads=threads, normalise=where)
    numbers = iter(range(10**9))
    return lambda: loader.epoch(next(numbers))


def cold(folder: Path, threads: int) -> Epoch:
    """A loader of its own in each epoch, after the kernel has forgotten the tars, which nobody maps by then."""

    def epoch() -> Iterator[Any]:
        gc.collect()
        for tar in folder.glob("*.tar"):
            with open(tar, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return ours(folder, threads, "device")()

    return epoch


def bound(folder: Path, threads: int) -> Epoch:
    """Copy all members of the samples, one after the other, into batches of bytes."""
    shards = ShardSet(folder)
    views = [[np.frombuffer(v, np.uint8) for v in shards.open(n).members.values()] for n in range(len(shards))]
    widths = [max(view[k].size for view in views) for k in range(len(views[0]))]
    ring = cycle([[np.zeros((BATCH, width), np.uint8) for width in widths] for _ in range(_BATCHES)])
    pool = ThreadPoolExecutor(threads)

    def copy(batch: Sequence[np.ndarray], start: int, rows: range) -> None:
        for row in rows:
            for target, view in zip(batch, views[start + row], strict=True):
                target[row, : view.size] = view

    def epoch() -> Iterator[int]:
        share = BATCH // threads
        pending = []
        for start in range(0, len(views) // BATCH * BATCH, BATCH):
            batch = next(ring)
            parts = [range(n, n + share) for n in range(0, BATCH, share)]
            pending.append([pool.submit(copy, batch, start, rows) for rows in parts])
        for number, futures in enumerate(pending):
            for future in futures:
                future.result()
            yield number

    return epoch


def shard(name: str, raw: Path, out: Path) -> None:
    source = source_named(name)
    choices = choices_of(source, {})
    run(lambda known, records: make_plan(source, raw, RECIPES["default"], _SHARD_BYTES, records, choices), out, 2, 0.0)


def all_ways(root: Path, count: int) -> Iterator[Way]:
    """Write the data where it is not there yet, then say how it can be read."""
    if not (root / "raw").exists():
        sa1b(root / "sa1b", count)
        sav(root / "sav", count // 2)
        shard("sa1b", root / "sa1b", root / "zstd")
        recode(root / "zstd", root / "raw", "raw", 2)

    def stored(folder: str) -> int:
        sizes = [path.stat().st_size for path in (root / folder).rglob("*") if path.is_file()]
        return sum(sizes) // len(ShardSet(root / "raw"))

    for threads in (1, 2):
        yield Way("bound", threads, stored("raw"), partial(bound, root / "raw", threads))
        for codec in _EXACT:
            for where, delivered in DELIVERED.items():
                make = partial(ours, root / codec, threads, where)
                yield Way(f"loader, {codec}, {delivered}", threads, stored(codec), make)
    for codec in _EXACT:
        yield Way(f"cold, {codec}, uint8", 2, stored(codec), partial(cold, root / codec, 2))
    for name, pattern in (("2250 x 1500", "sa1b/*.jpg"), ("SAV npz", "sav/*/*.npz")):
        paths = sorted(root.glob(pattern))[: 4 * BATCH]
        size = sum(path.stat().st_size for path in paths) // len(paths)
        for workers in (0, 1, 2):
            yield Way(f"on the fly, {name}, float32", workers, size, partial(peers.on_the_fly, paths, workers))
    for peer, (write, read) in peers.PEERS.items():
        folder = peer if write else "raw"
        if write and not (root / peer).exists() and not peers.installed(write, root / "raw", root / peer):
            continue
        for workers in (0, 1, 2):
            for where, delivered in DELIVERED.items():
                make = partial(read, root / folder, workers, where == "host")
                yield Way(f"{peer}, {delivered}", workers, stored(folder), make)


def many_shards(source: Path, folder: Path, count: int) -> Path:
    """A set of `count` tars that are all the same file under other names, as many samples each."""
    folder.mkdir()
    body = json.loads((source / MANIFEST).read_text())
    first = body["shards"][0]
    names = [f"sa1b-{n:06d}.tar" for n in range(count)]
    for name in names:
        (folder / name).hardlink_to(source / first["name"])
    rows = np.load(source / INDEX)
    rows = np.tile(rows[rows["shard"] == 0], count)
    rows["shard"] = np.arange(count).repeat(first["samples"])
    np.save(folder / INDEX, rows)
    body |= {"shards": [{**first, "name": name} for name in names], "samples": len(rows)}
    (folder / MANIFEST).write_text(json.dumps(body))
    return folder


def first_batch(folder: Path) -> float:
    """Seconds from a folder to a batch, in a process that runs."""
    started = time.perf_counter()
    batches = ours(folder, 2, "device")()
    next(iter(batches))
    took = time.perf_counter() - started
    batches.close()  # type: ignore[attr-defined]
    return took


def anonymous_memory() -> float:
    """MB of this process that are no mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


def memory(folder: Path, epochs: int) -> list[float]:
    """MB that a loader adds, after each epoch: those of `prefetch` + 2 batches, and no more with time."""
    before, epoch, after = anonymous_memory(), ours(folder, 2, "device"), []
    for _ in range(epochs):
        list(map(lambda _: None, epoch()))
        after.append(anonymous_memory() - before)
    return after


def spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Loading rates, as ratios.")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="parts of the names of the ways to measure, with commas between")
    parser.add_argument(
        "--data", type=Path, help="folder for the data, kept for another run; a temporary one by default"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root, only = arguments.data or Path(name), arguments.only.split(",")
        ways = [w for w in all_ways(root, arguments.samples) if any(part in w.name for part in only)]
        for number in range(arguments.rounds + 1):  # the first round opens and warms up
            for way in ways:
                way.turn()
            print(f"round {number} of {arguments.rounds}", flush=True)
        bounds = next((way.rates for way in ways if way.name == "bound" and way.workers == 2), None)
        print("| way | workers or threads | samples/s | of the bound | bytes a sample | first batch, s |")
        print("|---" * 6 + "|")
        for way in ways:
            ratio = "" if bounds is None else spread([a / b for a, b in zip(way.rates, bounds, strict=True)], 3)
            print(
                f"| {way.name} | {way.workers} | {spread(way.rates, 0)} | {ratio} | {way.stored:,} | {way.start:.3f} |"
            )
        told = ", ".join(f"{value:.0f}" for value in memory(root / "raw", 10))
        print(f"anonymous memory above the start, MB, after each of 10 epochs of a loader: {told}")
        for count in (1000, 10_000):
            folder = many_shards(root / "raw", root / f"many-{count}", count)
            print(f"first batch of {count:,} shards, ms: {spread([1e3 * first_batch(folder) for _ in range(5)], 0)}")
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
