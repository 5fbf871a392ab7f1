"""Write a small SAV set in its real layout from photographs that come inside scikit-image's wheel.

    python demo/make_sav.py data/sav --pairs 72

Each pair shows one object in two views of its photograph (shift, scale, crop), with the object's outline, drawn once by
hand on the photograph, as the mask in both. With `--scenes`, objects are large and views show several of them.
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIZE = 512
SMALLEST = 0.003
"""Smallest share of the picture that an object may cover."""
LARGEST = 0.40
"""Largest share."""

Point = tuple[float, float]
Box = tuple[float, float, float, float]


def _ellipse(x: float, y: float, radius_x: float, radius_y: float) -> list[Point]:
    angles = np.linspace(0, 2 * math.pi, 120, endpoint=False)
    return [(x + radius_x * math.cos(a), y + radius_y * math.sin(a)) for a in angles]


_HELMET: list[Point] = [
    (278, 512),
    (277, 480),
    (282, 440),
    (295, 405),
    (312, 378),
    (335, 358),
    (362, 349),
    (395, 344),
    (425, 347),
]
_HELMET += [(455, 360), (478, 385), (491, 415), (497, 455), (489, 475), (486, 495), (490, 512)]
_HEAD: list[Point] = [
    (153, 75),
    (155, 55),
    (172, 40),
    (190, 35),
    (205, 22),
    (228, 16),
    (252, 20),
    (275, 32),
    (292, 50),
    (300, 70),
]
_HEAD += [(301, 90), (295, 112), (285, 125), (278, 133), (268, 137), (262, 150), (256, 166), (240, 176), (222, 180)]
_HEAD += [(205, 177), (192, 168), (184, 150), (181, 133), (172, 128), (160, 112), (154, 95)]
_NOSE: list[Point] = [
    (241, 233),
    (252, 229),
    (270, 230),
    (290, 232),
    (282, 243),
    (270, 252),
    (264, 260),
    (257, 266),
    (249, 247),
]
_ROCKET: list[Point] = [
    (322, 127),
    (329, 135),
    (333, 147),
    (333, 176),
    (331, 181),
    (331, 407),
    (311, 407),
    (311, 147),
    (315, 135),
]

# Photograph -> object -> outlines in the photograph's pixels; the object is their union.
OUTLINES: dict[str, dict[str, list[list[Point]]]] = {
    "astronaut": {
        "helmet": [_HELMET],
        "head": [_HEAD],
        "mission patch": [_ellipse(170.5, 385.5, 36.5, 36.5)],
        "name tag": [[(280, 341), (329, 347), (325, 377), (282, 373)]],
        "window reflected in the visor": [[(356, 424), (372, 428.5), (365.5, 460), (345.5, 456.5)]],
    },
    "chelsea": {
        "left eye": [_ellipse(170, 116, 34, 30)],
        "right eye": [_ellipse(319, 137, 22.5, 27)],
        "nose": [_NOSE],
    },
    "coffee": {
        "inside of the cup": [_ellipse(292, 108, 100, 85)],
        "bowl of the spoon": [_ellipse(366, 284, 40, 41)],
    },
    "rocket": {"rocket": [_ROCKET]},
}
_SUIT: list[Point] = [(22, 512), (25, 430), (28, 350), (45, 280), (75, 240), (115, 220), (125, 250), (170, 285)]
_SUIT += [(230, 295), (290, 270), (305, 232), (335, 260), (355, 310), (360, 348), (335, 358), (312, 378), (295, 405)]
_SUIT += [(282, 440), (277, 480), (278, 512)]
_FLAG: list[Point] = [
    (0, 0),
    (60, 0),
    (62, 60),
    (45, 90),
    (60, 140),
    (95, 200),
    (75, 235),
    (50, 270),
    (25, 350),
    (0, 390),
]
_TABLE: list[Point] = [
    (600, 0),
    (600, 400),
    (420, 400),
    (462, 330),
    (482, 240),
    (470, 170),
    (435, 110),
    (420, 70),
    (500, 0),
]
_SAUCER: list[Point] = [(120, 105), (172, 130), (182, 180), (205, 205), (200, 290), (235, 310), (320, 325), (400, 330)]
_SAUCER += [(360, 365), (300, 388), (230, 385), (150, 350), (95, 290), (78, 230), (85, 165)]

SCENES: dict[str, dict[str, list[list[Point]]]] = {
    "astronaut": {"suit": [_SUIT], "helmet": [_HELMET], "head": [_HEAD], "flag": [_FLAG]},
    "coffee": {"table": [_TABLE], "cup": [_ellipse(292, 108, 100, 85)], "saucer": [_SAUCER]},
}
"""Large objects, several in each photograph."""


@dataclass(frozen=True)
class View:
    """A crop of a photograph, and the mask of an object in it."""

    frame: NDArray[np.float32]
    """(512, 512, 3), 0..255."""
    mask: NDArray[np.float32]
    """(512, 512), 0 or 255."""


@cache
def photograph(name: str) -> Image.Image:
    """Return one of scikit-image's photographs, RGB."""
    from skimage import data

    return Image.fromarray(getattr(data, name)()).convert("RGB")


def draw(outlines: list[list[Point]], box: Box, size: tuple[int, int]) -> Image.Image:
    """Draw the union of the outlines inside `box` of the photograph on a canvas of `size`."""
    left, top, right, bottom = box
    scale_x = size[0] / (right - left)
    scale_y = size[1] / (bottom - top)
    canvas = Image.new("L", size)
    for outline in outlines:
        # A pixel's centre has whole coordinates when Pillow draws.
        points = [((x - left) * scale_x - 0.5, (y - top) * scale_y - 0.5) for x, y in outline]
        ImageDraw.Draw(canvas).polygon(points, fill=255)
    return canvas


