"""Pictures of a sample as the page shows them: its frames, its masks and its prompt cells as layers over them.

Masks keep the size in which they are stored. Small pictures are means of blocks, with every so-many-th pixel of the
masks: nothing is interpolated.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from shards import codec
from shards.blocks import block_means
from shards.codec import Bool, UInt8
from shards.errors import BadShard, UserError
from shards.format import Field, FieldName
from shards.reader import ShardSet
from trainer.measure.drawing import COLOURS

Layer = Literal["large", "small", "masks", "cells"]
LAYERS: tuple[Layer, ...] = ("large", "small", "masks", "cells")
"""Layers of a frame: the picture as SAM 2 gets it, as the vision encoder gets it, its masks, its prompt cells."""
_SMALL = 224
"""Side of a picture of the grid, in pixels."""
_FILL = 115
"""Opacity of a mask, of 255; its outline is opaque."""
_EDGE = 3 / 1024
"""Width of a mask's outline, as a share of the longer side."""
_CELL = 28
"""Side of a prompt cell in its layer, in pixels."""
_QUALITY = 92
_Stored = dict[FieldName, memoryview]


class NoPicture(UserError):
    """A sample of text alone."""


def colour_of(number: int) -> str:
    """Return the colour of object `number` of a sample, for CSS."""
    return "#{:02x}{:02x}{:02x}".format(*COLOURS[number % len(COLOURS)])


def small_picture(shards: ShardSet, position: int, objects: Sequence[int] | None, masks: bool) -> bytes:
    """Return the first frame of a sample as a small JPEG.

    Args:
        objects: positions of the objects whose masks are drawn; None: all.
        masks: whether masks are drawn.

    Raises:
        NoPicture: the sample is text alone.
        BadShard: the sample cannot be read.
    """
    meta, stored = _frame_of(shards, position, 0)
    picture = codec.decode_picture(stored["pixel_values"], shards.recipe.vision_size)
    step = shards.recipe.vision_size // _SMALL or 1
    shown = block_means(picture, step)
    side = len(shown)
    if masks and "masks" in stored:
        places = ((np.arange(side) + 0.5) * shards.recipe.sam_size / side).astype(int)
        tinted = shown.astype(np.float32)
        small = [(n, mask[places][:, places]) for n, mask in _masks(stored, meta, objects, shards.recipe.sam_size)]
        for number, mask in sorted(small, key=lambda pair: -int(pair[1].sum())):  # none hides a smaller one
            colour = np.array(COLOURS[number % len(COLOURS)], np.float32)
            tinted[mask] = 0.5 * tinted[mask] + 0.5 * colour
            tinted[mask & ~_eroded(mask, 1)] = colour
        shown = tinted.astype(np.uint8)
    return _jpeg(shown, 85)


def layer(shards: ShardSet, position: int, frame: int, name: Layer, objects: Sequence[int] | None) -> bytes:
    """Return a layer of a frame: a picture as JPEG; masks or cells as PNG, transparent where there are none.

    Args:
        frame: from 0.
        objects: positions of the objects in it; None: all.

    Raises:
        NoPicture: the sample is text alone.
        BadShard: the sample cannot be read, or has no such frame or layer.
    """
    meta, stored = _frame_of(shards, position, frame)
    recipe = shards.recipe
    if name in ("large", "small"):
        is_large = name == "large" and "g_pixel_values" in stored
        field: FieldName = "g_pixel_values" if is_large else "pixel_values"
        picture = codec.decode_picture(stored[field], recipe.sam_size if is_large else recipe.vision_size)
        return _jpeg(picture.transpose(1, 2, 0), _QUALITY)
    if "masks" not in stored:
        raise BadShard("no objects", where=f"{shards.folder}: {shards.key(position)}")
    if name == "cells":
        cells = codec.decode_prompts(stored["prompt_masks"], recipe.grid)
        numbers = range(len(cells)) if objects is None else [n for n in objects if n < len(cells)]
        return cells_layer([(n, cells[n]) for n in numbers])
    found = _masks(stored, meta, objects, recipe.sam_size)
    return masks_layer(found, recipe.sam_size, recipe.sam_size)


def masks_layer(masks: Iterable[tuple[int, Bool]], height: int, width: int) -> bytes:
    """Return numbered masks (height, width) as PNG: each in the colour of its number, none hides a smaller one."""
    drawn = [(number, *_cut(mask)) for number, mask in masks if mask.any()]
    out = np.zeros((height, width), np.uint8)
    edge = max(round(max(height, width) * _EDGE), 1)
    for number, top, left, part in sorted(drawn, key=lambda item: -int(item[3].sum())):
        place = out[top : top + part.shape[0], left : left + part.shape[1]]
        place[part] = 1 + number % len(COLOURS)
        place[part & ~_eroded(part, edge)] = 1 + len(COLOURS) + number % len(COLOURS)
    return _png(out)


def cells_layer(cells: Sequence[tuple[int, Bool]]) -> bytes:
    """Return numbered prompt cells (G, G) as PNG: each in the colour of its number, with a border around every cell."""
    side = _CELL * (len(cells[0][1]) if cells else 16)
    out = np.zeros((side, side), np.uint8)
    border = np.ones((_CELL, _CELL), np.bool_)
    border[1:-1, 1:-1] = False
    for number, grid in sorted(cells, key=lambda pair: -int(pair[1].sum())):
        filled = grid.repeat(_CELL, 0).repeat(_CELL, 1)
        out[filled] = 1 + number % len(COLOURS)
        out[filled & np.tile(border, grid.shape)] = 1 + len(COLOURS) + number % len(COLOURS)
    return _png(out)


def _frame_of(shards: ShardSet, position: int, frame: int) -> tuple[dict[str, Any], _Stored]:
    """Return the JSON of a sample and the members of one of its frames, from 0, by field."""
    meta, members = shards.sample(position)
    where = f"{shards.folder}: {shards.key(position)}"
    frames = len(meta["frames"])
    if not frames:
        raise NoPicture("text alone", where=where)
    if not 0 <= frame < frames:
        raise BadShard("no such frame", where=where, met=str(frame + 1), wanted=f"1 to {frames}")
    number = None if frames == 1 else frame + 1
    return meta, {field.name: data for field, data in members.items() if field == Field(field.name, number)}


def _masks(
    stored: _Stored, meta: dict[str, Any], objects: Sequence[int] | None, side: int
) -> Iterator[tuple[int, Bool]]:
    """Yield (position, mask (side, side)) of objects, one decoded at a time: all of them may take gigabytes."""
    count = len(meta["objects"])
    for number in range(count) if objects is None else objects:
        yield number, codec.decode_masks(stored["masks"], side, [number])[0]


def _cut(mask: Bool) -> tuple[int, int, Bool]:
    """Return top, left and content of the rectangle around a mask, which is not empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return top, left, mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1].copy()


def _eroded(mask: Bool, pixels: int) -> Bool:
    """Return a mask without its `pixels` outermost pixels, those at the array's border included."""
    for _ in range(pixels):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def _jpeg(picture: UInt8, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def _png(values: UInt8) -> bytes:
    """Return (h, w) of numbers of colours as PNG: 0 is transparent, then come the fills, then the outlines."""
    image = Image.fromarray(values, "P")
    image.putpalette([0, 0, 0, *(value for _ in range(2) for colour in COLOURS for value in colour)])
    opacities = bytes([0, *([_FILL] * len(COLOURS)), *([255] * len(COLOURS))])
    file = io.BytesIO()
    image.save(file, "PNG", transparency=opacities, compress_level=1)
    return file.getvalue()
