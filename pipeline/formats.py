"""Raw sample -> the four formats, under a recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from pipeline import resize
from pipeline.cropped import Bool, Mask
from pipeline.pictures import notes_of
from pipeline.raw import RawFrame, RawSample
from shards.codec import PackedMasks
from shards.errors import BadInput, DroppedInput
from shards.format import key_for
from shards.meta import OWN_KEYS, OWN_OBJECT_KEYS, check_counts
from shards.recipe import Recipe
from shards.sample import FrameTensors, Sample, letters_of

FILLED = "small regions given more prompt cells"
STILL_SMALL = "regions still below the least number of prompt cells"
DROPPED = "objects dropped for too few prompt cells"
RENAMED = "values of the source under a key of the format, kept in source_keys"
WITHOUT_OBJECTS = "samples without objects"
WITHOUT_PICTURES = "samples without pictures"
TOO_SMALL = "all regions have too few prompt cells"


def make_sample(raw: RawSample, recipe: Recipe) -> tuple[Sample, Counter[str]]:
    """Make the four formats of a raw sample.

    Returns:
        (sample, counts of what was filled, dropped or renamed on the way).

    Raises:
        DroppedInput: the recipe leaves no object of it.
        BadInput: it has neither an object nor a text.
        BadShard: it has more frames or objects than a sample may have.
    """
    check_counts(len(raw.frames), 1)
    notes = Counter(raw.notes)
    notes.update(note for frame in raw.frames for note in notes_of(frame.picture))
    each = (len(raw.frames), len(raw.objects))  # (F, N), either may be 0
    cells = np.array([_cells(mask, recipe) for frame in raw.frames for mask in frame.masks], np.bool_)
    cells = cells.reshape(*each, recipe.grid, recipe.grid)
    visible = np.array([mask.any() for frame in raw.frames for mask in frame.masks], np.bool_).reshape(each)
    counts = cells.sum(axis=(2, 3))
    small = visible & (counts < recipe.min_prompt_cells)
    kept = list(range(len(raw.objects)))
    if recipe.small_regions == "drop":
        kept = [n for n in kept if not small[:, n].any()]
        notes[DROPPED] += len(raw.objects) - len(kept)
    else:
        for f, n in np.argwhere(small):
            cells[f, n] = resize.fill_small(cells[f, n], raw.frames[f].masks[n], recipe)
        after = cells.sum(axis=(2, 3))
        notes[FILLED] += int((after > counts).sum())
        notes[STILL_SMALL] += int((visible & (after < recipe.min_prompt_cells)).sum())
    if raw.objects and not kept:
        raise DroppedInput(
            TOO_SMALL,
            where=raw.path,
            met=f"{int(counts.max(initial=0))} cells",
            wanted=f"at least {recipe.min_prompt_cells}",
        )
    check_counts(len(raw.frames), len(kept))
    added = cells.sum(axis=(2, 3)) - counts
    segmentable = raw.segmentable or bool(kept)
    frames = tuple(_tensors(frame, cells[f], kept, segmentable, recipe) for f, frame in enumerate(raw.frames))
    meta: dict[str, Any] = {
        "source": raw.dataset_type,
        "dataset_type": raw.dataset_type,
        "path": raw.path,
        "has_paired_frame": len(raw.frames) == 2 and bool(visible[:, kept].all(axis=0).any()),
        "frames": [{"name": f.name, "height": f.picture.height, "width": f.picture.width} for f in raw.frames],
        "objects": [_object_json(raw, n, added[:, n].tolist(), notes) for n in kept],
        **_rename_clashes(raw.more, OWN_KEYS, notes),
    }
    if not kept and not letters_of(meta):
        raise BadInput(
            "neither an object nor a text", where=raw.path, wanted="objects, or turns, captions, expressions"
        )
    notes[WITHOUT_OBJECTS] += not kept
    notes[WITHOUT_PICTURES] += not frames
    return Sample(key_for(raw.path), meta, frames), +notes


def _rename_clashes(more: Mapping[str, Any], reserved: Set[str], notes: Counter[str]) -> dict[str, Any]:
    """Return a source's other values, with those whose keys the format itself uses below `source_keys`."""
    clash = {key: value for key, value in more.items() if key in reserved}
    notes[RENAMED] += len(clash)
    kept = {key: value for key, value in more.items() if key not in reserved}
    return {**kept, "source_keys": clash} if clash else kept


def _object_json(raw: RawSample, n: int, filled: list[int], notes: Counter[str]) -> dict[str, Any]:
    """Return the entry of object `n` in the sample's JSON.

    Args:
        filled: number of prompt cells that were added in each frame.
    """
    found = raw.objects[n]
    sizes = [list(frame.masks[n].shape) for frame in raw.frames]
    differ = any(
        size != [frame.picture.height, frame.picture.width] for size, frame in zip(sizes, raw.frames, strict=True)
    )
    more: dict[str, Any] = {"mask_sizes": sizes} if differ else {}
    more |= _rename_clashes(found.more, OWN_OBJECT_KEYS, notes)
    return {"id": found.id, "texts": list(found.texts), "filled": filled, **more}


def _cells(mask: Mask, recipe: Recipe) -> Bool:
    return resize.prompt_cells(mask, recipe.prompt_pooling, recipe)


def _tensors(frame: RawFrame, cells: Bool, kept: list[int], segmentable: bool, recipe: Recipe) -> FrameTensors:
    bits = np.zeros((len(kept), recipe.sam_size, recipe.sam_size // 8), np.uint8)
    pixels = [resize.mask_bits(frame.masks[n], recipe.sam_size, out) for out, n in zip(bits, kept, strict=True)]
    sizes = (recipe.vision_size, recipe.sam_size) if segmentable else (recipe.vision_size,)
    small, *large = resize.pictures(frame.picture, sizes, recipe)
    return FrameTensors(
        pixel_values=small,
        g_pixel_values=large[0] if large else None,
        prompt_masks=cells[kept],
        masks=PackedMasks(bits),
        mask_pixels=pixels,
    )
