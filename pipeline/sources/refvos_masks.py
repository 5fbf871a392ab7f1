"""The masks of a video: palette PNGs, lists of run lengths, and Sa2VA's pickle of such lists."""

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
    """Mask files, as a rule palette PNGs, a frame each: a pixel's value is the id of the object there."""

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
        """Why no mask of an object is seen in any frame, where that is a fault."""
        if not number.isdecimal():
            return BadInput("object id", met=number, wanted="a number, as pixels have")
        ids = {one for n in range(len(self._files)) if self.has(n) for one in self.shown(n)}
        if not ids:
            return None
        return BadInput(
            "no pixel of an object's id", met=f"ids {', '.join(sorted(ids, key=int)[:6])} in the masks", wanted=number
        )


class MaskLists:
    """Run lengths: of each object a list with one for each frame, None or {} where it is not seen."""

    def __init__(self, given: Sequence[Any], frames: Sequence[str], objects: Sequence[str]) -> None:
        self._lists: dict[str, Sequence[Any]] = {}
        for part in given:
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
        # Run lengths without a size leave out their object, and no more: those of this frame or of any other have one.
        lists = [self._lists[number] for number in self._objects if number in self._fit]
        sizes = {size for own in lists if (size := rle_size(own[n]))}
        sizes = sizes or {size for own in lists for one in own if (size := rle_size(one))}
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
            given = self._lists[number]
            raise BadInput(
                "masks do not fit the frames",
                met=f"{len(given)} masks" if isinstance(given, list) else f"no list: {str(given)[:40]}",
                wanted=f"{self._frames}, one a frame",
            )
        given = self._lists[number][n]
        return masks.from_coco(given, height, width) if given else np.zeros((height, width), np.bool_)

    def fault(self, number: str) -> BadInput | None:
        """Why no mask of an object is seen in any frame, where that is a fault."""
        try:
            if number not in self._fit:
                self.mask(0, number, 1, 1)
            for n, given in enumerate(self._lists[number]):
                if given and not masks.has_pixels(given):
                    self.mask(n, number, *(rle_size(given) or self.size(n)))
        except BadInput as error:
            return error
        return None


def _length(given: Any) -> int:
    return len(given) if isinstance(given, list) else -1


class PickledMasks:
    """Sa2VA's `mask_dict.pkl`: keys count expressions, videos in the file's order and ids in that of texts."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._next = 0
        self._lists = read_pickle(file)
        if not isinstance(self._lists, dict):
            raise UserError("not a dict of masks", where=str(file), met=type(self._lists).__name__)

    def of_video(self, video: Mapping[str, Any]) -> dict[str, Any]:
        """Object -> list of masks; an object whose expressions disagree shows that the order is another."""
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
        """Raise `UserError` where there were more lists of masks than expressions."""
        if self._lists:
            raise UserError("more masks than expressions", where=str(self._file), met=f"{len(self._lists)} more")


def _plain(mask: Any) -> Any:
    """Run lengths as JSON can hold them."""
    counts = mask.get("counts") if isinstance(mask, dict) else None
    return {**mask, "counts": counts.decode("latin-1")} if isinstance(counts, bytes) else mask
