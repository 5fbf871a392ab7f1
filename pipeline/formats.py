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
from shards.errors import DroppedInput
from shards.format import key_for
from shards.meta import OWN_KEYS, OWN_OBJECT_KEYS, check_counts
from shards.recipe import Recipe
from shards.sample import FrameTensors, Sample

FILLED = "small regions given more prompt cells"
STILL_SMALL = "regions still below the least number of prompt cells"
DROPPED = "objects dropped for too few prompt cells"
RENAMED = "values of the source under a key of the format, kept in source_keys"
TOO_SMALL = "all regions have too few prompt cells"


def make_sample(raw: RawSample, recipe: Recipe) -> tuple[Sample, Counter[str]]:
    """The stored form of `raw`, and what was counted on the way.

    Raises:
        DroppedInput: the recipe leaves no object of it.
        BadShard: it has more frames or objects than a sample may have.
    """
    check_counts(len(raw.frames), 1)
    notes = Counter(raw.notes)
    notes.update(note for frame in raw.frames for note in notes_of(frame.picture))
    cells = np.array([[_cells(mask, recipe) for mask in frame.masks] for frame in raw.frames])  # (F, N, grid, grid)
    visible = np.array([[mask.any() for mask in frame.masks] for frame in raw.frames])  # (F, N)
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
    if not kept:
        met, wanted = f"{int(counts.max(initial=0))} cells", f"at least {recipe.min_prompt_cells}"
        raise DroppedInput(TOO_SMALL, where=raw.path, met=met, wanted=wanted)
    check_counts(len(raw.frames), len(kept))
    added = cells.sum(axis=(2, 3)) - counts
    frames = tuple(_tensors(frame, cells[f], kept, recipe) for f, frame in enumerate(raw.frames))
    meta: dict[str, Any] = {
        "source": raw.dataset_type,
        "dataset_type": raw.dataset_type,
        "path": raw.path,
        "has_paired_frame": len(raw.frames) == 2 and bool(visible[:, kept].all(axis=0).any()),
        "frames": [{"name": f.name, "height": f.picture.height, "width": f.picture.width} for f in raw.frames],
        "objects": [_described(raw, n, added[:, n].tolist(), notes) for n in kept],
        **_apart(raw.more, OWN_KEYS, notes),
    }
    return Sample(key_for(raw.path), meta, frames), +notes


def _apart(more: Mapping[str, Any], own: Set[str], notes: Counter[str]) -> dict[str, Any]:
    """Return what the source says besides. Values whose keys mean something in the format are put apart and counted."""
    clash = {key: value for key, value in more.items() if key in own}
    notes[RENAMED] += len(clash)
    kept = {key: value for key, value in more.items() if key not in own}
    return {**kept, "source_keys": clash} if clash else kept


def _described(raw: RawSample, n: int, filled: list[int], notes: Counter[str]) -> dict[str, Any]:
    """What the sample's JSON says of object `n`."""
    own = raw.objects[n]
    sizes = [list(frame.masks[n].shape) for frame in raw.frames]
    differ = any(
        size != [frame.picture.height, frame.picture.width] for size, frame in zip(sizes, raw.frames, strict=True)
    )
    more: dict[str, Any] = {"mask_sizes": sizes} if differ else {}
    more |= _apart(own.more, OWN_OBJECT_KEYS, notes)
    return {"id": own.id, "texts": list(own.texts), "filled": filled, **more}


def _cells(mask: Mask, recipe: Recipe) -> Bool:
    return resize.prompt_cells(mask, recipe.prompt_pooling, recipe)


def _tensors(frame: RawFrame, cells: Bool, kept: list[int], recipe: Recipe) -> FrameTensors:
    masks = np.zeros(
        (len(kept), recipe.sam_size, recipe.sam_size), np.bool_
    )  # pages that no object touches cost nothing
    for out, n in zip(masks, kept, strict=True):
        resize.mask(frame.masks[n], recipe.sam_size, out)
    return FrameTensors(
        pixel_values=resize.picture(frame.picture, recipe.vision_size, recipe),
        g_pixel_values=resize.picture(frame.picture, recipe.sam_size, recipe),
        prompt_masks=cells[kept],
        masks=masks,
    )
