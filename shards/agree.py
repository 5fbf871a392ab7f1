"""Do the formats of a frame agree?

The picture in `pixel_values` must be the picture in `g_pixel_values`, and the region in `prompt_masks` the region in
`masks`. Nothing is resized: pictures are compared by means of blocks, regions at the points that the recipe samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shards.codec import Bool, UInt8
from shards.format import Field
from shards.recipe import Recipe

Means = NDArray[np.float32]

_BLOCKS = 64  # a side; both sizes are multiples of it: 448 = 64 * 7, 1024 = 64 * 16
# Root mean square differences in levels of 255. Measured over 16 photographs, noise, checkerboards and text, at sizes
# from 5 x 3 to 3000 x 3000 and with both filters: at most 0.7 for photographs, 4.3 for a checkerboard of single pixels.
_TOO_FAR = 8.0
# Another reading of the picture may fit better by chance, but not much better: a real fault leaves the resampling error
# alone on the other side, and that is a fraction of the difference that it makes.
_CLEARLY_BETTER, _WORTH_ASKING = 0.6, 0.25


@dataclass(frozen=True)
class Disagreement:
    field: str
    what: str
    met: str
    wanted: str


def _means(picture: UInt8) -> Means:
    """(3, S, S) uint8 -> (3, 64, 64): the mean of each block."""
    side = picture.shape[1] // _BLOCKS
    columns = np.add.reduceat(picture, np.arange(0, picture.shape[2], side), axis=2, dtype=np.uint32)
    return np.add.reduceat(columns, np.arange(0, picture.shape[1], side), axis=1).astype(np.float32) / (side * side)


def _distance(a: Means, b: Means) -> float:
    return float(np.sqrt(np.mean(np.square(a - b))))


def _readings(means: Means) -> dict[str, Means]:
    """What `g_pixel_values` could be by mistake, if `means` are those of `pixel_values`."""
    return {
        "BGR for RGB": means[::-1],
        "flipped left to right": means[:, :, ::-1],
        "flipped top to bottom": means[:, ::-1],
        "turned by 180 degrees": means[:, ::-1, ::-1],
        "rows and columns exchanged": means.transpose(0, 2, 1),
    }


def pictures_agree(pictures: Sequence[tuple[UInt8, UInt8]], names: Sequence[str]) -> list[Disagreement]:
    """Compare the pictures of a sample's frames.

    Args:
        pictures: for each frame (3, 448, 448), before normalisation, and (3, 1024, 1024), both uint8.
        names: of the frames' `g_pixel_values` fields.
    """
    small, large = ([_means(frame[i]) for frame in pictures] for i in (0, 1))
    found = []
    for k, name in enumerate(names):
        met = _distance(small[k], large[k])
        others = _readings(small[k])
        others |= {f"the picture of {names[j]}": small[j] for j in range(len(names)) if j != k}
        fits, distance = min(((n, _distance(m, large[k])) for n, m in others.items()), key=lambda item: item[1])
        better = met > _WORTH_ASKING and distance < _CLEARLY_BETTER * met
        if better or met > _TOO_FAR:
            hint = f"; it fits as {fits} ({distance:.1f})" if better and distance < _TOO_FAR else ""
            wanted = f"at most {_TOO_FAR:.0f}, and no other reading that fits better"
            what = "not the picture of pixel_values"
            found.append(Disagreement(name, what, f"a difference of {met:.1f} levels{hint}", wanted))
    return found


def _sampled(stored: int, length: int) -> NDArray[np.int64]:
    """Which of `length` original rows each of `stored` rows holds: nearest, at the centre."""
    return (2 * np.arange(stored, dtype=np.int64) + 1) * length // (2 * stored)


def _original(mask: Bool, height: int, width: int) -> Bool:
    """The original (height, width) mask out of `mask`; exact where neither side is longer than that of `mask`.

    Nearest sampling then repeats rows and columns and leaves none out. Of longer sides it shows the nearest stored row.
    """
    rows, columns = (np.searchsorted(_sampled(mask.shape[0], n), np.arange(n)) for n in (height, width))
    return mask[np.ix_(np.minimum(rows, len(mask) - 1), np.minimum(columns, len(mask) - 1))]


def _cells(original: Bool, recipe: Recipe) -> Bool:
    """The prompt cells by the recipe's pooling."""
    (height, width), grid = original.shape, recipe.grid
    steps = np.arange(grid)
    if recipe.prompt_pooling == "center":
        return original[np.ix_(_sampled(grid, height), _sampled(grid, width))]
    if recipe.prompt_pooling == "corner":
        return original[np.ix_(steps * height // grid, steps * width // grid)]
    side = recipe.vision_size
    at_vision_size = original[np.ix_(_sampled(side, height), _sampled(side, width))]
    return at_vision_size.reshape(grid, side // grid, grid, side // grid).mean(axis=(1, 3)) > 0.5


def _touched(original: Bool, grid: int) -> Bool:
    """The cells that hold a pixel of the object; neighbouring cells share a row where the sizes do not divide."""

    def spans(length: int) -> list[slice]:
        return [slice(i * length // grid, -(-(i + 1) * length // grid)) for i in range(grid)]

    height, width = original.shape
    bands: list[Bool] = [np.any(original[rows], axis=0) for rows in spans(height)]
    return np.array([[band[columns].any() for columns in spans(width)] for band in bands])


def _grown(cells: Bool) -> Bool:
    """`cells` and the eight neighbours of each."""
    padded = np.pad(cells, 1)
    size = len(cells)
    return np.any([padded[i : i + size, j : j + size] for i in range(3) for j in range(3)], axis=0)


def _region_fault(prompt: Bool, mask: Bool, height: int, width: int, recipe: Recipe) -> tuple[str, str] | None:
    """(met, wanted) where `prompt` (grid, grid) is not what the recipe makes of `mask`'s object, else None."""
    exact = height <= len(mask) and width <= len(mask)
    original = _original(mask, height, width)
    cells, touched = _cells(original, recipe), _touched(original, recipe.grid)
    least = recipe.min_prompt_cells
    count = int(prompt.sum())
    if not exact:
        # `masks` holds less than the original did. A cell's sampled point may lie one pixel off and thin parts may be
        # missing: cells at the border of the region are left open, and a few others are let pass.
        open_cells = _grown(touched) & ~_inner(original, recipe.grid)
        differing = int(((prompt != cells) & ~open_cells).sum())
        allowed = min(1, count // 2) if mask.any() else count
        return (f"{differing} of {count} cells differ", "the cells of masks") if differing > allowed else None
    if cells.sum() >= least or recipe.small_regions == "drop":
        differing = int((prompt != cells).sum())
        if differing:
            return f"{differing} of {count} cells differ", f"the {int(cells.sum())} cells of masks"
        few = recipe.small_regions == "drop" and touched.any() and count < least
        return (f"{count} cells", f"at least {least}") if few else None
    if np.any(cells & ~prompt) or np.any(prompt & ~touched):
        outside = int((prompt & ~touched).sum())
        return f"{outside} of {count} cells without the object", "cells that the object touches"
    wanted = min(least, int(touched.sum()))
    return (f"{count} cells", f"{wanted}") if count != wanted else None


def _inner(original: Bool, grid: int) -> Bool:
    """The cells that the object fills, with a margin of two rows and columns around them."""

    def spans(length: int) -> list[slice]:
        edges = [i * length // grid for i in range(grid + 1)]
        return [slice(max(0, a - 2), b + 2) for a, b in pairwise(edges)]

    height, width = original.shape
    bands: list[Bool] = [np.all(original[rows], axis=0) for rows in spans(height)]
    return np.array([[band[columns].all() for columns in spans(width)] for band in bands])


def regions_agree(
    prompts: Bool, masks: Bool, height: int, width: int, recipe: Recipe, field: Field
) -> list[Disagreement]:
    """Compare the regions of one frame, object by object.

    Args:
        prompts: (N, grid, grid).
        masks: (N, 1024, 1024).
        height, width: of the original picture.
        field: the frame's `prompt_masks`.
    """
    found = []
    for n, (prompt, mask) in enumerate(zip(prompts, masks, strict=True)):
        fault = _region_fault(prompt, mask, height, width, recipe)
        if fault is not None:
            found.append(Disagreement(str(field), f"not the region of masks, object {n}", *fault))
    return found
