"""Benchmark of what comparing checksums costs a loader.

It is the loader's rate over ten epochs with `data.check: first`, divided by its rate with `never`.

    python -m benchmarks.checking [--rounds 5] [--epochs 10] [--samples 8] [--repeats 12] [--data FOLDER]

The samples are those of `benchmarks.loading`, uint8, one of 100 masks, 2 threads. Two loaders that are made anew in
each round take turns, an epoch each, so that a machine that slows down slows both. Printed are the medians of the
rounds, with the lowest and the highest: the ratio of the rates over all epochs, and over the first alone, in which all
is compared; by the clock, and by the processor's time, which other work on the machine disturbs less. Then the rate of
the checksum itself.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.loading import FIELDS, spread
from benchmarks.loading_data import EXACT, write
from benchmarks.peers import BATCH
from shards.checksum import crc32
from trainer.data.loader import Loader, LoaderOptions

CLOCKS = {"by the clock": time.perf_counter, "by processor time": time.process_time}


def one_round(folder: Path, epochs: int, swapped: bool) -> dict[str, tuple[float, float]]:
    """Return the time without the check, divided by that with it, by clock: of all epochs, and of the first."""
    checks = ("never", "first") if swapped else ("first", "never")
    options = LoaderOptions(fields=FIELDS, batch_size=BATCH, seed=0, threads=2, normalise="device")
    loaders = {check: Loader([str(folder)], replace(options, check=check)) for check in checks}
    taken: dict[str, list[list[float]]] = {check: [] for check in checks}
    for epoch in range(epochs):
        for check, loader in loaders.items():
            started = [clock() for clock in CLOCKS.values()]
            list(map(lambda _: None, loader.epoch(epoch)))
            taken[check].append([clock() - start for clock, start in zip(CLOCKS.values(), started, strict=True)])
    without = np.array(taken["never"])
    with_it = np.array(taken["first"])
    overall = without.sum(0) / with_it.sum(0)
    first = without[0] / with_it[0]
    return {name: (overall[n], first[n]) for n, name in enumerate(CLOCKS)}


def rate(checksum: Callable[[bytes], object], data: bytes) -> float:
    """GB/s, the best of five."""
    best = 1e9
    for _ in range(5):
        started = time.perf_counter()
        checksum(data)
        best = min(best, time.perf_counter() - started)
    return len(data) / best / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description="What comparing checksums costs a loader.")
    parser.add_argument("--samples", type=int, default=8, help="photographs")
    parser.add_argument("--repeats", type=int, default=12, help="how often each stands in an epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--data", type=Path, help="folder for the data, kept for another run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = arguments.data or Path(name)
        write(root, arguments.samples, arguments.repeats)
        for codec in EXACT:
            rounds = [one_round(root / codec, arguments.epochs, bool(n % 2)) for n in range(arguments.rounds + 1)][1:]
            for clock in CLOCKS:
                overall, first = ([each[clock][i] for each in rounds] for i in (0, 1))
                ratios = f"over {arguments.epochs} epochs {spread(overall, 3)}, in the first {spread(first, 3)}"
                print(f"{codec}, {clock}: rate with the check over that without: {ratios}", flush=True)
    data = os.urandom(64 << 20)
    print(f"crc32: {rate(crc32, data):.1f} GB/s; zlib's {rate(zlib.crc32, data):.1f} GB/s, of 64 MiB in memory")


if __name__ == "__main__":
    main()
