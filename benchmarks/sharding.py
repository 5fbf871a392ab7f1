"""What sharding costs beyond the bare work on the same files, in one process.

    python -m benchmarks.sharding [--source sa1b ...] [--samples 24] [--rounds 5]

Bare work: decode, two image resizes, mask resizes, as one would write them down with Pillow, numpy and pycocotools,
each done once; annotations lie parsed in memory. Ours: the same files through `pipeline` into a tar, annotations read
from the index. The two take turns; the ratio of each turn is what counts on a shared machine. Printed twice: by the
clock, and by processor time, since ours encodes one sample while it reads the next.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from pycocotools import mask as coco

from benchmarks.raw_files import WRITERS
from pipeline.plan import Plan, make_plan
from pipeline.records import open_records
from pipeline.sources import choices_of, source_named
from pipeline.store import Folder
from pipeline.task import write_shard
from shards.recipe import RECIPES

Meta = dict[str, Any]


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
        said = json.loads((root / meta["path"]).with_suffix(".json").read_bytes())
        picture = Image.open(root / meta["path"]).convert("RGB")
        _resize(picture, _decoded([annotation["segmentation"] for annotation in said["annotations"]]))


def bare_coco(root: Path, metas: Sequence[Meta]) -> None:
    for meta in metas:
        picture = Image.open(root / meta["path"]).convert("RGB")
        polygons = [annotation["segmentation"] for annotation in meta["annotations"]]
        encoded = [coco.merge(coco.frPyObjects(one, picture.height, picture.width)) for one in polygons]
        _resize(picture, _decoded(encoded))


def bare_openimages(root: Path, metas: Sequence[Meta]) -> None:
    for meta in metas:
        masks = [Image.open(root / "masks/train" / item["MaskPath"]).convert("L") for item in meta["objects"]]
        _resize(Image.open(root / meta["path"]).convert("RGB"), masks)


def bare_ref_youtube_vos(root: Path, metas: Sequence[Meta]) -> None:
    for meta in metas:
        for frame in meta["frames"]:
            picture = Image.open(root / meta["path"] / f"{frame['name']}.jpg").convert("RGB")
            annotation = root / meta["path"].replace("JPEGImages", "Annotations") / f"{frame['name']}.png"
            ids = np.asarray(Image.open(annotation))
            _resize(picture, [Image.fromarray((ids == int(item["id"])).view(np.uint8)) for item in meta["objects"]])


def bare_sav_video(root: Path, metas: Sequence[Meta]) -> None:
    wanted: dict[str, set[int]] = {}
    for meta in metas:
        wanted.setdefault(meta["path"].split("#")[0], set()).update(int(frame["name"]) for frame in meta["frames"])
    pictures: dict[tuple[str, int], Image.Image] = {}
    for path, numbers in wanted.items():
        with av.open(str(root / path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for number, frame in enumerate(container.decode(video=0)):
                if number in numbers:
                    pictures[path, number] = frame.to_image()
                if number == max(numbers):
                    break
    parsed = {path: json.loads((root / path.replace(".mp4", "_manual.json")).read_bytes()) for path in wanted}
    for meta in metas:
        path = meta["path"].split("#")[0]
        for frame in meta["frames"]:
            number = int(frame["name"])
            given = parsed[path]["masklet"][number // 4][int(meta["objects"][0]["id"])]
            _resize(pictures[path, number], _decoded([given]))


BARE: dict[str, Callable[[Path, Sequence[Meta]], None]] = {
    "sav": bare_sav,
    "sav-video": bare_sav_video,
    "sa1b": bare_sa1b,
    "coco": bare_coco,
    "openimages": bare_openimages,
    "ref-youtube-vos": bare_ref_youtube_vos,
}


def measure(name: str, samples: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder, "raw"), Folder(Path(folder, "out"))
        out.work.mkdir(parents=True)
        WRITERS[name](root, samples)
        source = source_named(name)
        plan = make_plan(source, root, RECIPES["default"], 10**12, Path(folder, "records"), choices_of(source, {}))

        def ours() -> None:
            write_shard(plan.job, plan.inputs, f"{name}-000000", out, out.work, lambda count: None)

        metas = _metas(plan, root)
        turns = {"bare": lambda: BARE[name](root, metas), "ours": ours}
        clock: dict[str, list[float]] = {turn: [] for turn in turns}
        processor: dict[str, list[float]] = {turn: [] for turn in turns}
        for _ in range(rounds + 1):  # the first round warms up
            for turn, call in turns.items():
                started, used = time.perf_counter(), time.process_time()
                call()
                clock[turn].append(time.perf_counter() - started)
                processor[turn].append(time.process_time() - used)
    rates = {turn: len(metas) / statistics.median(times[1:]) for turn, times in clock.items()}
    ratios = [_ratio(times["ours"][1:], times["bare"][1:]) for times in (clock, processor)]
    print(f"{name:16} {rates['bare']:8.1f} {rates['ours']:8.1f}   {ratios[0]}   {ratios[1]}", flush=True)


def _metas(plan: Plan, root: Path) -> list[Meta]:
    """What the bare loop must know of each sample: frames, objects, annotations."""
    metas = []
    for item in plan.inputs:
        parts = open_records(plan.job.records).parts(item.path)
        raw = plan.job.source.load(root, item.path, plan.job.options, parts)
        frames = [{"name": frame.name} for frame in raw.frames]
        objects = [{"id": one.id, **one.more} for one in raw.objects]
        metas.append({"path": item.path, "frames": frames, "objects": objects, "annotations": parts[1:]})
    return metas


def _ratio(ours: Sequence[float], bare: Sequence[float]) -> str:
    ratios = sorted(a / b for a, b in zip(ours, bare, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Sharding against the bare work, as a ratio.")
    parser.add_argument("--source", nargs="*", choices=list(BARE), default=list(BARE))
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print("source             bare/s   ours/s   ours / bare          by processor time")
    for name in arguments.source:
        measure(name, arguments.samples, arguments.rounds)


if __name__ == "__main__":
    main()
