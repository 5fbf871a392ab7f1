"""Read the masks of a video: palette PNGs, lists of run lengths, or Sa2VA's pickle of such lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import masks
from pipeline.cropped import Bool
from pipeline.mask_values import distinct, read_values
from pipeline.pickles import read_pickle
from pipeline.regions import rle_size
from shards.errors import BadInput, UserError


class PngMasks:
    """One mask file per frame, usually a palette PNG: a pixel's value is the id of its object."""

    def __init__(self, folder: Path, frames: Sequence[str]) -> None:
        self._files = [folder / f"{name}.png" for name in frames]
        self._read = lru_cache(maxsize=8)(read_values)

    def has(self, n: int) -> bool:
        return self._files[n].is_file()

    def size(self, n: int) -> tuple[int, int]:
        height, width = self._read(self._files[n]).shape
        return height, width

    def shown(self, n: int) -> set[str]:
        return {str(value) for value in distinct(self._read(self._files[n])) if value}

    def mask(self, n: int, number: str, height: int, width: int) -> Bool:
        if not number.isdecimal():
            raise BadInput("object id", met=number, wanted="a number")
        return np.asarray(self._read(self._files[n]) == int(number))

    def fault(self, number: str) -> BadInput | None:
        """Return why no frame shows an object, where that is a fault of its masks; None elsewhere."""
        if not number.isdecimal():
            return BadInput("object id", met=number, wanted="a number, as pixels have")
        ids = {shown for n in range(len(self._files)) if self.has(n) for shown in self.shown(n)}
        if not ids:
            return None
        return BadInput(
            "no pixel of an object's id", met=f"ids {', '.join(sorted(ids, key=int)[:6])} in the masks", wanted=number
        )


class MaskLists:
    """Run lengths: a list per object with one entry per frame, None or {} where the object is not visible."""

    def __init__(self, parts: Sequence[Any], frames: Sequence[str], objects: Sequence[str]) -> None:
        self._lists: dict[str, Sequence[Any]] = {}
        for part in parts:
            if part["object"] in self._lists and self._lists[part["object"]] != part["masks"]:
                raise BadInput("two lists of masks for one object", met=part["object"], wanted="one")
            self._lists[part["object"]] = part["masks"]
        self._frames = len(frames)
        self._objects = objects
        self._fit = {number for number in objects if _length(self._lists.get(number)) == len(frames)}

    def has(self, n: int) -> bool:
        return True

    def shown(self, n: int) -> set[str]:
        return {number for number in self._fit if masks.has_pixels(self._lists[number][n])}

    def size(self, n: int) -> tuple[int, int]:
        # Run lengths without a size leave out their object alone: others, of this frame or of another, state it.
        lists = [self._lists[number] for number in self._objects if number in self._fit]
        sizes = {size for masks_of_object in lists if (size := rle_size(masks_of_object[n]))}
        sizes = sizes or {size for masks_of_object in lists for mask in masks_of_object if (size := rle_size(mask))}
        if len(sizes) != 1:
            raise BadInput(
                "masks of several sizes" if sizes else "broken run lengths",
                met=str(sorted(sizes))[:60],
                wanted="one size a frame, [height, width]",
            )
        return sizes.pop()

    def mask(self, n: int, number: str, height: int, width: int) -> Bool:
        if number not in self._lists:
            raise BadInput("no masks", met="no list", wanted=f"a list of {self._frames}")
        if number not in self._fit:
            stored = self._lists[number]
            raise BadInput(
                "masks do not fit the frames",
                met=f"{len(stored)} masks" if isinstance(stored, list) else f"no list: {str(stored)[:40]}",
                wanted=f"{self._frames}, one a frame",
            )
        run_lengths = self._lists[number][n]
        return masks.from_coco(run_lengths, height, width) if run_lengths else np.zeros((height, width), np.bool_)

    def fault(self, number: str) -> BadInput | None:
        """Return why no frame shows an object, where that is a fault of its masks; None elsewhere."""
        try:
            if number not in self._fit:
                self.mask(0, number, 1, 1)
            for n, run_lengths in enumerate(self._lists[number]):
                if run_lengths and not masks.has_pixels(run_lengths):
                    self.mask(n, number, *(rle_size(run_lengths) or self.size(n)))
        except BadInput as error:
            return error
        return None


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else -1


class PickledMasks:
    """Sa2VA's `mask_dict.pkl`: keys count expressions, with videos in the file's order and ids sorted as texts."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._next = 0
        self._lists = read_pickle(file)
        if not isinstance(self._lists, dict):
            raise UserError("not a dict of masks", where=str(file), met=type(self._lists).__name__)

    def of_video(self, video: Mapping[str, Any]) -> dict[str, Any]:
        """Return object -> list of masks; raises `UserError` where an object's expressions have different masks."""
        taken: dict[str, Any] = {}
        for item in video["expressions"]:
            key = str(self._next)
            self._next = self._next + 1
            if key not in self._lists:
                raise UserError(
                    "fewer masks than expressions",
                    where=f"{self._file} {key}",
                    met=f"expression {item['id']} of {video['video']['id']}",
                    wanted="masks",
                )
            lists = [_plain(mask) for mask in self._lists.pop(key)]
            for number in item["objects"]:
                if taken.setdefault(number, lists) != lists:
                    raise UserError(
                        "masks of another order",
                        where=f"{self._file} {key}",
                        met=f"expression {item['id']} of {video['video']['id']}: other masks than object {number} has",
                        do="take the file of expressions that the pickle was made from",
                    )
        return taken

    def check_all_taken(self) -> None:
        """Raise `UserError` where there are more lists of masks than expressions."""
        if self._lists:
            raise UserError("more masks than expressions", where=str(self._file), met=f"{len(self._lists)} more")


def _plain(mask: Any) -> Any:
    """Return run lengths that JSON can hold."""
    counts = mask.get("counts") if isinstance(mask, dict) else None
    return {**mask, "counts": counts.decode("latin-1")} if isinstance(counts, bytes) else mask
