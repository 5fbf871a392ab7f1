"""How much memory all processes together take for the annotations of a full dataset while it is sharded.

    python -m benchmarks.memory [--source refcoco] [--source openimages] [--share 1.0] [--workers 8]

Writes annotation files in a dataset's layout with as many rows as the full set has, and 64 of its pictures: the other
inputs become lines of the ledger, so that indexing is measured and not decoding. Shards them with `cli.py shard` and
adds up the PSS of its process tree. The reference is measured in the same run: the memory of one process that holds the
same files as Python objects, times the workers.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import pickle
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from demo.make_sav import photograph

_PICTURES = 64
_LIMIT = 2 << 30
_SIZE = (480, 640)


def _jpeg() -> bytes:
    file = io.BytesIO()
    photograph("chelsea").resize(_SIZE[::-1]).save(file, "JPEG")
    return file.getvalue()


def write_refcoco(root: Path, share: float) -> str:
    """Write RefCOCO (unc): 19,994 images, 50,000 refs, 142,209 sentences, instances.json of about 96 MB."""
    images, refs, sentences = (int(count * share) for count in (19_994, 50_000, 142_209))
    folder = root / "refcoco"
    pictures = root / "images/mscoco/images/train2014"
    folder.mkdir(parents=True)
    pictures.mkdir(parents=True)
    names = [f"COCO_train2014_{n:012d}.jpg" for n in range(images)]
    for name in names[:: max(1, images // _PICTURES)]:
        (pictures / name).write_bytes(_jpeg())
    outline = [round(float(value), 2) for value in np.random.default_rng(0).uniform(50, 400, 30)]
    instances = {
        "images": [
            {"id": n, "file_name": name, "height": 480, "width": 640, "license": 3, "flickr_url": f"http://x/{n:032x}"}
            for n, name in enumerate(names)
        ],
        "annotations": [
            {
                **{"id": n, "image_id": n % images, "category_id": n % 80 + 1, "segmentation": [outline]},
                **{"area": 1234.56789, "iscrowd": 0, "bbox": outline[:4]},
            }
            for n in range(10 * images)
        ],
        "categories": [{"id": n + 1, "name": f"thing {n}", "supercategory": "thing"} for n in range(80)],
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    texts = [
        {"sent_id": n, "raw": f"The THING number {n} on the left", "sent": f"the thing number {n} on the left"}
        for n in range(sentences)
    ]
    for one in texts:
        one["tokens"] = one["sent"].split()
    loaded = [
        {
            **{"ref_id": n, "ann_id": n, "image_id": n % images, "category_id": n % 80 + 1, "split": "train"},
            **{"file_name": f"COCO_train2014_{n % images:012d}_{n}.jpg", "sentences": texts[n::refs]},
            "sent_ids": [one["sent_id"] for one in texts[n::refs]],
        }
        for n in range(refs)
    ]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(loaded, protocol=0))
    return f"{images:,} images, {refs:,} refs, {sentences:,} sentences, {10 * images:,} annotations"


def read_refcoco(root: Path) -> Any:
    with open(root / "refcoco/refs(unc).p", "rb") as file:
        return json.loads((root / "refcoco/instances.json").read_bytes()), pickle.load(file)


def write_openimages(root: Path, share: float) -> str:
    """Write Open Images V7, train: 2.8 million masks of 944,037 photos, with the masks in sixteen zips."""
    rows = int(2_800_000 * share)
    images = int(944_037 * share)
    pictures = root / "images/train"
    pictures.mkdir(parents=True)
    ids = [f"{n * 0x9E3779B97F4A7C15 % 2**64:016x}" for n in range(1, images + 1)]
    for name in ids[:: max(1, images // _PICTURES)]:
        (pictures / f"{name}.jpg").write_bytes(_jpeg())
    (root / "class-descriptions-boxable.csv").write_text("".join(f"/m/0{n:04x},Class {n}\n" for n in range(350)))
    clicks = ";".join(f"0.{n * 7919 % 100_000:05d} 0.{n * 104_729 % 100_000:05d} {n % 2}" for n in range(1, 13))
    by_letter: dict[str, list[str]] = {}
    with open(root / "train-annotations-object-segmentation.csv", "w") as table:
        table.write("MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks\n")
        for n in range(rows):
            image = ids[n % images]
            label = f"0{n % 350:04x}"
            box = f"{n:08x}"
            name = f"{image}_m{label}_{box}.png"
            by_letter.setdefault(name[0], []).append(name)
            table.write(
                f"{name},{image},/m/{label},{box},0.64375,0.896875,0.33645833333333336,0.525,0.86864,{clicks}\n"
            )
    mask = io.BytesIO()
    Image.fromarray(np.arange(_SIZE[1])[None].repeat(_SIZE[0], 0) > 200).save(mask, "PNG")
    for letter, names in by_letter.items():
        with zipfile.ZipFile(root / f"train-masks-{letter}.zip", "w") as packed:
            for name in names:
                packed.writestr(zipfile.ZipInfo(name), mask.getvalue())
    return f"{images:,} photos, {rows:,} masks"


def read_openimages(root: Path) -> Any:
    with open(root / "train-annotations-object-segmentation.csv", newline="") as file:
        return list(csv.DictReader(file))


SETS: dict[str, tuple[Callable[[Path, float], str], Callable[[Path], Any]]] = {
    "refcoco": (write_refcoco, read_refcoco),
    "openimages": (write_openimages, read_openimages),
}


def peak_of(command: list[str], log: Path) -> tuple[int, float]:
    """Run a command. Return the largest sum of PSS of its process tree, in bytes, and its seconds."""
    started = time.monotonic()
    peak = 0
    with open(log, "wb") as output, psutil.Popen(command, stdout=output, stderr=output) as process:
        while process.poll() is None:
            total = 0
            for one in (process, *process.children(recursive=True)):
                try:
                    total += one.memory_full_info().pss
                except psutil.Error:
                    continue  # it ended meanwhile
            peak = max(peak, total)
            time.sleep(0.2)
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{log.read_text()}")
    return peak, time.monotonic() - started


def measure(source: str, share: float, workers: int, folder: Path) -> bool:
    """Print the memory that `source` takes. Return whether it is below the limit."""
    root = folder / source
    log = folder / "log"
    counts = SETS[source][0](root, share)
    files = [file for file in root.rglob("*") if file.suffix != ".jpg" and file.is_file()]
    print(f"{source}: {counts}; {sum(file.stat().st_size for file in files) / 1e6:,.0f} MB of annotations", flush=True)
    here = ["-m", "benchmarks.memory", "--read", source, "--root", str(root)]
    shard = ["cli.py", "shard", "--source", source, "--root", str(root), "--out", str(folder / "shards")]
    held, _ = peak_of([sys.executable, *here], log)
    peak, seconds = peak_of([sys.executable, *shard, "--workers", str(workers), "--max-bad", "1"], log)
    print(f"  shard, {workers} workers: {peak / 2**20:,.0f} MiB in all at its peak, {seconds:,.0f} s")
    print(f"  the same files as Python objects: {held / 2**20:,.0f} MiB per process, times {workers} = ", end="")
    print(f"{workers * held / 2**20:,.0f} MiB; ours / reference: {peak / (workers * held):.2f}", flush=True)
    return peak <= _LIMIT


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Memory of all processes of a sharding run, from a full set's annotations."
    )
    parser.add_argument("--source", action="append", choices=SETS)
    parser.add_argument("--share", type=float, default=1.0, help="of the full set's rows")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--read", choices=SETS, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        kept = SETS[arguments.read][1](arguments.root)
        time.sleep(1)  # held while it is measured
        del kept
        return
    with tempfile.TemporaryDirectory() as folder:
        fits = [
            measure(source, arguments.share, arguments.workers, Path(folder)) for source in arguments.source or SETS
        ]
    if not all(fits):
        sys.exit(f"more than {_LIMIT >> 20} MiB")


if __name__ == "__main__":
    main()
