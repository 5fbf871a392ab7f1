"""Write pictures with named objects in the layout of docs/datasets/folder.md, from scikit-image's photographs.

    python -m demo.make_folder data/folder --pictures 40

The objects are those of `make_sav.py --scenes`, in other views.
"""

from __future__ import annotations

import argparse
import json
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from demo.make_sav import SCENES, SIZE, Box, Point, crop, photograph, shown

_LEAST = 0.5  # share of an object that must lie in the picture


def write(root: Path, count: int, seed: int = 0) -> None:
    """Write `count` pictures with their named objects below `root`, made for each object in turn."""
    shutil.rmtree(root, ignore_errors=True)
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    every = [(name, shapes) for name, things in SCENES.items() for shapes in things.values()]
    with open(root / "samples.jsonl", "w", encoding="utf-8") as lines:
        for number in range(count):
            name, shapes = every[number % len(every)]
            photo = photograph(name)
            box = crop(photo, shapes, _LEAST, rng)
            path = f"images/{number:05d}.png"
            photo.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box).save(root / path)
            objects = []
            for thing, outlines in SCENES[name].items():
                if shown(photo, outlines, box) >= _LEAST:
                    objects.append({"id": thing, "mask": [_placed(o, box) for o in outlines], "texts": [thing]})
            lines.write(json.dumps({"image": path, "objects": objects}) + "\n")


def _placed(outline: list[Point], box: Box) -> list[float]:
    """Return x and y of each point in turn, in pixels of the picture that was cut out as `box`."""
    left, top, right, bottom = box
    return [*chain(*((SIZE * (x - left) / (right - left), SIZE * (y - top) / (bottom - top)) for x, y in outline))]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write pictures with named objects from scikit-image's photographs.")
    parser.add_argument("root", type=Path, help="folder to write, replaced if it is there")
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    write(arguments.root, arguments.pictures, arguments.seed)
    print(f"{arguments.pictures} pictures: {arguments.root}")


if __name__ == "__main__":
    main()
