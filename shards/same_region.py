"""Comparing the region in `prompt_masks` with the region in `masks`, without resizing.

`masks` samples the original mask at the centres of 1024 x 1024 pixels. An original of at most 1024 pixels per side can
be recovered from it: its prompt cells are computed again and must be equal. Of a larger original the rows and columns
between the samples are unknown: only certain contradictions count.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shards import compiled
from shards.codec import Bool, UInt8
from shards.format import Field
from shards.recipe import Recipe
from shards.same_picture import Disagreement

Steps = NDArray[np.int64]
Fault = tuple[str, str, str]
"""(what, met, wanted)."""

_DIFFERS = "not the region of masks"


@lru_cache(maxsize=256)
def centres(length: int, count: int) -> Steps:
    """Return (count,) int64: the rows, of `length`, that Pillow's NEAREST takes for `count` rows. Not to be changed."""
    if count & (count - 1) == 0:  # exact in binary fractions
        return (2 * np.arange(count, dtype=np.int64) + 1) * length // (2 * count)
    steps = np.full(count, length / count)
    steps[0] /= 2
    return np.cumsum(steps).astype(np.int64)  # Pillow also adds them up one by one, with the same rounding


@lru_cache(maxsize=256)
def _enlargement(length: int, count: int) -> tuple[Steps, Steps]:
    """Return `centres`, and the first of the `count` rows that takes each of `length`: (count,) and (length,) int64."""
    rows = centres(length, count)
    return rows, np.searchsorted(rows, np.arange(length))


def original_mask(bits: UInt8, height: int, width: int) -> Bool | None:
    """Return the (height, width) bool mask that packed bits (S, S // 8) were enlarged from, with height and width <= S.

    None if they are not the nearest-neighbour enlargement of any.
    """
    rows, first_row = _enlargement(height, len(bits))
    columns, first_column = _enlargement(width, len(bits))
    found = compiled.shrunk(bits, rows, first_row, columns, first_column)
    if found is not None:
        return None if isinstance(found, bool) else found
    mask = np.unpackbits(bits, axis=1).view(np.bool_)
    if not np.array_equal(mask[first_row[rows]], mask):
        return None
    distinct = np.ascontiguousarray(mask[first_row])
    # Neighbours in a row may differ only where another column of the original begins.
    differs = (distinct[:, 1:] != distinct[:, :-1]).view(np.uint8).max(axis=0)
    if differs[columns[1:] == columns[:-1]].any():
        return None
    return distinct.take(first_column, axis=1)


