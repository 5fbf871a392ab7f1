"""What sharding costs beyond the bare work on the same files, and what a second process adds.

    python -m benchmarks.sharding [--source sa1b ...] [--codec gradient ...] [--rate coco ...] [--samples 12]

Bare work: decode, two image resizes and mask resizes per sample, written directly with Pillow, numpy and pycocotools;
annotations are parsed in memory already. Ours: the same files through `pipeline` into a tar in one process, with
annotations read from the records. The two take turns; on a shared machine the ratio of each turn is what counts. It is
printed twice: by the clock, and by processor time, since ours encodes one sample on a second thread while it reads the
next.

Rates: several shards by one process on one core, by one process on two cores (it has a second thread), and by two
processes on two cores, all started before; and the bare work of as many, which shows what the machine can do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from pycocotools import mask as coco

from benchmarks.raw_files import WRITERS
from pipeline.dataset import RawDataset, find_dataset
from pipeline.pictures import FORMATS
from pipeline.request import make_request
from pipeline.task import Progress, write_shard
from shards.format import Codec
from shards.storage.store import LocalFolder

Meta = dict[str, Any]
Times = dict[str, list[float]]


def _resize(picture: Image.Image, masks: Sequence[Image.Image]) -> None:
    for size in (448, 1024):
        np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
    for mask in masks:
        for size in (16, 1024):
            np.asarray(mask.resize((size, size), Image.Resampling.NEAREST))


def _decoded(segmentations: Sequence[Any]) -> list[Image.Image]:
    return [Image.fromarray(coco.decode(one)) for one in segmentations]


def bare_sav(root: Path, metas: Sequence[Meta]) -> None:
    for meta in metas:
        with np.load(root / meta["path"]) as arrays:
            for k in (1, 2):
                picture = Image.fromarray(np.rint(arrays[f"frame{k}"]).astype(np.uint8))
                _resize(picture, [Image.fromarray((arrays[f"mask{k}"] > 127.5).astype(np.uint8))])


def bare_sa1b(root: Path, metas: Sequence[Meta]) -> None:
    for meta in metas:
        content = json.loads((root / meta["path"]).with_suffix(".json").read_bytes())
        picture = Image.open(root / meta["path"], formats=FORMATS).convert("RGB")
        _resize(picture, _decoded([annotation["segmentation"] for annotation in content["annotations"]]))


def bare_coco(root: Path, metas: Sequence[Meta]) -> None:
    for meta in metas:
        picture = Image.open(root / meta["path"], formats=FORMATS).convert("RGB")
        polygons = [annotation["segmentation"] for annotation in meta["annotations"]]
        encoded = [coco.merge(coco.frPyObjects(one, picture.height, picture.width)) for one in polygons]
        _resize(picture, _decoded(encoded))


def bare_openimages(root: Path, metas: Sequence[Meta]) -> None:
    for meta in metas:
        masks = [
            Image.open(root / "masks/train" / item["MaskPath"], formats=FORMATS).convert("L")
            for item in meta["objects"]
        ]
        _resize(Image.open(root / meta["path"], formats=FORMATS).convert("RGB"), masks)


def bare_ref_youtube_vos(root: Path, metas: Sequence[Meta]) -> None:
    for meta in metas:
        for frame in meta["frames"]:
            picture = Image.open(root / meta["path"] / f"{frame['name']}.jpg", formats=FORMATS).convert("RGB")
            annotation = root / meta["path"].replace("JPEGImages", "Annotations") / f"{frame['name']}.png"
            ids = np.asarray(Image.open(annotation, formats=FORMATS))
            _resize(picture, [Image.fromarray((ids == int(item["id"])).view(np.uint8)) for item in meta["objects"]])


def bare_sav_video(root: Path, metas: Sequence[Meta]) -> None:
    frames: dict[str, set[int]] = {}
    for meta in metas:
        frames.setdefault(meta["path"].split("#")[0], set()).update(int(frame["name"]) for frame in meta["frames"])
    pictures: dict[tuple[str, int], Image.Image] = {}
    for path, numbers in frames.items():
        with av.open(str(root / path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for number, frame in enumerate(container.decode(video=0)):
                if number in numbers:
                    pictures[path, number] = frame.to_image()
                if number == max(numbers):
                    break
    parsed = {path: json.loads((root / path.replace(".mp4", "_manual.json")).read_bytes()) for path in frames}
    for meta in metas:
        path = meta["path"].split("#")[0]
        for frame in meta["frames"]:
            number = int(frame["name"])
            encoded = parsed[path]["masklet"][number // 4][int(meta["objects"][0]["id"])]
            _resize(pictures[path, number], _decoded([encoded]))


BARE: dict[str, Callable[[Path, Sequence[Meta]], None]] = {
    "sav": bare_sav,
    "sav-video": bare_sav_video,
    "sa1b": bare_sa1b,
    "coco": bare_coco,
    "openimages": bare_openimages,
    "ref-youtube-vos": bare_ref_youtube_vos,
}


def measure(name: str, codec: Codec, samples: int, seconds: float) -> None:
    with _found(name, codec, samples) as (dataset, root, out):
        store = LocalFolder(out)
        store.work.mkdir(exist_ok=True)

        def ours() -> None:
            write_shard(dataset.job, dataset.inputs, f"{name}-000000", store, out, Progress())

        metas = _metas(dataset, root)
        clock, processor = _turns({"bare": lambda: BARE[name](root, metas), "ours": ours}, seconds)
    rates = {turn: len(metas) / statistics.median(times) for turn, times in clock.items()}
    ratios = [_ratio(times["ours"], times["bare"]) for times in (clock, processor)]
    rows = f"{rates['bare']:8.1f} {rates['ours']:8.1f}   {ratios[0]}   {ratios[1]}"
    print(f"{name:16} {codec:8} {rows}   {len(clock['bare'])} turns", flush=True)


def rates(name: str, codec: Codec, samples: int, seconds: float, shards: int = 8) -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    with _found(name, codec, samples) as (dataset, root, out), ProcessPoolExecutor(2, get_context("spawn")) as pool:
        LocalFolder(out).work.mkdir(exist_ok=True)
        metas = _metas(dataset, root)

        def turn(what: str, processes: int, on: Sequence[int]) -> Callable[[], None]:
            task = (_shards, what, name, dataset, root, metas, out, shards // processes, on)
            return lambda: [done.result() for done in [pool.submit(*task) for _ in range(processes)]] and None

        clock, _ = _turns(
            {
                "bare, 1 process on 1 core": turn("bare", 1, cores[:1]),
                "bare, 2 processes": turn("bare", 2, cores),
                "ours, 1 process on 1 core": turn("ours", 1, cores[:1]),
                "ours, 1 process": turn("ours", 1, cores),
                "ours, 2 processes": turn("ours", 2, cores),
            },
            seconds,
        )
    for what, times in clock.items():
        rate = shards * len(metas) / statistics.median(times)
        first = clock[f"{what[:4]}, 1 process on 1 core"]
        print(f"{name:16} {codec:8} {what:26} {rate:8.1f}   {_ratio(first, times)}", flush=True)


def _shards(
    what: str,
    name: str,
    dataset: RawDataset,
    root: Path,
    metas: Sequence[Meta],
    out: Path,
    count: int,
    on: Sequence[int],
) -> None:
    """Write `count` shards, or do the bare work of as many, in a process of its own on the cores `on`."""
    os.sched_setaffinity(0, on)
    for _ in range(count):
        if what == "bare":
            BARE[name](root, metas)
        else:
            write_shard(dataset.job, dataset.inputs, f"{name}-{os.getpid()}", LocalFolder(out), out, Progress())


@contextmanager
def _found(name: str, codec: Codec, samples: int) -> Iterator[tuple[RawDataset, Path, Path]]:
    """Write the raw files of one shard, and find them: (dataset, root, a folder to write into)."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "raw")
        out = Path(folder, "out")
        out.mkdir()
        WRITERS[name](root, samples)
        yield find_dataset(make_request(name, root, codec=codec), Path(folder, "records")), root, out


