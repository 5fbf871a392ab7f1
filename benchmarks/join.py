"""Time and memory of a join of many rows in a random order.

    python -m benchmarks.join [--objects 20_000_000]

It writes a table of objects, ten per sample, and a file with a number and a text for each of them, shuffled, and joins
them in a process of its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.where import ROWS, in_a_process, peak
from shards.join import Source, write_joined
from shards.table_list import JoinedInfo

PER_SAMPLE = 10
Numbers = NDArray[np.int64]


def write(path: Path, numbers: Numbers, more: Callable[[Numbers], dict[str, pa.Array]]) -> None:
    """Write key, number in the sample and `more` columns of the objects with these numbers in the set."""
    writer = None
    for begin in range(0, len(numbers), ROWS):
        some = numbers[begin : begin + ROWS]
        keys = pa.array([f"sa_{n // PER_SAMPLE:09d}" for n in some.tolist()])
        table = pa.table({"key": keys, "object": pa.array(some % PER_SAMPLE, pa.int32()), **more(some)})
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd", write_page_checksum=True)
        writer.write_table(table)
    if writer:
        writer.close()


def later(numbers: Numbers) -> dict[str, pa.Array]:
    """Return columns that say of which object they are."""
    captions = pa.array([f"a thing that has the number {n}" for n in numbers.tolist()])
    return {"score": pa.array(numbers / 2**30), "caption": captions}


def measure(folder: Path) -> None:
    """Print how long a join takes and what it adds to the memory of this process."""
    table = folder / "objects.parquet"
    objects = pq.ParquetFile(table, pre_buffer=False, page_checksum_verification=True)
    source = Source.open(folder / "later.parquet")
    before = peak()
    started, processor = time.perf_counter(), time.process_time()
    about = JoinedInfo("later.parquet", "", source.by, source.columns)
    found = write_joined(objects, table, source, folder / "joined.parquet", about, "")
    wall, used = time.perf_counter() - started, time.process_time() - processor
    assert (found.without_partner, found.unused) == (0, 0)
    print(f"{wall:.1f} s, {used:.1f} s of a processor; peak {peak():,.0f} MB, {before:,.0f} before", flush=True)


def main() -> None:
    """Write both files, and measure the join."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=20_000_000)
    count = parser.parse_args().objects
    with TemporaryDirectory() as folder:
        write(Path(folder) / "objects.parquet", np.arange(count), lambda numbers: {})
        write(Path(folder) / "later.parquet", np.random.default_rng(0).permutation(count), later)
        print(f"{count:,} objects, {(Path(folder) / 'later.parquet').stat().st_size / 1e6:,.0f} MB to join", flush=True)
        in_a_process(measure, Path(folder))


if __name__ == "__main__":
    main()
