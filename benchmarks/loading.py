"""How fast batches come: the loader, other libraries, decoding on the fly, and the bound that memory sets.

    python -m benchmarks.loading [--only loader,bound] [--rounds 5] [--threads 0 1 2] [--samples 16] [--data FOLDER]

One sample is one picture of 2250 x 1500 with 100 masks (SA-1B's layout), of which one is taken; all four tensors are
ready as torch tensors in a batch of 8. `benchmarks/peers.py` holds the other ways; those whose library is missing are
left out (`pip install sa2va-shards[bench]`).

  bound      as many bytes as a uint8 batch holds, copied from the mapped tars into ready batches; float32: three
             passes of numpy over the small picture, and zeros for the mask; zstd, gradient: the decompression
             of the frames alone, by the system's libzstd
  loader     shards through trainer.data.loader.Loader, codecs raw, gradient and zstd
  numpy      as loader, without the compiled loops
  cold       as loader, its pages dropped before: from the disk
  disk       the same tars, dropped too, read from one end to the other in pieces of 4 MiB
  bandwidth  samples/s that 1 GB/s and 3 GB/s of a disk or a network can bring of each codec
  on the fly Pillow, torchvision and pycocotools in a DataLoader: SA-1B's photographs; SAV's npz, a pair each
  ...        the libraries by name
  first      seconds to the first batch of sets of 1,000 and 10,000 shards
  memory     what a loader holds, after each of ten epochs

`--only` takes parts of these names, or of "loader raw uint8" and the like. All with 0, 1 and 2 threads (bound,
loader, grain, ffcv, spdl) or worker processes. uint8: `pixel_values` before normalisation and masks as packed bits,
what is left is the device's; float32: normalised, and a byte a pixel of the mask. All ways take turns; the medians of
the rounds are printed, with the lowest and the highest; ratios are those of the same round. Processor time, of all
threads of this process, tells more on a machine that does other work. Start-up is the time from making the loader
(and its worker processes) to its first batch.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import peers
from benchmarks.loading_data import EXACT, repeat, write
from benchmarks.peers import BATCH, Epoch
from shards import codec, compiled
from shards.format import Codec
from shards.reader import ShardSet
from trainer.data.decoding import Normalise
from trainer.data.loader import Loader, LoaderOptions

FIELDS = ("pixel_values1", "g_pixel_values1", "prompt_masks1", "masks1")
DELIVERED: dict[Normalise, str] = {"device": "uint8", "host": "float32"}
_BATCHES = 4  # that a copy goes round: a loader's `prefetch` + 2
_PIECE = 4 << 20  # bytes of a read of the disk
_BANDWIDTHS = (1, 3)  # GB/s
_local = threading.local()


@dataclass
class Way:
    """One line of the table."""

    name: str
    workers: int
    stored: int
    """Bytes a sample."""
    make: Callable[[], Epoch]
    before: Callable[[], None] = lambda: None
    """Called before each epoch; not timed."""
    epoch: Epoch | None = None
    start: float = 0.0
    rates: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    """Microseconds of processor time a sample, without those of worker processes."""

    def turn(self) -> None:
        """One epoch, timed; the first one from the start of its processes."""
        self.before()
        started = time.perf_counter()
        worked = time.process_time()
        if self.epoch is None:
            self.epoch = self.make()
            next(batches := iter(self.epoch()))
            self.start = time.perf_counter() - started
            list(map(lambda _: None, batches))
            return
        count = sum(BATCH for _ in self.epoch())
        self.rates.append(count / (time.perf_counter() - started))
        self.costs.append(1e6 * (time.process_time() - worked) / count)


def ours(folder: Path, threads: int, where: Normalise) -> Epoch:
    options = LoaderOptions(fields=FIELDS, batch_size=BATCH, seed=0, threads=threads, normalise=where)
    loader = Loader([str(folder)], options)
    numbers = iter(range(10**9))
    return lambda: loader.epoch(next(numbers))


def cold(folder: Path, threads: int) -> Epoch:
    """A loader of its own in each epoch, so that nobody maps the tars between two."""
    return lambda: ours(folder, threads, "device")()


def _forget(folder: Path) -> None:
    """Let the kernel drop the pages of a set's tars."""
    gc.collect()  # a mapped page is not dropped
    for tar in folder.glob("*.tar"):
        with open(tar, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk(folder: Path) -> Epoch:
    """Read the tars of a set from one end to the other; the batches come when all is read."""
    batches = len(ShardSet(folder)) // BATCH
    piece = bytearray(_PIECE)

    def epoch() -> Iterator[int]:
        for tar in sorted(folder.glob("*.tar")):
            with open(tar, "rb", buffering=0) as file:
                while file.readinto(piece):
                    pass
        yield from range(batches)

    return epoch


def numpy_alone(folder: Path, threads: int, where: Normalise) -> Epoch:
    """The loader without the compiled loops."""
    plain = ours(folder, threads, where)

    def epoch() -> Iterator[Any]:
        with compiled.python_alone():
            yield from plain()

    return epoch


Row = Callable[[Sequence[np.ndarray], Sequence[np.ndarray], int], None]
"""Writes a sample, given its parts as they are stored, to a row of a batch."""


def _copy(batch: Sequence[np.ndarray], views: Sequence[np.ndarray], row: int) -> None:
    """As many bytes as the cells and the mask's bits have are copied from the beginning of a picture.

    They are in the processor's cache, as what was just unpacked is.
    """
    for target, view in zip(batch, (*views[:2], views[1][: (1024 * 1024 + 8 * 16 * 16) // 8]), strict=True):
        target[row] = view


def _finish(batch: Sequence[np.ndarray], views: Sequence[np.ndarray], row: int) -> None:
    small, large, masks = batch
    codec.normalise(views[0][-3 * 448 * 448 :].reshape(3, 448, 448), peers.MEAN, peers.STD, small[row])
    large[row] = views[1]
    masks[row] = 0


@cache
def _libzstd() -> ctypes.CDLL:
    library = ctypes.CDLL("libzstd.so.1")
    for name, result in (("createDCtx", ctypes.c_void_p), ("decompressDCtx", ctypes.c_size_t)):
        getattr(library, f"ZSTD_{name}").restype = result
    return library


def _decompress(batch: Sequence[np.ndarray], views: Sequence[np.ndarray], row: int) -> None:
    small, large, bits = batch
    count = int(views[3][:4].view("<u4")[0])
    end = int(views[3][4:8].view("<u4")[0])
    mask = views[3][4 + 4 * count :][:end]
    library = _libzstd()
    if not hasattr(_local, "context"):
        _local.context = ctypes.c_void_p(library.ZSTD_createDCtx())
    for target, view in ((small, views[0]), (large, views[1]), (bits, mask)):
        frame = view[len(codec.GRADIENT) :] if codec.codec_of(memoryview(view)) == "gradient" else view
        into = target[row].ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(target[row].nbytes)
        of = frame.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(frame.nbytes)
        if library.ZSTD_decompressDCtx(_local.context, *into, *of) != target[row].nbytes:
            raise ValueError("not a frame of this size")


BOUNDS: dict[str, tuple[Codec, Row]] = {
    "bound uint8": ("raw", _copy),
    "bound float32": ("raw", _finish),
    "bound zstd": ("zstd", _decompress),
    "bound gradient": ("gradient", _decompress),
}


def bound(root: Path, name: str, threads: int) -> Epoch:
    """The bare work of a loader, done with the parts of all samples at hand."""
    stored, do = BOUNDS[name]
    shards = ShardSet(root / stored)
    views = [[np.frombuffer(data, np.uint8) for data in shards.open(n).members.values()] for n in range(len(shards))]
    small, large, *_ = views[0]
    rows: list[Any] = [np.zeros(small.size, np.uint8), np.zeros(large.size, np.uint8)]
    rows.append(np.zeros((1024 * 1024 + 8 * 16 * 16) // 8, np.uint8))
    if name == "bound float32":
        rows = [np.zeros((3, 448, 448), np.float32), rows[1], np.zeros(1024 * 1024, np.uint8)]
    elif stored != "raw":
        rows = [np.zeros(3 * 448**2, np.uint8), np.zeros(3 * 1024**2, np.uint8), np.zeros(1024 * 128, np.uint8)]
    ring = cycle([[np.stack([row] * BATCH) for row in rows] for _ in range(_BATCHES)])
    pool = ThreadPoolExecutor(max(1, threads))

    def work(batch: Sequence[np.ndarray], start: int, part: range) -> None:
        for row in part:
            do(batch, views[start + row], row)

    def epoch() -> Iterator[int]:
        pending: list[list[Future[None]]] = []
        for start in range(0, len(views) // BATCH * BATCH, BATCH):
            batch = next(ring)
            if not threads:
                yield work(batch, start, range(BATCH)) or start
                continue
            share = BATCH // threads
            pending.append([pool.submit(work, batch, start, range(n, n + share)) for n in range(0, BATCH, share)])
        for number, futures in enumerate(pending):
            for future in futures:
                future.result()
            yield number

    return epoch


def all_ways(root: Path, chosen: Callable[[str], bool], counts: Sequence[int]) -> Iterator[Way]:
    """How the data below `root` can be read, those whose name is wanted; `counts`: threads of bounds and loaders."""

    def stored(folder: str) -> int:
        sizes = [path.stat().st_size for path in (root / folder).rglob("*") if path.is_file()]
        return sum(sizes) // len(ShardSet(root / "raw"))

    for threads in counts:
        for name, (folder, _) in BOUNDS.items():
            if chosen(name):
                yield Way(name, threads, stored(folder), partial(bound, root, name, threads))
        for pictures in EXACT:
            for where, delivered in DELIVERED.items():
                for kind, make in (("loader", ours), ("numpy", numpy_alone)):
                    if chosen(name := f"{kind} {pictures} {delivered}"):
                        yield Way(name, threads, stored(pictures), partial(make, root / pictures, threads, where))
    for pictures in EXACT:
        tars = root / f"cold-{pictures}"
        if chosen(name := f"cold {pictures} uint8"):
            yield Way(name, 2, stored(pictures), partial(cold, tars, 2), partial(_forget, tars))
        if chosen(name := f"disk {pictures} uint8"):
            yield Way(name, 1, stored(pictures), partial(disk, tars), partial(_forget, tars))
    for kind, pattern in (("2250 x 1500", "sa1b/*.jpg"), ("SAV npz", "sav/*/*.npz")):
        paths = sorted(root.glob(pattern)) * 2
        size = sum(path.stat().st_size for path in paths) // len(paths)
        for delivered in DELIVERED.values():
            for workers in (0, 1, 2):
                if chosen(name := f"on the fly {kind} {delivered}"):
                    yield Way(name, workers, size, partial(peers.on_the_fly, paths, workers, delivered == "float32"))
    for peer, (write_own, read) in peers.PEERS.items():
        names = {where: f"{peer} {delivered}" for where, delivered in DELIVERED.items()}
        if not any(map(chosen, names.values())):
            continue
        if write_own and not (root / peer).exists() and not peers.installed(write_own, root / "raw", root / peer):
            continue
        folder = peer if write_own else "raw"
        for workers in (1, 2) if peer in ("ffcv", "spdl") else (0, 1, 2):
            for where, name in names.items():
                if chosen(name):
                    yield Way(name, workers, stored(folder), partial(read, root / folder, workers, where == "host"))


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
    before = anonymous_memory()
    epoch = ours(folder, 2, "device")
    after = []
    for _ in range(epochs):
        list(map(lambda _: None, epoch()))
        after.append(anonymous_memory() - before)
    return after


def spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratio(values: Sequence[float], of: Sequence[float], over: bool = False) -> str:
    """The ratios in the same rounds: of `values` to `of`, or the other way round."""
    pairs = zip(values, of, strict=True)
    return spread([b / a if over else a / b for a, b in pairs], 1 if over else 2)


def print_bandwidths(root: Path) -> None:
    """Print how many samples/s a disk or a network can bring, by codec."""
    print("| codec | bytes a sample | " + " | ".join(f"{rate} GB/s, samples/s" for rate in _BANDWIDTHS) + " |")
    print("|---" * (2 + len(_BANDWIDTHS)) + "|")
    for pictures in EXACT:
        shards = ShardSet(root / pictures)
        size = sum(shard.bytes for shard in shards.manifest.shards) / len(shards)
        print(f"| {pictures} | {size:,.0f} | " + " | ".join(f"{rate * 1e9 / size:,.0f}" for rate in _BANDWIDTHS) + " |")


def measure(ways: Sequence[Way], rounds: int) -> None:
    for number in range(rounds + 1):  # the first round opens and warms up
        for way in ways:
            way.turn()
        print(f"round {number} of {rounds}", flush=True)
    same = {(way.name, way.workers): way for way in ways}
    titles = ["way", "workers or threads", "samples/s", "of the bound", "processor time, us a sample"]
    titles += ["the bound's / this", "loader's rate", "bytes a sample", "first batch, s"]
    print("| " + " | ".join(titles) + " |")
    print("|---" * len(titles) + "|")
    for way in ways:
        delivered = "float32" if way.name.endswith("float32") else "uint8"
        is_ours = way.name.startswith(("loader", "numpy"))
        pictures = way.name.split()[1] if is_ours else "raw"
        limit = delivered if pictures == "raw" else pictures
        bound = same.get((f"bound {limit}", 2)), same.get((f"bound {limit}", way.workers))
        loader = same.get((f"loader raw {delivered}", 2))
        cells = [
            way.name,
            str(way.workers),
            spread(way.rates, 0),
            ratio(way.rates, bound[0].rates) if bound[0] else "",
            spread(way.costs, 0),
            ratio(bound[1].costs, way.costs) if bound[1] and is_ours else "",
            ratio(way.rates, loader.rates, over=True) if loader else "",
            f"{way.stored:,}",
            f"{way.start:.3f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)
    print("of the bound: its rate with 2 threads; processor time: with as many threads as this.")
    print("loader's rate: how often the rate that the loader has with raw shards, 2 threads.")
    for way in ways:
        before = same.get((way.name.replace("loader", "numpy"), way.workers))
        if before and before is not way:
            rates = ratio(way.rates, before.rates)
            print(f"{way.name}, {way.workers}: {rates} of numpy's rate, {ratio(before.costs, way.costs)} by processor")


def main() -> None:
    parser = argparse.ArgumentParser(description="Loading rates, as ratios.")
    parser.add_argument("--samples", type=int, default=16, help="photographs")
    parser.add_argument("--repeats", type=int, default=12, help="how often each stands in an epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="*", default=[0, 1, 2], help="of bounds and loaders")
    parser.add_argument("--only", default="", help="parts of the names of what to measure, with commas between")
    parser.add_argument(
        "--data", type=Path, help="folder for the data, kept for another run; a temporary one by default"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    def chosen(name: str) -> bool:
        return any(part in name for part in arguments.only.split(","))

    with tempfile.TemporaryDirectory() as name:
        root = arguments.data or Path(name)
        write(root, arguments.samples, arguments.repeats)
        if chosen("memory"):
            megabytes = ", ".join(f"{value:.0f}" for value in memory(root / "raw", 10))
            print(f"anonymous memory above the start, MB, after each of 10 epochs of a loader: {megabytes}", flush=True)
        if chosen("bandwidth"):
            print_bandwidths(root)
        ways = [*all_ways(root, chosen, arguments.threads)]
        os.sync()
        if ways:
            measure(ways, arguments.rounds)
        for count in (1000, 10_000) if chosen("first") else ():
            folder = repeat(root / "once-raw", root / f"many-{count}", count)
            taken = [1e3 * first_batch(folder) for _ in range(1 + arguments.rounds)][1:]  # the first one warms up
            print(f"first batch of {count:,} shards, ms: {spread(taken, 0)}", flush=True)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