def _turns(calls: dict[str, Callable[[], None]], seconds: float) -> tuple[Times, Times]:
    """Return times by the clock and of the processor: at least three turns, for about `seconds` in all."""
    clock: Times = {name: [] for name in calls}
    processor: Times = {name: [] for name in calls}
    beginning = time.perf_counter()
    while len(clock[next(iter(calls))]) < 4 or time.perf_counter() - beginning < seconds:
        for name, call in calls.items():
            started = time.perf_counter()
            used = time.process_time()
            call()
            clock[name].append(time.perf_counter() - started)
            processor[name].append(time.process_time() - used)
    return tuple({name: times[1:] for name, times in found.items()} for found in (clock, processor))  # one warms up


def _metas(dataset: RawDataset, root: Path) -> list[Meta]:
    """Return what the bare loop needs of each sample: path, frames, objects, annotations."""
    metas = []
    for item in dataset.inputs:
        parts = dataset.job.records.parts(item.path)
        raw = dataset.job.source.load(root, item.path, dataset.job.options, parts)
        frames = [{"name": frame.name} for frame in raw.frames]
        objects = [{"id": one.id, **one.more} for one in raw.objects]
        metas.append({"path": item.path, "frames": frames, "objects": objects, "annotations": parts[1:]})
    return metas


def _ratio(ours: Sequence[float], bare: Sequence[float]) -> str:
    ratios = sorted(a / b for a, b in zip(ours, bare, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Sharding against the bare work, as a ratio, and its rates.")
    parser.add_argument("--source", nargs="*", choices=list(BARE), default=list(BARE))
    parser.add_argument("--rate", nargs="*", choices=list(BARE), default=["coco", "sav"])
    parser.add_argument("--codec", nargs="*", choices=["gradient", "zstd", "raw"], default=["gradient", "raw"])
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=8, help="for each line")
    arguments = parser.parse_args()
    print("source           codec      bare/s   ours/s   ours / bare           by processor time")
    for name in arguments.source:
        for codec in arguments.codec:
            measure(name, codec, arguments.samples if name != "sa1b" else -(-arguments.samples // 4), arguments.seconds)
    if arguments.rate:
        print("source           codec                               samples/s   rate / that of 1 process on 1 core")
    for name in arguments.rate:
        for codec in arguments.codec:
            rates(name, codec, arguments.samples, arguments.seconds)


if __name__ == "__main__":
    main()
