"""Time from the start of `cli.py browse` to its first page, and of conditions and orders, for a set of many samples.

    python -m benchmarks.browsing [--samples 1_000_000]

The set has the pictures of a small real one again and again: index, manifest and table have a row for each sample.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from demo.make_sav import write
from pipeline.request import make_request
from pipeline.run import run
from shards.format import INDEX, MANIFEST
from shards.manifest import sha256
from shards.reader import ShardSet
from shards.table import TABLE, write_table
from shards.table_list import TableInfo, record_table

ROWS = 1 << 16  # of a row group
PICTURES = 40
"""Pictures of the first screen."""
QUESTIONS = (
    ("condition", {"where": "area > 0.5"}),
    ("the same again", {"where": "area > 0.5"}),
    ("condition on a list and a text", {"where": "list_max(cells) >= 4 and category = 'c7'"}),
    ("order by a number", {"sort": "-area"}),
    ("order by a text", {"sort": "category"}),
    ("order by a list", {"sort": "-areas"}),
    ("order of the chosen", {"where": "area > 0.5", "sort": "-area"}),
)
PAGE = ("", "browse.css", "browse.js", "common.js", "grid.js", "marks.js", "sample.js", "api/sets")


def make_set(folder: Path, samples: int) -> Path:
    """Write a set of so many samples below `folder`, and return it."""
    raw, small = folder / "raw", folder / "small"
    write(raw, 8)
    run(make_request("sav", raw), small, 1, 0)
    write_table(small)
    shards = ShardSet(small)
    out = folder / "large"
    out.mkdir()
    for info in shards.manifest.shards:
        shutil.copy(small / info.name, out)
    shutil.copy(small / "ledger.jsonl", out)
    np.save(out / INDEX, np.resize(np.load(small / INDEX), samples))
    digest = sha256((out / INDEX).read_bytes())
    manifest = replace(shards.manifest, samples=samples, objects=samples, inputs=samples, index_sha256=digest)
    write_rows(pq.read_table(small / TABLE), out / TABLE, samples, manifest.checksum)
    (out / MANIFEST).write_bytes(manifest.to_bytes())
    record_table(out, manifest, TABLE, TableInfo.of_file(out / TABLE, samples))
    return out


def write_rows(few: pa.Table, path: Path, samples: int, checksum: str) -> None:
    """Write a table of one object per sample: the rows of a small one again and again, with random numbers."""
    random = np.random.default_rng(0)
    about = few.schema.metadata | {b"sa2va-shards": json.dumps({"manifest": checksum, "version": 1}).encode()}
    schema = few.schema.with_metadata(about)
    categories = pa.array([f"c{n}" for n in range(80)])
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for begin in range(0, samples, ROWS):
            positions = np.arange(begin, min(begin + ROWS, samples))
            ends = pa.array(np.arange(0, 2 * len(positions) + 1, 2, dtype=np.int32))
            new = {
                "position": pa.array(positions),
                "area": pa.array(random.random(len(positions)) ** 3),
                "areas": pa.ListArray.from_arrays(ends, random.random(2 * len(positions))),
                "cells": pa.ListArray.from_arrays(ends, random.integers(1, 257, 2 * len(positions), np.int32)),
                "category": categories.take(pa.array(random.integers(0, 80, len(positions)))),
            }
            tiled = few.take(pa.array(positions % len(few)))
            columns = [new.get(name, tiled.column(name)) for name in schema.names]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=ROWS)


def get(address: str, path: str) -> Any:
    """Return an answer of the server: JSON, or bytes."""
    with urllib.request.urlopen(f"{address}/{path}") as answer:
        data = answer.read()
    return json.loads(data) if answer.headers["content-type"] == "application/json" else data


def first_screen(address: str) -> Iterator[tuple[str, float]]:
    """Yield what the page asks for at first, and when it is there."""
    while True:
        try:
            get(address, "")
            break
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.005)
    yield "the server answers", time.perf_counter()
    for path in PAGE[1:]:
        sets = get(address, path)
    name = sets["sets"][0]["name"]
    get(address, f"api/{name}/marks")
    rows = get(address, f"api/{name}/rows?begin=0&count=120")
    yield "page and first 120 samples", time.perf_counter()
    for n, row in enumerate(rows["samples"][:PICTURES], 1):
        get(address, f"api/{name}/{row['position']}/picture?v=0")
        if n in (1, PICTURES):
            yield f"{n} picture{'s' if n > 1 else ''}", time.perf_counter()


def used(process: int) -> tuple[float, str]:
    """Return the processor time of a process so far in seconds, and its largest memory."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, times[11:13])) / os.sysconf("SC_CLK_TCK"), f"peak {kilobytes * 1024 / 1e6:,.0f} MB"


def measure(folder: Path) -> None:
    """Start the server on a set and print the times."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    marks = folder.parent / "marks.jsonl"
    command = [sys.executable, "cli.py", "browse", str(folder), "--port", str(port), "--marks", str(marks)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for what, at in first_screen(address):
            processor, peak = used(process.pid)
            print(f"{what}: {at - started:.2f} s after the start, {processor:.2f} s of a processor; {peak}", flush=True)
        again = time.perf_counter()
        get(address, "")
        for path in (*PAGE[1:], "api/large/rows?begin=500000&count=120"):
            get(address, path)
        print(f"page again, from the middle: {time.perf_counter() - again:.3f} s", flush=True)
        for what, query in QUESTIONS:
            began, before = time.perf_counter(), used(process.pid)[0]
            rows = get(address, f"api/large/rows?{urlencode(query)}")
            took = time.perf_counter() - began
            processor, peak = used(process.pid)
            spent = f"{took:.2f} s, {processor - before:.2f} s of a processor"
            print(f"{what}, {query}: {spent}, {rows['total']:,} samples; {peak}", flush=True)
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Write the set, and measure twice: the first time some files may not be in memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = make_set(Path(name), given.samples)
        for _ in range(given.rounds):
            measure(folder)


if __name__ == "__main__":
    main()
