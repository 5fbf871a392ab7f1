"""The only module that resizes. Each format is made from the original in one step; none is made from another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.compiled import masks as _masks
from pipeline.cropped import Bool, Mask
from pipeline.weights import weights
from shards.recipe import PromptPooling, Recipe

if TYPE_CHECKING:  # functions that need torch import it: processes that write shards do not need it
    from torch import Tensor

try:
    from pipeline import _resample
except ImportError:  # not compiled, or for another processor: Pillow does the same in three times the time
    _resample = None  # type: ignore[assignment]

UInt8 = NDArray[np.uint8]
Int32 = NDArray[np.int32]

_MOST_COPIED = 1 << 24  # pixels of four bytes each: larger pictures are not copied
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def picture(original: UInt8 | Image.Image, size: int, recipe: Recipe) -> UInt8:
    """Resize (H, W, 3) uint8 RGB, or a Pillow image of mode RGB, to (3, size, size) uint8.

    Uses Pillow's antialiased filter of the recipe. The aspect ratio is not kept.
    """
    return pictures(original, (size,), recipe)[0]


def pictures(original: UInt8 | Image.Image, sizes: Sequence[int], recipe: Recipe) -> list[UInt8]:
    """Resize as `picture` does to each of several sizes, always from the original."""
    image = original if isinstance(original, Image.Image) else Image.fromarray(original)
    pixels = None
    resized = []
    for size in sizes:
        # Pillow 13 resizes the columns first where the height shrinks more than the width; `_resample` begins with
        # rows.
        by_rows = image.height <= max(image.width, size)
        if _resample is None or not by_rows or image.width * image.height > _MOST_COPIED:
            resized.append(_with_pillow(image, size, recipe))
            continue
        pixels = _pixels(image) if pixels is None else pixels
        out = np.empty((3, size, size), np.uint8)
        columns, rows = (weights(side, size, recipe.image_filter) for side in image.size)
        _resample.resample(pixels, image.height, image.width, size, columns, rows, out)
        resized.append(out)
    return resized


def _pixels(image: Image.Image) -> Any:
    """Return the pixels of an image of mode RGB, four bytes each: Pillow's own memory where that is in one piece."""
    import pyarrow as pa

    try:
        return pa.array(image).flatten().buffers()[1]
    except (ValueError, TypeError):  # several pieces, or a Pillow before 11.2
        return image.tobytes("raw", "RGBX")


def _with_pillow(image: Image.Image, size: int, recipe: Recipe) -> UInt8:
    resized = image.resize((size, size), _FILTERS[recipe.image_filter])
    planes = [np.frombuffer(resized.tobytes("raw", band), np.uint8) for band in "RGB"]
    return np.stack(planes).reshape(3, size, size)


