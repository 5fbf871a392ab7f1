"""The 448 x 448 views of a picture for the vision tower: the whole picture, or a grid of tiles and a thumbnail."""

from __future__ import annotations

import numpy as np

from pipeline import resize
from pipeline.resize import UInt8
from shards.recipe import Recipe

MOST_TILES = 12
"""Most tiles of the official inference and of the released models' training."""


def grid(width: int, height: int, most: int, size: int = 448) -> tuple[int, int]:
    """Return the (columns, rows) of at most `most` tiles whose aspect ratio is closest to the picture's.

    Several grids may be equally close, such as 1 x 1 and 2 x 2. As in InternVL, the one with the most tiles wins among
    those whose area is less than twice the picture's; if there is none, the one with the fewest tiles.
    """
    grids = [(columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
    distance = {shape: abs(width / height - shape[0] / shape[1]) for shape in grids}
    least = min(distance.values())
    closest = sorted((shape for shape in grids if distance[shape] == least), key=lambda shape: shape[0] * shape[1])
    filled = [s for s in closest[1:] if width * height > 0.5 * size * size * s[0] * s[1]]
    return filled[-1] if filled else closest[0]


def views(picture: UInt8, most: int, recipe: Recipe) -> UInt8:
    """Resize a picture (H, W, 3) uint8 to its views (n, 3, 448, 448) uint8, each from the original.

    The tiles come first. If there are several, the whole picture follows as the last view. With `most` = 1 the only
    view is the whole picture, as in shards.
    """
    columns, rows = grid(picture.shape[1], picture.shape[0], most, recipe.vision_size)
    whole = resize.picture(picture, recipe.vision_size, recipe)[None]
    if columns * rows == 1:
        return whole
    return np.concatenate([resize.tiles(picture, columns, rows, recipe.vision_size, recipe), whole])
