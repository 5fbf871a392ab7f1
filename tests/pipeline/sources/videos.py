"""Small videos of a real photograph with moving objects, for datasets of videos."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
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
from shards.verification import verify

HEIGHT = 120
WIDTH = 160


@cache
def picture(n: int) -> np.ndarray:
    """Return frame n, a moving window of a photograph: (120, 160, 3) uint8."""
    rows = (2 * n + 3 * np.arange(HEIGHT)) % 512
    columns = (3 * n + 3 * np.arange(WIDTH)) % 512
    return np.asarray(photograph("astronaut"))[np.ix_(rows, columns)]


def disc(x: float, y: float, radius: float, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def run_lengths(mask: np.ndarray, *, text: bool = True) -> dict[str, Any]:
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode() if text else encoded["counts"]}


def write_frame(file: Path, n: int, quality: int = 95) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(n)).save(file, quality=quality)


def write_ids(file: Path, masks: Mapping[int, np.ndarray]) -> None:
    """Write a palette PNG of object ids whose colours are not the ids."""
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number, mask in masks.items():
        ids[mask] = number
    image = Image.fromarray(ids, mode="P")
    image.putpalette([0, 0, 0] + [value for n in range(1, 256) for value in ((37 * n) % 256, (91 * n) % 256, 255 - n)])
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


def find(name: str, root: Path, records: Path, **options: Any) -> tuple[dict[str, int], Records]:
    source = source_named(name)
    counts = find_inputs(source, root, choices_of(source, options), records)
    return counts, Records(records)


def load(name: str, root: Path, records: Path, which: int = 0, **options: Any) -> RawSample:
    """Return the sample of one of the inputs that the source finds."""
    source = source_named(name)
    found = find(name, root, records, **options)[1]
    path = found.inputs()[which].path
    return source.load(root, path, choices_of(source, options), found.parts(path))


def through(
    name: str, root: Path, folder: Path, *, recipe: str = "default", max_bad: float = 0, **options: Any
) -> RunSummary:
    """Shard, verify against the raw files, preview."""
    summary = run(make_request(name, root, recipe=recipe, shard_bytes=100_000_000, **options), folder / "set", 1, 0)
    (folder / "work").mkdir()
    against = Deriver(root, folder / "work")
    report = verify([str(folder / "set")], derive=against.derive, same_inputs=against.same_inputs, workers=1)
    assert report.ok, report.table()
    page = preview(folder / "set", folder / "page", 2).read_text()
    assert "<img" in page
    return summary


def write_video(file: Path, frames: int, *, rotation: int = 0, gop: int = 12) -> None:
    """Write H.264 with B-frames, 24 frames per second."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "12", "preset": "veryfast"})
        stream.width = WIDTH
        stream.height = HEIGHT
        stream.pix_fmt = "yuv420p"
        stream.gop_size = gop
        stream.codec_context.max_b_frames = 2
        if rotation:
            stream.set_display_rotation(rotation)
        for n in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(n), format="rgb24")))
        container.mux(stream.encode())


def number_of(decoded: Any, among: range) -> int:
    """Return the frame of `among` that is nearest to a decoded picture."""
    return min(among, key=lambda n: float(np.abs(np.asarray(decoded, int) - picture(n)).mean()))
