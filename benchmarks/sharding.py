"""What sharding costs beyond the bare work on the same files, in one process.

    python -m benchmarks.sharding [--pairs 24] [--rounds 5]

Bare work: read the npz, round, resize to 448 and 1024, resize the masks. Ours: the same files through `pipeline` into a
tar. The two take turns; the ratio of each turn is what counts on a shared machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from demo.make_sav import write
from pipeline.plan import make_plan
from pipeline.sources import source_named
from pipeline.task import write_shard
from shards.recipe import RECIPES


def bare(paths: list[Path]) -> None:
    for path in paths:
        with np.load(path) as arrays:
            for k in (1, 2):
                picture = Image.fromarray(np.rint(arrays[f"frame{k}"]).astype(np.uint8))
                mask = Image.fromarray((arrays[f"mask{k}"] > 127.5).astype(np.uint8))
                for size in (448, 1024):
                    np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
                for size in (16, 1024):
                    np.asarray(mask.resize((size, size), Image.Resampling.NEAREST))


def main() -> None:
    parser = argparse.ArgumentParser(description="Sharding against the bare work, as a ratio.")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder, "sav"), Path(folder, "out")
        out.mkdir()
        paths = write(root, arguments.pairs)
        plan = make_plan(source_named("sav"), root, RECIPES["default"], 10**12, Path(folder, "records"), {})

        def ours() -> None:
            write_shard(plan.job, plan.inputs, "sav-000000", out, out, lambda count: None)

        seconds: dict[str, list[float]] = {"bare": [], "ours": []}
        for _ in range(arguments.rounds + 1):  # the first round warms up
            for name, call in (("bare", lambda: bare(paths)), ("ours", ours)):
                started = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - started)
    for name, times in seconds.items():
        rates = sorted(arguments.pairs / t for t in times[1:])
        print(f"{name}: {statistics.median(rates):.1f} pairs/s (from {rates[0]:.1f} to {rates[-1]:.1f})")
    ratios = sorted(a / b for a, b in zip(seconds["ours"][1:], seconds["bare"][1:], strict=True))
    print(f"ours / bare: {statistics.median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
