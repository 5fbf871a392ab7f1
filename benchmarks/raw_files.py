"""Raw files of the usual sizes in the datasets' own layouts, made of scikit-image's photographs and drawn shapes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from demo.make_sav import OUTLINES, photograph
from demo.make_sav import write as write_sav

Bool = NDArray[np.bool_]


@cache
def mosaic(height: int, width: int) -> NDArray[np.uint8]:
    """Return photographs side by side, (height, width, 3), at their own size: large pictures have as much detail."""
    rows = []
    for row in range(-(-height // 300)):
        parts = [np.asarray(photograph(name))[:300] for name in OUTLINES]
        turned = [part[:, :: 1 if (row + i) % 2 else -1] for i, part in enumerate(parts * (1 + width // 1000))]
        rows.append(np.concatenate(turned[row % 4 :] + turned[: row % 4], axis=1)[:, :width])
    return np.ascontiguousarray(np.concatenate(rows)[:height])


def shapes(height: int, width: int, count: int, seed: int) -> list[Bool]:
    """Return masks (height, width) of ellipses whose areas are distributed as SA-1B's: median 0.5 % of the picture."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[:height, :width]
    found = []
    for _ in range(count):
        radius = np.sqrt(np.clip(rng.lognormal(np.log(0.005), 1.3), 2e-4, 0.3) * height * width / np.pi)
        tall = rng.uniform(0.6, 1.6)
        centre = (rng.uniform(0, height), rng.uniform(0, width))
        mask = np.zeros((height, width), np.bool_)
        # Computed within the box around it.
        rows, columns = (
            slice(max(0, int(middle - reach)), int(middle + reach) + 2)
            for middle, reach in zip(centre, (radius * tall, radius / tall), strict=True)
        )
        mask[rows, columns] = ((y[rows] - centre[0]) / tall) ** 2 + (
            (x[:, columns] - centre[1]) * tall
        ) ** 2 <= radius**2
        found.append(mask)
    return found


def run_lengths(mask: Bool) -> dict[str, Any]:
    encoded = coco.encode(np.asfortranarray(mask.view(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def _polygon(mask: Bool) -> list[float]:
    rows, columns = np.nonzero(mask)
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    high = np.ptp(rows) / 2 + 1
    wide = np.ptp(columns) / 2 + 1
    points = np.stack([columns.mean() + wide * np.cos(angles), rows.mean() + high * np.sin(angles)], 1)
    return [round(value, 2) for value in points.ravel().tolist()]


def _photo(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mosaic(height, width)).save(path, quality=92)


def sav(root: Path, count: int) -> None:
    write_sav(root, count)


def sa1b(root: Path, count: int) -> None:
    """Write pictures of 2250 x 1500 with 100 masks each."""
    for n in range(count):
        _photo(root / f"sa_{n}.jpg", 1500, 2250)
        masks = shapes(1500, 2250, 100, n)
        annotations = [{"id": i, "segmentation": run_lengths(mask)} for i, mask in enumerate(masks)]
        image = {"image_id": n, "file_name": f"sa_{n}.jpg", "height": 1500, "width": 2250}
        (root / f"sa_{n}.json").write_text(json.dumps({"image": image, "annotations": annotations}))


def coco2017(root: Path, count: int) -> None:
    """Write pictures of 640 x 480 with 7 polygons each."""
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "height": 480, "width": 640} for n in range(count)]
    annotations = []
    for n in range(count):
        _photo(root / f"train2017/{n:012d}.jpg", 480, 640)
        for mask in shapes(480, 640, 7, n):
            segmentation = [_polygon(mask)] if mask.any() else [[1.0, 1, 9, 1, 9, 9]]
            about = {"id": len(annotations), "image_id": n, "category_id": 1, "iscrowd": 0}
            annotations.append({**about, "segmentation": segmentation})
    body = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "annotations").mkdir()
    (root / "annotations/instances_train2017.json").write_text(json.dumps(body))


def openimages(root: Path, count: int) -> None:
    """Write photos of 1024 x 768 with 3 masks each, as PNG at the photo's size."""
    rows = ["MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"]
    (root / "masks/train").mkdir(parents=True)
    for n in range(count):
        image = f"{n:016x}"
        _photo(root / f"images/train/{image}.jpg", 768, 1024)
        for i, mask in enumerate(shapes(768, 1024, 3, n)):
            name = f"{image}_m0{i}_{i:08x}.png"
            Image.fromarray(mask).save(root / f"masks/train/{name}")
            rows.append(f"{name},{image},/m/0{i},{i:08x},0,1,0,1,0.8,")
    (root / "train-annotations-object-segmentation.csv").write_text("\n".join(rows) + "\n")
    (root / "oidv7-class-descriptions.csv").write_text("LabelName,DisplayName\n/m/00,A\n/m/01,B\n/m/02,C\n")


def ref_youtube_vos(root: Path, count: int) -> None:
    """Write videos of 1280 x 720: 20 frames as JPEG, and palette PNGs of 2 objects."""
    videos = {}
    for n in range(count):
        name = f"{n:010x}"
        frames = [f"{5 * k:05d}" for k in range(20)]
        for frame in frames:
            _photo(root / f"train/JPEGImages/{name}/{frame}.jpg", 720, 1280)
            ids = np.zeros((720, 1280), np.uint8)
            for number, mask in enumerate(shapes(720, 1280, 2, n), 1):
                ids[mask] = number
            image = Image.fromarray(ids, mode="P")
            image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
            path = root / f"train/Annotations/{name}/{frame}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        expressions = {str(i): {"exp": "a thing", "obj_id": str(i + 1)} for i in range(2)}
        videos[name] = {"expressions": expressions, "frames": frames}
    path = root / "meta_expressions/train/meta_expressions.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"videos": videos}))


def sav_video(root: Path, count: int) -> None:
    """Write videos of 1280 x 720: 97 frames at 24 per second, with 4 masklets in every fourth frame."""
    root.mkdir(parents=True)
    for n in range(max(1, count // 4)):
        name = f"sav_{n:06d}"
        large = mosaic(900, 1500)
        with av.open(str(root / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=24)
            stream.width = 1280
            stream.height = 720
            stream.pix_fmt = "yuv420p"
            for k in range(97):
                frame = np.ascontiguousarray(large[k : k + 720, 2 * k : 2 * k + 1280])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        masks = [run_lengths(mask) for mask in shapes(720, 1280, 4, n)]
        body = {"video_id": name, "masklet": [masks] * 25, "masklet_id": [0, 1, 2, 3], "masklet_num": 4}
        (root / f"{name}_manual.json").write_text(json.dumps(body))


WRITERS = {
    "sav": sav,
    "sav-video": sav_video,
    "sa1b": sa1b,
    "coco": coco2017,
    "openimages": openimages,
    "ref-youtube-vos": ref_youtube_vos,
}
