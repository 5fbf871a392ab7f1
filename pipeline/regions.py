"""Collect the regions of one picture: each mask once, with all its texts and annotations."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.cropped import Bool, Mask
from pipeline.faults import EMPTY, Fault, left_out, unusable
from pipeline.ids import as_id
from pipeline.masks import read_coco
from pipeline.pictures import MAX_PIXELS, read_picture
from pipeline.raw import RawFrame, RawObject, RawSample
from shards.errors import BadInput

LEFT_OUT = "regions left out: "
SCALED = "regions drawn at another size than their picture"
_TOLERANCE = 0.01  # of the aspect ratio, for sizes that were rounded

Size = tuple[int, int]


def size_of(record: Any, height: str = "height", width: str = "width") -> Size | None:
    """Return the (H, W) that a record states; None where it states none."""
    stated = (record.get(height), record.get(width)) if isinstance(record, dict) else (None, None)
    return _size(stated)


def rle_size(segmentation: Any) -> Size | None:
    """Return the (H, W) of run lengths; None for polygons, and where it is not stated."""
    return _size(segmentation.get("size")) if isinstance(segmentation, dict) else None


def picture_for(source: Path | bytes, sizes: Iterable[Size | None]) -> Image.Image:
    """Return the picture that annotations of these sizes were made for.

    It has the orientation that fits the most frequent size. It is upright where neither fits, and as it is stored where
    no annotation states a size. Raises `BadInput` as `read_picture` does.
    """
    stated = Counter(size for size in sizes if size is not None)
    if not stated:
        return read_picture(source, stored=True)
    try:
        return read_picture(source, stated.most_common(1)[0][0])
    except BadInput:
        return read_picture(source)


class Regions:
    """Collects the regions of a picture of `size` (H, W). Equal masks are one object, with the texts of all."""

    def __init__(self, size: Size, notes: Counter[str]) -> None:
        self.notes = notes
        self._size = size
        self._ids: dict[str, str] = {}
        self._masks: dict[str, Mask] = {}
        self._texts: dict[str, list[str]] = {}
        self._more: dict[str, list[Any]] = {}
        self._used: Counter[str] = Counter()
        self._faults: list[Fault] = []

    def add(
        self,
        segmentations: Sequence[Any],
        texts: Iterable[str],
        annotation: Any,
        size: Size | None = None,
        id: Any = None,
    ) -> str:
        """Add a region, the union of `segmentations`. Returns its object's id, also where its mask cannot be used.

        Args:
            texts: descriptions of it.
            annotation: what else the source states, as JSON.
            size: (H, W) that polygons were drawn for; None for the picture's.
            id: the source's. Without one, and where another mask has it, ids are counted up.
        """
        keys = sorted({json.dumps(one, sort_keys=True) for one in segmentations})
        key = json.dumps([id, size, keys])
        if key not in self._ids:
            name = self._ids[key] = self._name(id)
            try:
                self._masks[name] = Mask.from_array(self._mask(segmentations, size or self._size))
            except BadInput as error:
                self.notes[LEFT_OUT + error.what] += 1
                self._faults.append((name, error))
            self._texts[name] = []
            self._more[name] = []
        name = self._ids[key]
        self._texts[name] += [text for text in texts if text not in self._texts[name]]
        self._more[name].append(annotation)
        return name

    def sample(self, path: str, source: str, picture: Image.Image, more: dict[str, Any]) -> RawSample:
        """Return the sample of all regions that can be used; raises `BadInput` where there is none."""
        if not self._masks:
            none = BadInput("no region that can be used", met="0 regions", wanted="at least one")
            raise unusable("region", self._faults) if self._faults else none
        objects = tuple(
            RawObject(name, tuple(self._texts[name]), {"annotations": self._more[name]}) for name in self._masks
        )
        frame = RawFrame(path.rsplit("/", 1)[-1], picture, tuple(self._masks.values()))
        return RawSample(path, source, (frame,), objects, {**more, **left_out(self._faults)}, +self.notes)

    def _name(self, value: Any) -> str:
        name = as_id(value) or str(len(self._ids))
        self._used[name] += 1
        while self._used[name] > 1:
            name = f"{name}-{self._used[name]}"
            self._used[name] += 1
        return name

    def _mask(self, segmentations: Sequence[Any], size: Size) -> Bool | Mask:
        sizes = [rle_size(one) or size for one in segmentations]
        for height, width in sizes:
            if height * width > MAX_PIXELS:
                raise BadInput("too large a mask", met=f"{height} x {width}", wanted=f"at most {MAX_PIXELS} pixels")
        masks = [read_coco(one, *mask_size) for one, mask_size in zip(segmentations, sizes, strict=True)]
        if len({mask.shape for mask in masks}) > 1:
            raise BadInput("parts of one mask differ in size", met=str([mask.shape for mask in masks])[:60])
        if not masks or not any(mask.any() for mask in masks):
            raise BadInput(EMPTY, met=f"0 pixels in {len(masks)} masks", wanted="a region")
        mask = masks[0] if len(masks) == 1 else np.any([*map(np.asarray, masks)], axis=0)
        if mask.shape != self._size:
            (height, width) = mask.shape
            (high, wide) = self._size
            if abs(height * wide - width * high) > _TOLERANCE * height * wide:
                raise BadInput("mask and picture differ in shape", met=f"{mask.shape}", wanted=f"{self._size}")
            self.notes[SCALED] += 1
        return mask


def _size(stated: Any) -> Size | None:
    if not isinstance(stated, list | tuple) or len(stated) != 2:
        return None
    stated = [int(side) if isinstance(side, str) and side.isascii() and side.isdecimal() else side for side in stated]
    fits = all(isinstance(side, int | float) and side == int(side) and 0 < side < 1 << 16 for side in stated)
    return (int(stated[0]), int(stated[1])) if fits else None
