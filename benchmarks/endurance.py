"""Whether memory stays flat while a set of thousands of samples is sharded, verified and read for two epochs.

    python -m benchmarks.endurance [--samples 20000] [--workers 2] [--codec gradient] [--plot runs/endurance.png]

The data are the photographs of scikit-image with their outlined objects, as hard links under as many names; they go
through the real verbs. Every second, two numbers are recorded of the whole process tree: the memory that it holds
(anonymous and shared; PSS, so shared pages count once), and the pages of mapped files, which the kernel takes back when
it needs them. Flat means: the maximum of the last quarter is at most 1.1 times that of the second quarter. Each verb is
its own reference.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import psutil

from demo.make_sav import OUTLINES, photograph

_FLAT = 1.1


@dataclass
class MemoryTrace:
    """The memory of one verb over time."""

    name: str
    seconds: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    """MiB."""
    mapped: list[float] = field(default_factory=list)
    """MiB of pages of mapped files."""

    def growth(self) -> float:
        """Return the maximum held in the last quarter over that in the second; in the first, processes start."""
        quarter = max(1, len(self.held) // 4)
        return max(self.held[-quarter:]) / max(self.held[quarter : 2 * quarter])


def write_raw(root: Path, samples: int) -> None:
    """Write a dataset in the layout of docs/datasets/folder.md."""
    (root / "images").mkdir(parents=True)
    names = list(OUTLINES)
    for name in names:
        photograph(name).save(root / f"{name}.jpg", quality=92)
    with open(root / "samples.jsonl", "w") as lines:
        for n in range(samples):
            name = names[n % len(names)]
            os.link(root / f"{name}.jpg", root / f"images/{n:06d}.jpg")
            polygons = {thing: [[*chain(*line)] for line in shape] for thing, shape in OUTLINES[name].items()}
            objects = [{"id": thing, "mask": mask, "texts": [thing]} for thing, mask in polygons.items()]
            lines.write(json.dumps({"image": f"images/{n:06d}.jpg", "objects": objects}) + "\n")


def _memory(process: psutil.Process) -> tuple[float, float]:
    """Return (held, mapped) of a process tree, in MiB."""
    held = mapped = 0
    for one in (process, *process.children(recursive=True)):
        try:
            text = Path(f"/proc/{one.pid}/smaps_rollup").read_text()
        except OSError:
            continue  # it ended meanwhile
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines() if line.endswith(" kB")}
        held += sizes.get("Pss_Anon", 0) + sizes.get("Pss_Shmem", 0)
        mapped += sizes.get("Pss_File", 0)
    return held / 1024, mapped / 1024


def traced(name: str, command: list[str], log: Path) -> MemoryTrace:
    """Run `command` and record its memory; a failure ends the benchmark."""
    trace = MemoryTrace(name)
    started = time.monotonic()
    with open(log, "wb") as output, psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        while process.poll() is None:
            held, mapped = _memory(process)
            if held:
                trace.seconds.append(time.monotonic() - started)
                trace.held.append(held)
                trace.mapped.append(mapped)
            time.sleep(1)
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{log.read_text()}")
    return trace


def read(folder: Path, threads: int) -> None:
    """Read two epochs, as a training on a CPU does."""
    from trainer.data.loader import Loader, LoaderOptions

    fields = "pixel_values1", "g_pixel_values1", "prompt_masks1", "masks1"
    loader = Loader([str(folder)], LoaderOptions(fields=fields, batch_size=8, seed=0, threads=threads))
    for epoch in range(2):
        keys = {key for batch in loader.epoch(epoch) for key in batch.keys}
        assert len(keys) == 8 * loader.steps_per_epoch


def plot(runs: list[MemoryTrace], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(runs), figsize=(4 * len(runs), 3), layout="constrained")
    for axis, run in zip(axes, runs, strict=True):
        axis.plot(run.seconds, run.held, label="held")
        axis.plot(run.seconds, run.mapped, label="pages of mapped files", linewidth=0.8)
        axis.set(title=run.name, xlabel="seconds", ylabel="MiB, all processes", ylim=(0, None))
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory over time of sharding, verifying and reading.")
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--codec", default="gradient")
    parser.add_argument("--folder", type=Path, help="where the data is written meanwhile: 1.5 MB per sample")
    parser.add_argument("--plot", type=Path, default=Path("runs/endurance.png"))
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        return read(arguments.read, arguments.workers)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        raw = Path(folder, "raw")
        out = Path(folder, "shards")
        log = Path(folder, "log")
        write_raw(raw, arguments.samples)
        workers = ["--workers", str(arguments.workers)]
        shard = ["--source", "folder", "--root", str(raw), "--out", str(out), "--codec", arguments.codec]
        verbs = {
            "shard": ["cli.py", "shard", *shard, "--shard-size", "250MB", *workers],
            "verify": ["cli.py", "verify-shard", str(out / "folder"), *workers],
            "two epochs": ["-m", "benchmarks.endurance", "--read", str(out / "folder"), *workers],
        }
        runs = []
        for name, command in verbs.items():
            run = traced(name, [sys.executable, *command], log)
            rate = arguments.samples * (2 if name == "two epochs" else 1) / run.seconds[-1]
            print(
                f"{name:11} {run.seconds[-1]:6.0f} s, {rate:6.1f} samples/s; held at most {max(run.held):6.0f} MiB, "
                f"last quarter / second {run.growth():.2f}; mapped at most {max(run.mapped):6.0f} MiB",
                flush=True,
            )
            runs.append(run)
        size = sum(file.stat().st_size for file in (out / "folder").iterdir())
    plot(runs, arguments.plot)
    print(f"{arguments.samples:,} samples, {size / 1e9:.1f} GB of shards; plot: {arguments.plot}")
    if growing := [run.name for run in runs if run.growth() > _FLAT]:
        sys.exit(f"memory grows: {', '.join(growing)}")


if __name__ == "__main__":
    main()
