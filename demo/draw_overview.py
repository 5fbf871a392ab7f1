"""Draw the README's picture: a frame, an object's mask, its prompt cells, and what a model predicts for its name.

python -m demo.make_folder data/new --pictures 8 --seed 7
python cli.py shard --source folder --root data/new --out data/new-shards
python -m demo.draw_overview data/new-shards/folder runs/demo docs/overview.png --sample 0
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import shards
from inference.loading import load
from inference.predictor import Predictor
from trainer.model.prompts import SEGMENT

_TILE = 256  # pixels
_TEXT = 22
_GAP = 8
_COLOUR = np.float32([20, 90, 255])

UInt8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]


def tinted(picture: UInt8, region: Bool) -> UInt8:
    """Mix the colour into (H, W, 3) uint8 where (H, W) `region` is set."""
    mixed = np.where(region[..., None], 0.35 * picture + 0.65 * _COLOUR, picture)
    return mixed.astype(np.uint8)


def draw(folder: Path, model: Path, position: int) -> tuple[Image.Image, float]:
    """Draw four tiles side by side, of the first object of a sample; return the IoU of the prediction, too."""
    samples = shards.open_set(folder)
    sample = samples[position]
    name = sample["meta"]["objects"][0]["texts"][0]
    frame = np.ascontiguousarray(sample["g_pixel_values"].transpose(1, 2, 0))
    mask = sample["masks"][0]
    cells = sample["prompt_masks"][0].repeat(64, 0).repeat(64, 1)
    answer = Predictor(load(model), max_new_tokens=16).segment([frame], [SEGMENT[0].format(phrase=name)])[0]
    predicted = answer.masks[0] if len(answer.masks) else np.zeros_like(mask)
    tiles = {
        "frame": frame,
        f'mask of "{name}"': tinted(frame, mask),
        "its 16 x 16 prompt cells": tinted(frame, cells),
        f'model, asked for "{name}"': tinted(frame, predicted),
    }
    width = len(tiles) * (_TILE + _GAP) - _GAP
    sheet = Image.new("RGB", (width, _TILE + _TEXT), "white")
    for i, (title, tile) in enumerate(tiles.items()):
        left = i * (_TILE + _GAP)
        small = tile.reshape(_TILE, 4, _TILE, 4, 3).mean((1, 3))  # 1024 to 256: the mean of each 4 x 4 block
        sheet.paste(Image.fromarray(small.astype(np.uint8)), (left, _TEXT))
        ImageDraw.Draw(sheet).text((left + 2, 2), title, fill=(40, 40, 40), font_size=14)
    iou = (mask & predicted).sum() / max(1, (mask | predicted).sum())
    return sheet, float(iou)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the README's picture.")
    parser.add_argument("set", type=Path, help="folder of a set of single frames, whose objects have texts")
    parser.add_argument("model", type=Path, help="run or model folder")
    parser.add_argument("out", type=Path, help="PNG file to write")
    parser.add_argument("--sample", type=int, default=0)
    arguments = parser.parse_args()
    sheet, iou = draw(arguments.set, arguments.model, arguments.sample)
    sheet.quantize(256).save(arguments.out, optimize=True)
    print(f"{arguments.out}: IoU {iou:.2f}")


if __name__ == "__main__":
    main()
