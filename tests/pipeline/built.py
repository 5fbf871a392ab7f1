"""Datasets built for tests from photographs and known shapes, and one way through shard, verify and preview."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from demo.make_sav import photograph
from pipeline.dataset import find_inputs
from pipeline.derive import Deriver
from pipeline.raw import RawSample
from pipeline.records import Records
from pipeline.request import make_request
from pipeline.run import RunSummary, run
from pipeline.sources import choices_of, source_named
from shards.preview import preview
from shards.reader import ShardSet
from shards.verification import verify

HEIGHT = 96
WIDTH = 128
SQUARE = [10, 20, 50, 20, 50, 60, 10, 60]


def box(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> NDArray[np.bool_]:
    mask = np.zeros(size, np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a mask as compressed run lengths, as JSON holds them."""
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}


def counts(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a mask as uncompressed run lengths."""
    flat = mask.ravel(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *lengths] if flat[0] else lengths}


def jpeg(name: str = "chelsea", size: tuple[int, int] = (HEIGHT, WIDTH), orientation: int | None = None) -> bytes:
    """Return a photograph cut to `size`, as a JPEG."""
    image = photograph(name).crop((0, 0, size[1], size[0]))
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


def put(path: Path, content: bytes | Any) -> Path:
    """Write bytes, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def tar_of(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as target:
        for name, data in members.items():
            target.writestr(name, data)
    return out.getvalue()


class Found:
    """The inputs that a source finds below a root, and its samples."""

    def __init__(self, name: str, root: Path, work: Path, **options: Any) -> None:
        self.source = source_named(name)
        self.root = root
        self.choices = choices_of(self.source, options)
        self.counts = find_inputs(self.source, root, self.choices, work / "records.sqlite")
        self.records = Records(work / "records.sqlite")
        self.paths = [item.path for item in self.records.inputs()]

    def load(self, path: str | None = None) -> RawSample:
        """Return the sample of a path, or the only one."""
        if path is None:
            (path,) = self.paths
        return self.source.load(self.root, path, self.choices, self.records.parts(path))


def through(
    name: str, root: Path, work: Path, max_bad: float = 0, **options: Any
) -> tuple[RunSummary, dict[str, Mapping[str, Any]]]:
    """Shard, verify against the raw files, preview: the summary, and the samples' JSON by their paths."""
    summary = run(make_request(name, root, shard_bytes=10_000_000, **options), work / name, 1, max_bad)
    manifest = summary.manifest
    assert manifest.inputs == manifest.samples + sum(manifest.left_out.values())
    (work / "against").mkdir()
    raw = Deriver(root, work / "against")
    report = verify([str(work / name)], derive=raw.derive, same_inputs=raw.same_inputs, workers=1)
    assert report.ok, report.table()
    page = preview(work / name, work / "page").read_text("utf-8")
    assert page.count("<img") + page.count("text alone") == min(8, manifest.samples)
    shards = ShardSet(work / name)
    return summary, {meta["path"]: meta for meta, _ in map(shards.sample, range(len(shards)))}
