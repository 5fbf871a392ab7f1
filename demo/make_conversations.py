"""Write videos with expressions and captions with masks, in their datasets' layouts, from scikit-image's photographs.

    python -m demo.make_conversations data/mevis data/gcg --videos 16 --pictures 24

A video (MeViS's layout) moves over a photograph; its expressions name an object, or two at once. A caption (GranDf's
layout) names the objects of a picture. The objects are those of `make_sav.py --scenes`, in other views.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from demo.make_sav import SCENES, SIZE, Box, crop, draw, photograph, shown

FRAMES = 4
_LEAST = 0.5  # share of an object that must lie in a picture, or in the first and the last frame


def write_videos(root: Path, count: int, seed: int = 0) -> None:
    """Write `count` videos of `FRAMES` frames below `root`, each with an expression per object, and one for two."""
    shutil.rmtree(root, ignore_errors=True)
    rng = np.random.default_rng(seed)
    videos: dict[str, Any] = {}
    masks: dict[str, list[dict[str, Any] | None]] = {}
    for number in range(count):
        name, shapes = _scene(number)
        ends = [crop(photograph(name), shapes, _LEAST, rng) for _ in range(2)]
        boxes = [_between(*ends, n / (FRAMES - 1)) for n in range(FRAMES)]
        folder = root / "train/JPEGImages" / f"{number:03d}"
        folder.mkdir(parents=True)
        for frame, box in enumerate(boxes):
            _picture(name, box).save(folder / f"{frame:05d}.jpg", quality=95)
        things = _visible(name, ends[0], ends[1])
        ids = {thing: str(len(masks) + place) for place, thing in enumerate(things)}
        for thing, number_of_mask in ids.items():
            masks[number_of_mask] = [_run_lengths(_mask(name, thing, box)) for box in boxes]
        named = [[thing] for thing in things] + ([things[:2]] if len(things) > 1 else [])
        expressions = {
            str(place): {"exp": " and ".join(group), "obj_id": [0], "anno_id": [int(ids[thing]) for thing in group]}
            for place, group in enumerate(named)
        }
        frames = [f"{frame:05d}" for frame in range(FRAMES)]
        videos[f"{number:03d}"] = {"expressions": expressions, "frames": frames}
    (root / "train/meta_expressions.json").write_text(json.dumps({"videos": videos}))
    (root / "train/mask_dict.json").write_text(json.dumps(masks))


def write_captions(root: Path, count: int, seed: int = 0) -> None:
    """Write `count` pictures below `root`, each with a caption that names its objects, and their masks."""
    shutil.rmtree(root, ignore_errors=True)
    folder = root / "images/grandf/train"
    folder.mkdir(parents=True)
    (root / "annotations").mkdir()
    rng = np.random.default_rng(seed)
    records = []
    for number in range(count):
        name, shapes = _scene(number)
        box = crop(photograph(name), shapes, _LEAST, rng)
        _picture(name, box).save(folder / f"{number:05d}.jpg", quality=95)
        caption = ""
        groundings = {}
        for thing in _visible(name, box):
            caption += " and " if caption else ""
            place = [len(caption), len(caption) + len(thing)]
            groundings[thing] = {"token_positives": place, "rle_masks": [_run_lengths(_mask(name, thing, box))]}
            caption += thing
        records.append({"file_name": f"{number:05d}.jpg", "caption": caption, "groundings": groundings})
    (root / "annotations/GranDf_HA_GCG_train.json").write_text(json.dumps(records))


def _scene(number: int) -> tuple[str, list[list[tuple[float, float]]]]:
    """Return the photograph of picture `number`, and the outlines of the object that must be in it."""
    every = [(name, shapes) for name, things in SCENES.items() for shapes in things.values()]
    return every[number % len(every)]


def _visible(name: str, *boxes: Box) -> list[str]:
    """Return the objects that lie by half or more in each box."""
    photo = photograph(name)
    return [
        thing for thing, shapes in SCENES[name].items() if all(shown(photo, shapes, box) >= _LEAST for box in boxes)
    ]


def _between(first: Box, last: Box, part: float) -> Box:
    left, top, right, bottom = ((1 - part) * a + part * b for a, b in zip(first, last, strict=True))
    return (left, top, right, bottom)


def _picture(name: str, box: Box) -> Image.Image:
    return photograph(name).resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)


def _mask(name: str, thing: str, box: Box) -> NDArray[np.bool_]:
    return np.asarray(draw(SCENES[name][thing], box, (SIZE, SIZE))) > 0


def _run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [*mask.shape], "counts": encoded["counts"].decode("ascii")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write videos and captions with masks from scikit-image's photographs."
    )
    parser.add_argument("videos", type=Path, help="folder of the videos, replaced if it is there")
    parser.add_argument("captions", type=Path, help="folder of the captions, replaced if it is there")
    parser.add_argument("--videos", dest="video_count", type=int, default=16)
    parser.add_argument("--pictures", type=int, default=24, help="pictures with a caption")
    parser.add_argument("--seed", type=int, default=2)
    arguments = parser.parse_args()
    write_videos(arguments.videos, arguments.video_count, arguments.seed)
    write_captions(arguments.captions, arguments.pictures, arguments.seed)
    print(f"{arguments.video_count} videos: {arguments.videos}; {arguments.pictures} captions: {arguments.captions}")


if __name__ == "__main__":
    main()
