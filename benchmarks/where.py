"""Time and memory of a condition over a table of many objects.

    python -m benchmarks.where [--objects 100_000_000]

It writes a table of random numbers, ten objects per sample, and chooses among them in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import resource
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.where import choose_rows

PER_SAMPLE = 10
ROWS = 1 << 16  # of a row group
CONDITIONS = (
    "area > 0.002 and words between 2 and 20",
    "list_max(cells) >= 4 and category = 'c7'",
)


def write(path: Path, objects: int) -> None:
    """Write a table of random values with the columns that the conditions need, and those that stand between them."""
    random = np.random.default_rng(0)
    categories = pa.array([f"c{n}" for n in range(80)])
    writer = None
    for begin in range(0, objects, ROWS):
        count = min(ROWS, objects - begin)
        ends = pa.array(np.arange(count + 1, dtype=np.int32))
        columns = {
            "position": np.arange(begin, begin + count) // PER_SAMPLE,
            "area": random.random(count) ** 3,
            "cells": pa.ListArray.from_arrays(ends, random.integers(1, 257, count, np.int32)),
            "words": random.integers(0, 30, count, np.int32),
            "category": categories.take(pa.array(random.integers(0, 80, count))),
        }
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd", write_page_checksum=True)
        writer.write_table(table)
    if writer:
        writer.close()


def measure(path: Path, condition: str) -> None:
    """Print how long a condition takes and what it adds to the memory of this process."""
    file = pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)
    before = peak()
    started, processor = time.perf_counter(), time.process_time()
    chosen = choose_rows(file, path, -(-file.metadata.num_rows // PER_SAMPLE), condition)
    wall, used = time.perf_counter() - started, time.process_time() - processor
    print(
        f"{chosen}\n{wall:.1f} s, {used:.1f} s of a processor; peak {peak():,.0f} MB, {before:,.0f} before", flush=True
    )


def peak() -> float:
    """Return the largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def in_a_process(function: Callable[..., None], *arguments: object) -> None:
    """Call a function in a new process."""
    process = mp.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def main() -> None:
    """Write the table, and measure each condition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=100_000_000)
    objects = parser.parse_args().objects
    with TemporaryDirectory() as folder:
        path = Path(folder) / "objects.parquet"
        in_a_process(write, path, objects)
        print(f"{objects:,} objects, {path.stat().st_size / 1e6:,.0f} MB")
        for condition in CONDITIONS:
            in_a_process(measure, path, condition)


if __name__ == "__main__":
    main()
