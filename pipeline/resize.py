"""The only module that resizes. Each format comes from the original in one step; none is made from another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.recipe import PromptPooling, Recipe

if TYPE_CHECKING:  # torch is imported by the functions that need it: processes that shard do without
    from torch import Tensor

UInt8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def picture(original: UInt8, size: int, recipe: Recipe) -> UInt8:
    """(H, W, 3) uint8 RGB -> (3, size, size) uint8, with Pillow's antialiased filter; aspect ratio not kept."""
    resized = Image.fromarray(original).resize((size, size), _FILTERS[recipe.image_filter])
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def tiles(original: UInt8, columns: int, rows: int, size: int, recipe: Recipe) -> UInt8:
    """(H, W, 3) uint8 RGB -> (rows * columns, 3, size, size) uint8, row by row.

    The original is resized once, to the size of all tiles together, and cut.
    """
    resized = Image.fromarray(original).resize((columns * size, rows * size), _FILTERS[recipe.image_filter])
    cut = np.asarray(resized).reshape(rows, size, columns, size, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(cut.reshape(rows * columns, 3, size, size))


def sam_logits(logits: Tensor, size: int) -> Tensor:
    """Mask logits (N, 256, 256) float32 -> (N, size, size), bilinear, as SAM 2 enlarges what its decoder gives."""
    from torch.nn.functional import interpolate

    return interpolate(logits[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]


def predicted_masks(logits: Tensor, height: int, width: int, recipe: Recipe) -> Bool:
    """Mask logits (N, 256, 256) float32 -> (N, height, width) bool, where the probability is above 0.5.

    In two bilinear steps, by way of SAM 2's size, as Sa2VA does. One mask at a time: originals may be large.
    """
    from torch.nn.functional import interpolate

    masks = np.empty((len(logits), height, width), np.bool_)
    for n in range(len(logits)):
        enlarged = sam_logits(logits[n : n + 1], recipe.sam_size)[:, None]
        full = interpolate(enlarged, (height, width), mode="bilinear", align_corners=False)
        masks[n] = (full[0, 0].sigmoid() > 0.5).cpu().numpy()
    return masks


def _nearest(original: Bool, size: int) -> Bool:
    resized = Image.fromarray(original.view(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
    return np.asarray(resized).view(np.bool_)


def mask(original: Bool, size: int) -> Bool:
    """(H, W) bool -> (size, size) bool, the value at each pixel's centre (Pillow NEAREST)."""
    return _nearest(original, size)


def prompt_cells(original: Bool, pooling: PromptPooling, recipe: Recipe) -> Bool:
    """(H, W) bool -> (grid, grid) bool: the cells of the ViT's token grid that belong to the region.

    `recipe.prompt_pooling` says what each pooling means.
    """
    grid = recipe.grid
    if pooling == "center":
        return _nearest(original, grid)
    if pooling == "corner":
        # torch's interpolate(mode="nearest") reads floor(i * H / grid); H / 16 is exact in float32, so integers agree.
        height, width = original.shape
        steps = np.arange(grid)
        return original[np.ix_(steps * height // grid, steps * width // grid)]
    cell = recipe.vision_size // grid
    blocks = _nearest(original, recipe.vision_size).reshape(grid, cell, grid, cell)
    return blocks.sum(axis=(1, 3)) * 2 > cell * cell


def coverage(original: Bool, grid: int) -> NDArray[np.float32]:
    """(H, W) bool -> (grid, grid) float32 in 0..1: the share of each cell that the object covers.

    Equal to torch's `adaptive_avg_pool2d`: cell i spans rows floor(i * H / grid) to ceil((i + 1) * H / grid).
    """

    def edges(length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        steps = np.arange(grid, dtype=np.int64)
        return steps * length // grid, -(-(steps + 1) * length // grid)

    height, width = original.shape
    (top, bottom), (left, right) = edges(height), edges(width)
    integral = np.zeros((height + 1, width + 1), np.int64)
    np.cumsum(np.cumsum(original, axis=0, dtype=np.int64), axis=1, out=integral[1:, 1:])
    total = integral[bottom][:, right] - integral[top][:, right] - integral[bottom][:, left] + integral[top][:, left]
    # Divided one side after the other, as torch does it: ties and order then come out the same.
    rows, columns = (bottom - top).astype(np.float32), (right - left).astype(np.float32)
    return total.astype(np.float32) / rows[:, None] / columns[None, :]


def fill_small(cells: Bool, original: Bool, recipe: Recipe) -> Bool:
    """Switch on cells in order of coverage until `recipe.min_prompt_cells` or every touched cell is on.

    Ties go in row-major order. So an object that exists never has an empty prompt.
    """
    filled = cells.copy()
    share = coverage(original, recipe.grid).ravel()
    for cell in np.argsort(-share, kind="stable"):
        if filled.sum() >= recipe.min_prompt_cells or share[cell] <= 0:
            break
        filled.ravel()[cell] = True
    return filled