def tiles(original: UInt8, columns: int, rows: int, size: int, recipe: Recipe) -> UInt8:
    """Resize (H, W, 3) uint8 RGB to the size of all tiles and cut it: (rows * columns, 3, size, size), row by row."""
    resized = Image.fromarray(original).resize((columns * size, rows * size), _FILTERS[recipe.image_filter])
    cut = np.asarray(resized).reshape(rows, size, columns, size, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(cut.reshape(rows * columns, 3, size, size))


def sam_logits(logits: Tensor, size: int) -> Tensor:
    """Enlarge mask logits (N, 256, 256) float32 to (N, size, size), bilinear, as SAM 2 does it."""
    from torch.nn.functional import interpolate

    return interpolate(logits[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]


def predicted_masks(logits: Tensor, height: int, width: int, recipe: Recipe) -> Bool:
    """Enlarge mask logits (N, 256, 256) float32 to masks (N, height, width) bool: probability above 0.5.

    The two bilinear steps are Sa2VA's: to SAM 2's size, then to the original's. One mask at a time: originals may be
    large.
    """
    from torch.nn.functional import interpolate

    masks = np.empty((len(logits), height, width), np.bool_)
    for n in range(len(logits)):
        enlarged = sam_logits(logits[n : n + 1], recipe.sam_size)[:, None]
        full = interpolate(enlarged, (height, width), mode="bilinear", align_corners=False)
        masks[n] = (full[0, 0].sigmoid() > 0.5).cpu().numpy()
    return masks


def clicked_mask(logits: Tensor, height: int, width: int) -> Bool:
    """Enlarge mask logits (256, 256) float32 to a mask (height, width) bool: one bilinear step, above 0.

    As SAM 2's image predictor does it; Sa2VA's own masks take two steps, see `predicted_masks`.
    """
    from torch.nn.functional import interpolate

    full = interpolate(logits[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0]
    mask: Bool = (full > 0).cpu().numpy()
    return mask


def mask_prompts(logits: Tensor, height: int, width: int, size: int) -> Tensor:
    """Turn mask logits (N, 256, 256) float32 of a picture into mask prompts (N, 1, size, size) float32, 0 and 1.

    The steps are Sa2VA-i's: bilinear to the picture's size, probability above 0.5, then SAM 2's way of bringing a mask
    prompt to its own size. One mask at a time: originals may be large.
    """
    from torch.nn.functional import interpolate

    prompts = logits.new_empty(len(logits), 1, size, size)
    for n in range(len(logits)):
        full = interpolate(logits[n : n + 1, None], (height, width), mode="bilinear", align_corners=False)
        prompt = (full.sigmoid() > 0.5).float()
        if (height, width) != (size, size):
            prompt = interpolate(prompt, (size, size), mode="bilinear", align_corners=False, antialias=True) >= 0.5
        prompts[n] = prompt[0]
    return prompts


def mask(original: Bool | Mask, size: int) -> Bool:
    """Resize a mask (H, W) bool to (size, size) bool: the value at each pixel's centre (Pillow's NEAREST)."""
    whole = Mask.from_array(original)
    return _values_at(whole, [_centres(side, size) for side in whole.shape], np.zeros((size, size), np.bool_))


def mask_bits(original: Bool | Mask, size: int, out: UInt8) -> int:
    """Resize a mask (H, W) bool as `mask` does, into packed bits; return the number of pixels that are set.

    Args:
        size: a multiple of 8.
        out: (size, size // 8) uint8, contiguous, all 0; gets eight pixels per byte, the first in the highest bit.
    """
    whole = Mask.from_array(original)
    if _masks is not None:
        return _values_at_compiled(whole, [_centres(side, size) for side in whole.shape], out, size, packed=True)
    pixels = mask(whole, size)
    out[...] = np.packbits(pixels, axis=1)
    return int(np.count_nonzero(pixels))


def prompt_cells(original: Bool | Mask, pooling: PromptPooling, recipe: Recipe) -> Bool:
    """Return which cells of the ViT's token grid belong to a region: mask (H, W) bool -> (grid, grid) bool.

    `Recipe.prompt_pooling` says what each pooling means.
    """
    whole = Mask.from_array(original)
    grid = recipe.grid
    cells = np.zeros((grid, grid), np.bool_)
    if pooling == "center":
        return _values_at(whole, [_centres(side, grid) for side in whole.shape], cells)
    if pooling == "corner":
        # torch's interpolate(mode="nearest") reads floor(i * H / grid); H / 16 is exact in float32, so integers agree.
        return _values_at(whole, [_edges(side, grid)[0] for side in whole.shape], cells)
    cell = recipe.vision_size // grid
    size = (recipe.vision_size, recipe.vision_size)
    # No formula of integers gives Pillow's rounding here: 448 is no power of two.
    enlarged = Image.fromarray(np.asarray(whole).view(np.uint8)).resize(size, Image.Resampling.NEAREST)
    blocks = np.asarray(enlarged).reshape(grid, cell, grid, cell)
    return blocks.sum(axis=(1, 3)) * 2 > cell * cell


@lru_cache(maxsize=1024)
def _centres(length: int, size: int) -> Int32:
    """Return the pixel at the centre of each of `size` equal parts of `length` pixels: (size,) int32.

    Pillow's NEAREST reads the same pixels where `size` is a power of two: its floating point is exact there.
    """
    return ((2 * np.arange(size) + 1) * length // (2 * size)).astype(np.int32)


def _values_at(whole: Mask, lines: Sequence[Int32], out: Bool) -> Bool:
    """Copy the mask's values at the crossings of rows and columns into `out`, which is all False, and return it.

    Args:
        lines: (rows, columns), both ascending.
        out: contiguous.
    """
    if _masks is not None:
        _values_at_compiled(whole, lines, out, out.shape[1], packed=False)
        return out
    (top, rows), (left, columns) = _inside(whole, lines)
    place = out[top : top + len(rows), left : left + len(columns)]
    if whole.pixels.flags.c_contiguous:
        place[...] = whole.pixels.take(rows, axis=0).take(columns, axis=1)
    else:  # stored by columns, as COCO's code decodes
        place.T[...] = whole.pixels.T.take(columns, axis=0).take(rows, axis=1)
    return out


def _values_at_compiled(whole: Mask, lines: Sequence[Int32], out: NDArray[Any], size: int, packed: bool) -> int:
    """Do as `_values_at` in compiled code, into `size` columns of a byte or a bit each; return how many are set."""
    set_pixels: int = _masks.sample(*_pixels_as_stored(whole), *lines, out, size, packed)
    return set_pixels


def _pixels_as_stored(whole: Mask) -> tuple[Bool, int, int, bool, int, int]:
    """Return the pixels in the rectangle around the object as they are stored, its height and width, whether they are
    stored by columns, and its top and left."""
    by_columns = not whole.pixels.flags.c_contiguous
    pixels = np.ascontiguousarray(whole.pixels.T if by_columns else whole.pixels)
    return pixels, *whole.pixels.shape, by_columns, whole.top, whole.left


def _inside(whole: Mask, lines: Sequence[Int32]) -> list[tuple[int, Int32]]:
    """Return for rows and columns: the first one that meets the rectangle around the object, and all, counted in it."""
    found = []
    for line, start, length in zip(lines, (whole.top, whole.left), whole.pixels.shape, strict=True):
        first, end = np.searchsorted(line, (start, start + length))
        found.append((int(first), line[first:end] - start))
    return found


def coverage(original: Bool | Mask, grid: int) -> NDArray[np.float32]:
    """Return the share of each cell that a mask (H, W) bool covers: (grid, grid) float32 in 0..1.

    Equal to torch's `adaptive_avg_pool2d`: cell i spans rows floor(i * H / grid) to ceil((i + 1) * H / grid).
    """
    whole = Mask.from_array(original)
    (top, bottom), (left, right) = (_edges(side, grid) for side in whole.shape)
    total = _pixels_in_cells(whole, (top, bottom), (left, right))
    # Divided by one side after the other, as torch does it: ties and order are then the same.
    heights = (bottom - top).astype(np.float32)
    widths = (right - left).astype(np.float32)
    return total.astype(np.float32) / heights[:, None] / widths[None, :]


@lru_cache(maxsize=1024)
def _edges(length: int, grid: int) -> tuple[Int32, Int32]:
    """Return where each of `grid` cells of `length` pixels begins and ends: two (grid,) int32."""
    steps = np.arange(grid + 1)
    return (steps[:-1] * length // grid).astype(np.int32), (-(-steps[1:] * length // grid)).astype(np.int32)


def _pixels_in_cells(whole: Mask, rows: Sequence[Int32], columns: Sequence[Int32]) -> Any:
    """Count the pixels of a mask in each cell: (R, C) integers.

    Args:
        rows: (first, end) of each of R rows of cells.
        columns: (first, end) of each of C columns of cells.
    """
    if _masks is not None:
        counts = np.empty((len(rows[0]), len(columns[0])), np.int32)
        _masks.count(*_pixels_as_stored(whole), *rows, *columns, counts)
        return counts
    height, width = whole.pixels.shape  # of the rectangle around the object
    top, bottom = (np.clip(edge - whole.top, 0, height) for edge in rows)
    left, right = (np.clip(edge - whole.left, 0, width) for edge in columns)
    sums = np.zeros((height, width + 1), np.int32)  # up to each edge
    np.cumsum(whole.pixels, axis=1, out=sums[:, 1:])
    in_column = np.zeros((height + 1, len(left)), np.int64)
    np.cumsum(sums[:, right] - sums[:, left], axis=0, out=in_column[1:])
    return in_column[bottom] - in_column[top]


def fill_small(cells: Bool, original: Bool | Mask, recipe: Recipe) -> Bool:
    """Return `cells` with more cells on, by coverage, until `recipe.min_prompt_cells` or every touched cell are on.

    Ties go in row-major order. An object that has a pixel never has an empty prompt.
    """
    filled = cells.copy()
    missing = max(0, recipe.min_prompt_cells - int(np.count_nonzero(cells)))
    share = np.where(cells, np.float32(0), coverage(original, recipe.grid)).ravel()
    touched = np.flatnonzero(share)
    filled.ravel()[touched[np.argsort(-share[touched], kind="stable")[:missing]]] = True
    return filled
