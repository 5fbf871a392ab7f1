"""The 448 x 448 views of a picture that the vision tower gets: one, or a grid of tiles and a thumbnail."""

from __future__ import annotations

import numpy as np

from pipeline import resize
from pipeline.resize import UInt8
from shards.recipe import Recipe

MOST_TILES = 12
"""Of the official inference; released models were trained with as many."""


def grid(width: int, height: int, most: int, size: int = 448) -> tuple[int, int]:
    """The (columns, rows) of at most `most` tiles whose aspect ratio is closest to the picture's, as InternVL chooses.

    Several grids may be equally close, such as 1 x 1 and 2 x 2. Then the one with the most tiles is taken of those that
    the picture fills at least by half; where there is none, the one with the fewest.
    """
    grids = [(columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
    distance = {shape: abs(width / height - shape[0] / shape[1]) for shape in grids}
    least = min(distance.values())
    closest = sorted((shape for shape in grids if distance[shape] == least), key=lambda shape: shape[0] * shape[1])
    filled = [s for s in closest[1:] if width * height > 0.5 * size * size * s[0] * s[1]]
    return filled[-1] if filled else closest[0]


def views(picture: UInt8, most: int, recipe: Recipe) -> UInt8:
    """(H, W, 3) uint8 -> (n, 3, 448, 448) uint8, each from the original: its tiles and, if they are several, last the
    whole picture. With `most` 1 it is the whole picture alone, which is what shards hold."""
    columns, rows = grid(picture.shape[1], picture.shape[0], most, recipe.vision_size)
    whole = resize.picture(picture, recipe.vision_size, recipe)[None]
    if columns * rows == 1:
        return whole
    return np.concatenate([resize.tiles(picture, columns, rows, recipe.vision_size, recipe), whole])