def _view(photo: Image.Image, outlines: list[list[Point]], box: Box) -> View:
    frame = photo.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)
    mask = draw(outlines, box, (SIZE, SIZE))
    return View(np.asarray(frame, np.float32), np.asarray(mask, np.float32))


def _boxes(photo: Image.Image, outlines: list[list[Point]], zoom: float, rng: np.random.Generator) -> Iterator[Box]:
    """Yield two crops with the photograph's aspect ratio that contain the whole object at a share within the limits.

    `zoom` 0 is the widest first crop, 1 the closest.
    """
    width, height = photo.size
    xs, ys = zip(*[point for outline in outlines for point in outline], strict=True)
    left = max(0.0, min(xs))
    top = max(0.0, min(ys))
    right = min(float(width), max(xs))
    bottom = min(float(height), max(ys))
    whole = np.asarray(draw(outlines, (0, 0, width, height), photo.size))
    area = np.count_nonzero(whole) / (width * height)
    margin = 1.02
    most = min(1.0, math.sqrt(area / SMALLEST) / margin)
    least = min(most, max((right - left) / width, (bottom - top) / height, math.sqrt(area / LARGEST)) * margin)
    scale = most * (least / most) ** zoom
    factor = rng.uniform(1.1, 1.3)
    other = next((s for s in (scale * factor, scale / factor) if least <= s <= most), least)
    for side in (scale, other):
        crop_width = side * width
        crop_height = side * height
        x = rng.uniform(max(0.0, right - crop_width), min(left, width - crop_width))
        y = rng.uniform(max(0.0, bottom - crop_height), min(top, height - crop_height))
        yield (x, y, x + crop_width, y + crop_height)


def pairs(count: int, seed: int = 0) -> Iterator[tuple[str, str, View, View]]:
    """Yield (photograph, object, first view, second view) for each object in turn; the same for the same seed."""
    rng = np.random.default_rng(seed)
    objects = [(name, thing, shapes) for name, things in OUTLINES.items() for thing, shapes in things.items()]
    for i in range(count):
        name, thing, shapes = objects[i % len(objects)]
        photo = photograph(name)
        zoom = float(i // len(objects)) if i < 2 * len(objects) else rng.uniform()  # both ends first
        first, second = (_view(photo, shapes, box) for box in _boxes(photo, shapes, zoom, rng))
        yield name, thing, first, second


def scenes(count: int, seed: int = 0) -> Iterator[tuple[str, str, View, View]]:
    """Yield as `pairs` from `SCENES`. The views are random crops, so that they do not reveal which object is meant."""
    rng = np.random.default_rng(seed)
    objects = [(name, thing, shapes) for name, things in SCENES.items() for thing, shapes in things.items()]
    for i in range(count):
        name, thing, shapes = objects[i % len(objects)]
        photo = photograph(name)
        first, second = (_view(photo, shapes, crop(photo, shapes, 0.7, rng)) for _ in range(2))
        yield name, thing, first, second


def crop(photo: Image.Image, outlines: list[list[Point]], least: float, rng: np.random.Generator) -> Box:
    """Draw a crop of 0.6 to 0.9 of each side with at least the share `least` of an object."""
    width, height = photo.size
    while True:
        side = rng.uniform(0.6, 0.9)
        x = rng.uniform(0, (1 - side) * width)
        y = rng.uniform(0, (1 - side) * height)
        box = (x, y, x + side * width, y + side * height)
        if shown(photo, outlines, box) >= least:
            return box


def shown(photo: Image.Image, outlines: list[list[Point]], box: Box) -> float:
    """Return the share of an object that lies inside `box` of its photograph."""
    width, height = photo.size
    left, top, right, bottom = box
    whole = np.count_nonzero(draw(outlines, (0, 0, width, height), photo.size))
    return np.count_nonzero(draw(outlines, box, (round(right - left), round(bottom - top)))) / whole


def write(root: Path, count: int, seed: int = 0, scenery: bool = False) -> list[Path]:
    """Write `count` pairs below `root` as SAV's loaders expect them; file names start anew in each folder."""
    shutil.rmtree(root, ignore_errors=True)
    written: list[Path] = []
    in_folder: dict[str, int] = {}
    for name, _, first, second in (scenes if scenery else pairs)(count, seed):
        folder = root / f"sav_{name}"
        folder.mkdir(parents=True, exist_ok=True)
        number = in_folder[name] = in_folder.get(name, -1) + 1
        path = folder / f"masklet_data_{number:05d}.npz"
        np.savez(path, frame1=first.frame, mask1=first.mask, frame2=second.frame, mask2=second.mask)
        written.append(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a small SAV set from scikit-image's photographs.")
    parser.add_argument("root", type=Path, help="folder to write, replaced if it is there")
    parser.add_argument("--pairs", type=int, default=72)
    parser.add_argument("--seed", type=int, default=0, help="of the views")
    parser.add_argument("--scenes", action="store_true", help="large objects, several in each view")
    arguments = parser.parse_args()
    written = write(arguments.root, arguments.pairs, arguments.seed, arguments.scenes)
    size = sum(path.stat().st_size for path in written)
    print(f"{len(written)} pairs, {size / 1e6:.0f} MB: {arguments.root}")


if __name__ == "__main__":
    main()