def _coverage(original: Bool, grid: int) -> NDArray[np.float32]:
    """Return the coverage of each cell: (H, W) bool -> (grid, grid) float32, as torch's `adaptive_avg_pool2d`."""
    steps = np.arange(grid)
    edges = [(steps * length // grid, -(-(steps + 1) * length // grid)) for length in original.shape]
    (top, bottom), (left, right) = edges
    pixels = original.view(np.uint8)
    inside = np.zeros((grid, original.shape[1] + 1), np.int64)
    for row, (first, end) in enumerate(zip(top, bottom, strict=True)):
        inside[row, 1:] = pixels[first:end].sum(axis=0, dtype=np.uint16)
    inside.cumsum(axis=1, out=inside)
    counts = (inside[:, right] - inside[:, left]).astype(np.float32)
    share: NDArray[np.float32] = counts / (bottom - top).astype(np.float32)[:, None] / (right - left).astype(np.float32)
    return share


def expected_cells(original: Bool, recipe: Recipe) -> Bool:
    """Return the prompt cells, (grid, grid) bool, that the recipe makes of an original mask (H, W) bool."""
    height, width = original.shape
    grid = recipe.grid
    if recipe.prompt_pooling == "area":
        side = recipe.vision_size
        cell = side // grid
        enlarged = original[centres(height, side)].take(centres(width, side), axis=1)
        plain = enlarged.reshape(grid, cell, grid, cell).sum(axis=(1, 3)) * 2 > cell * cell
    elif recipe.prompt_pooling == "center":
        plain = original[np.ix_(centres(height, grid), centres(width, grid))]
    else:
        plain = original[np.ix_(np.arange(grid) * height // grid, np.arange(grid) * width // grid)]
    missing = recipe.min_prompt_cells - int(plain.sum())
    if missing <= 0 or recipe.small_regions == "drop" or not original.any():
        return plain
    share = np.where(plain, 0, _coverage(original, grid)).ravel()
    filled = plain.copy()
    for cell in np.argsort(-share, kind="stable")[:missing]:
        filled.ravel()[cell] |= share[cell] > 0
    return filled


def _fault(prompt: Bool, bits: UInt8, height: int, width: int, recipe: Recipe) -> Fault | None:
    """Return why a prompt (grid, grid) does not fit a mask, packed (S, S // 8), or None."""
    visible = bool(bits.max())
    if visible and not prompt.any():
        return "an object that is there has no prompt cell", "0 cells", "at least 1"
    if recipe.small_regions == "drop" and visible and prompt.sum() < recipe.min_prompt_cells:
        return "too few prompt cells", f"{prompt.sum()} cells", f"at least {recipe.min_prompt_cells}"
    if max(height, width) > len(bits):
        return _fault_of_large(prompt, bits, recipe) if visible else None  # else no sample hit the object
    original = original_mask(bits, height, width)
    if original is None:
        found = "values that differ inside one pixel of the original"
        return "masks is not enlarged from the original's size", found, f"the nearest of {height} x {width} pixels"
    cells = expected_cells(original, recipe)
    return None if np.array_equal(cells, prompt) else (_DIFFERS, _cells(prompt), _cells(cells))


def _cells(prompt: Bool) -> str:
    """Return number and places of the cells as text."""
    places = [f"({row}, {column})" for row, column in np.argwhere(prompt)]
    return f"{len(places)} cells" + (
        ": " + " ".join(places[:6]) + (" ..." if len(places) > 6 else "") if places else ""
    )


def _fault_of_large(prompt: Bool, bits: UInt8, recipe: Recipe) -> Fault | None:
    """Return why a prompt certainly does not fit a packed mask of a larger original, or None.

    The samples in the mask may miss what is thinner than their distance. So a cell is wrong only if all samples around
    its centre contradict it (area: clearly more or less than half of the cell's samples), and wrong cells in a single
    row or column are accepted: a thin line along it explains them.
    """
    grid = recipe.grid
    cell = len(bits) // grid  # a multiple of 64
    on_in_words = np.bitwise_count(bits.view(np.uint64)).reshape(grid, cell, grid, cell // 64)
    share = on_in_words.sum(axis=(1, 3), dtype=np.uint16) / np.float32(cell * cell)
    count = int(prompt.sum())
    small = recipe.small_regions == "fill" and count <= recipe.min_prompt_cells
    if small and count < recipe.min_prompt_cells and (share[~prompt] > 0).any():
        return _DIFFERS, _cells(prompt), f"every cell that masks touches: {_cells(share > 0)}"
    if recipe.prompt_pooling == "area":
        on = share > 0.6
        off = share < 0.4
    else:
        around = _around(bits, recipe)
        on = around == 1
        off = around == 0
    wrong = on & ~prompt if small else (on & ~prompt) | (off & prompt)
    # Filled cells are those that the object covers most.
    best = np.sort(share.ravel())[::-1][:count].sum()
    strange = share[prompt].sum() < 0.5 * best if small else (share[prompt] > 0).mean() < 0.5
    if strange or min(wrong.any(axis=0).sum(), wrong.any(axis=1).sum()) > 1:
        return _DIFFERS, _cells(prompt), f"cells where masks is: {_cells(share > 0.5)}"
    return None


def _around(bits: UInt8, recipe: Recipe) -> NDArray[np.float32]:
    """Return (grid, grid) float32: the share of samples that are on around the point where a cell's value was read."""
    grid = recipe.grid
    steps = _steps_around(len(bits), grid, recipe.prompt_pooling == "center")
    rows = np.unpackbits(bits[steps], axis=1).reshape(grid, 16, -1)
    near = rows.sum(axis=1, dtype=np.uint8).take(steps, axis=1)
    return near.reshape(grid, grid, 16).sum(axis=2, dtype=np.uint16) / np.float32(256)


@lru_cache(maxsize=256)
def _steps_around(size: int, grid: int, at_centre: bool) -> Steps:
    """Return (16 * grid,) int64: the 16 rows, of `size`, around the point where the value of each cell was read."""
    cell = size // grid
    at = np.arange(grid) * cell + (cell // 2 if at_centre else 0)
    return np.clip(at[:, None] + np.arange(-8, 8), 0, size - 1).ravel()


def _others(masks: UInt8, n: int) -> Iterator[tuple[str, UInt8]]:
    """Yield packed masks that the prompt of object n may belong to instead, with their names."""
    for other in range(len(masks)):
        if other != n:
            yield f"object {other}", masks[other]
    mask = np.unpackbits(masks[n], axis=1)
    yield "flipped left to right", np.packbits(mask[:, ::-1], axis=1)
    yield "flipped top to bottom", np.packbits(mask[::-1], axis=1)
    yield "turned by 180 degrees", np.packbits(mask[::-1, ::-1], axis=1)
    yield "rows and columns exchanged", np.packbits(mask.T, axis=1)


def region_disagreements(
    prompts: Bool, masks: UInt8, height: int, width: int, recipe: Recipe, field: Field
) -> list[Disagreement]:
    """Compare prompt and mask of each object of one frame; return what disagrees.

    A fault in both cannot be found here: mask and prompt of another object, or of the other frame.

    Args:
        prompts: (N, grid, grid) bool.
        masks: (N, 1024, 128) uint8, eight pixels per byte, the first in the highest bit.
        height, width: of the original picture.
        field: the frame's `prompt_masks`.
    """
    found = []
    for n, (prompt, mask) in enumerate(zip(prompts, masks, strict=True)):
        fault = _fault(prompt, mask, height, width, recipe)
        if fault is not None:
            what, measured, expected = fault
            others = (name for name, o in _others(masks, n) if o.any() and not _fault(prompt, o, height, width, recipe))
            name = next(others, None)
            found.append(
                Disagreement(
                    str(field), f"{what}, object {n}", measured + (f"; it fits {name}" if name else ""), expected
                )
            )
    return found
