"""Time and memory of finding the pictures that two lots of sets share.

    python -m benchmarks.overlap [--pictures 1_000_000] [--distance 6] [--threads 2]

Both sides have so many random hashes. A hundredth of each is planted: twins with equal pixels, and hashes that
differ in as many bits as are allowed, or fewer. All of them must be found. Some of the random ones are near by chance,
too. A hundred thousand pictures of each side are equal, as blank pages are.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from tqdm import tqdm

from benchmarks.where import in_a_process, peak
from shards.overlap import DISTANCE, Pictures, find_overlap

EQUAL = 100_000


def made(pixels: np.ndarray, hashes: np.ndarray) -> Pictures:
    """Return pictures with these checksums and hashes, each of a file of its own."""
    numbers = np.arange(len(pixels))
    zeros = np.zeros(len(pixels), np.int32)
    return Pictures((), zeros, numbers, zeros, pixels, hashes, numbers.astype(np.uint64))


def flipped(hashes: np.ndarray, bits: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the hashes with so many bits changed each."""
    places = np.argsort(random.random((len(hashes), 64)), axis=1)
    ones = np.uint64(1) << places.astype(np.uint64)
    chosen = np.arange(64) < bits[:, None]
    return hashes ^ np.bitwise_or.reduce(np.where(chosen, ones, np.uint64(0)), axis=1)


def measure(pictures: int, distance: int, threads: int) -> None:
    """Make both sides, find their twins, and compare these with what was planted."""
    random = np.random.default_rng(0)
    sides = [random.integers(1, 1 << 64, pictures, np.uint64) for _ in range(2)]
    pixels = [random.integers(0, 1 << 64, pictures, np.uint64) for _ in range(2)]
    planted = pictures // 200
    sides[1][:planted] = sides[0][:planted]
    pixels[1][:planted] = pixels[0][:planted]
    near = slice(planted, 2 * planted)
    sides[1][near] = flipped(sides[0][near], random.integers(0, distance + 1, planted), random)
    for hashes, sums in zip(sides, pixels, strict=True):
        hashes[-EQUAL:] = sums[-EQUAL:] = 5
    a, b = (made(*columns) for columns in zip(pixels, sides, strict=True))
    before = peak()
    started, processor = time.perf_counter(), time.process_time()
    with tqdm(total=1.0, mininterval=0.5, bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}") as bar:
        found = find_overlap(a, b, distance, threads, bar.update)
    wall, used = time.perf_counter() - started, time.process_time() - processor
    missing = planted * 2 - int(np.isin(np.arange(2 * planted), found.a).sum())
    print(f"{pictures:,} against {pictures:,}, at most {distance} bits: {wall:.0f} s, {used:.0f} s of a processor")
    print(f"peak {peak():,.0f} MB, {before:,.0f} before")
    print(f"{found.equal:,} equal pairs, {found.near:,} nearly equal; {missing} of {2 * planted:,} planted not found")
    if missing or found.equal < EQUAL**2 + planted:
        raise SystemExit(1)


def main() -> None:
    """Parse the options, and measure in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--distance", type=int, default=DISTANCE)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    in_a_process(measure, options.pictures, options.distance, options.threads)


if __name__ == "__main__":
    main()
