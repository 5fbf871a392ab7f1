"""Comparing the region in `prompt_masks` with the region in `masks`, without resizing.

`masks` samples the original mask at the centres of 1024 x 1024 pixels. An original of at most 1024 pixels per side can
be recovered from it: its prompt cells are computed again and must be equal. Of a larger original the rows and columns
between the samples are unknown: only certain contradictions count.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from shards.codec import Bool
from shards.format import Field
from shards.recipe import Recipe
from shards.same_picture import Disagreement

Steps = NDArray[np.int64]
Fault = tuple[str, str, str]
"""(what, met, wanted)."""

_DIFFERS = "not the region of masks"


def centres(length: int, count: int) -> Steps:
    """Return (count,) int64: the rows, of `length`, that Pillow's NEAREST takes for `count` rows."""
    if count & (count - 1) == 0:  # exact in binary fractions
        return (2 * np.arange(count, dtype=np.int64) + 1) * length // (2 * count)
    steps = np.full(count, length / count)
    steps[0] /= 2
    return np.cumsum(steps).astype(np.int64)  # Pillow also adds them up one by one, with the same rounding


def original_mask(mask: Bool, height: int, width: int) -> Bool | None:
    """Return the (height, width) bool mask that (S, S) bool `mask` was enlarged from, with height and width <= S.

    None if `mask` is not the nearest-neighbour enlargement of any.
    """
    size = len(mask)
    rows = centres(height, size)
    columns = centres(width, size)
    first_row, first_column = (np.searchsorted(x, np.arange(n)) for x, n in ((rows, height), (columns, width)))
    original = np.ascontiguousarray(mask[first_row][:, first_column])
    return original if np.array_equal(original[rows].take(columns, axis=1), mask) else None


def _coverage(original: Bool, grid: int) -> NDArray[np.float32]:
    """Return the coverage of each cell: (H, W) bool -> (grid, grid) float32, as torch's `adaptive_avg_pool2d`."""
    steps = np.arange(grid)
    edges = [(steps * length // grid, -(-(steps + 1) * length // grid)) for length in original.shape]
    total = np.zeros((original.shape[0] + 1, original.shape[1] + 1), np.int32)
    original.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, out=total[1:, 1:])
    (top, bottom), (left, right) = edges
    inside = total[bottom] - total[top]
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


def _fault(prompt: Bool, mask: Bool, height: int, width: int, recipe: Recipe) -> Fault | None:
    """Return why a prompt (grid, grid) does not fit a mask (S, S), or None."""
    if not prompt.any() and mask.any():
        return "an object that is there has no prompt cell", "0 cells", "at least 1"
    if recipe.small_regions == "drop" and mask.any() and prompt.sum() < recipe.min_prompt_cells:
        return "too few prompt cells", f"{prompt.sum()} cells", f"at least {recipe.min_prompt_cells}"
    if max(height, width) > len(mask):
        return _fault_of_large(prompt, mask, recipe)
    original = original_mask(mask, height, width)
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


def _fault_of_large(prompt: Bool, mask: Bool, recipe: Recipe) -> Fault | None:
    """Return why a prompt certainly does not fit a mask of a larger original, or None.

    The samples in `mask` may miss what is thinner than their distance. So a cell is wrong only if all samples around
    its centre contradict it (area: clearly more or less than half of the cell's samples), and wrong cells in a single
    row or column are accepted: a thin line along it explains them.
    """
    if not mask.any():
        return None  # no sample hit the object
    grid = recipe.grid
    cell = len(mask) // grid
    share = mask.reshape(grid, cell, grid, cell).mean(axis=(1, 3), dtype=np.float32)
    count = int(prompt.sum())
    small = recipe.small_regions == "fill" and count <= recipe.min_prompt_cells
    if small and count < recipe.min_prompt_cells and (share[~prompt] > 0).any():
        return _DIFFERS, _cells(prompt), f"every cell that masks touches: {_cells(share > 0)}"
    if recipe.prompt_pooling == "area":
        on = share > 0.6
        off = share < 0.4
    else:
        around = _around(mask, recipe)
        on = around == 1
        off = around == 0
    wrong = on & ~prompt if small else (on & ~prompt) | (off & prompt)
    # Filled cells are those that the object covers most.
    best = np.sort(share.ravel())[::-1][:count].sum()
    strange = share[prompt].sum() < 0.5 * best if small else (share[prompt] > 0).mean() < 0.5
    if strange or min(wrong.any(axis=0).sum(), wrong.any(axis=1).sum()) > 1:
        return _DIFFERS, _cells(prompt), f"cells where masks is: {_cells(share > 0.5)}"
    return None


def _around(mask: Bool, recipe: Recipe) -> NDArray[np.float32]:
    """Return (grid, grid) float32: the share of samples that are on around the point where a cell's value was read."""
    grid = recipe.grid
    cell = len(mask) // grid
    at = np.arange(grid) * cell + (cell // 2 if recipe.prompt_pooling == "center" else 0)
    steps = np.clip(at[:, None] + np.arange(-8, 8), 0, len(mask) - 1)
    near = mask[steps.ravel()].take(steps.ravel(), axis=1)
    return near.reshape(grid, 16, grid, 16).mean(axis=(1, 3), dtype=np.float32)


def _others(masks: Bool, n: int) -> Iterator[tuple[str, Bool]]:
    """Yield masks that the prompt of object n may belong to instead, with their names."""
    for other in range(len(masks)):
        if other != n:
            yield f"object {other}", masks[other]
    yield "flipped left to right", masks[n, :, ::-1]
    yield "flipped top to bottom", masks[n, ::-1]
    yield "turned by 180 degrees", masks[n, ::-1, ::-1]
    yield "rows and columns exchanged", masks[n].T


def region_disagreements(
    prompts: Bool, masks: Bool, height: int, width: int, recipe: Recipe, field: Field
) -> list[Disagreement]:
    """Compare prompt and mask of each object of one frame; return what disagrees.

    A fault in both cannot be found here: mask and prompt of another object, or of the other frame.

    Args:
        prompts: (N, grid, grid) bool.
        masks: (N, 1024, 1024) bool.
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
