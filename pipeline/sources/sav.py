"""SAV as npz pairs: two frames of one video, and one object's mask in each. `docs/datasets/sav.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.boundary import input_errors
from pipeline.compiled import masks as _loops
from pipeline.cropped import Mask
from pipeline.npz import read_npz
from pipeline.raw import RawFrame, RawInput, RawObject, RawSample
from pipeline.records import RecordsWriter
from pipeline.refused import raise_refused
from pipeline.sources import Source
from pipeline.walk import walk
from shards.errors import BadInput

_ARRAYS = ("frame1", "mask1", "frame2", "mask2")
_MAX_SIDE = 4096
_TOLERANCE = 1e-3  # interpolated float values may leave their range by a rounding error
SOFT = "mask pixels strictly between the two levels"
UNIT_RANGE = "files with values in [0, 1]"

Float = NDArray[np.float32]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class _Array:
    """A frame or a mask of a pair, checked."""

    values: Float
    """Finite, in [0, 255] but for the tolerance."""
    most: np.float32
    """The largest of them; 0 where none is above 0."""
    rounded: UInt8 | None
    """None where they are to be rounded yet."""


class Sav(Source):
    name = "sav"
    choices: Mapping[str, Any] = {}

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for path, size in walk(root, _is_pair, counts, records, lambda name: ".npz" in name.lower()):
            records.add(path, size)
        return dict(counts)

    def options(self, root: Path, probe: Sequence[RawInput]) -> dict[str, Any]:
        """Return `value_range`, the maximum of the set's frames: 255 or 1.

        It decides about files that could have either range: those whose frames hold only zeros and ones.
        """
        for item in probe:
            try:
                with input_errors(root, item.path):
                    arrays = _read(root / item.path)
            except BadInput:
                continue  # it goes to the ledger when its turn comes
            if max(arrays["frame1"].most, arrays["frame2"].most) > 1 + _TOLERANCE:
                return {"value_range": 255}
            if _fractional(arrays):
                return {"value_range": 1}
        return {"value_range": 255}

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any] = ()) -> RawSample:
        raise_refused(parts)
        arrays = _read(root / path)
        top = _value_range(arrays, options["value_range"])
        notes = {UNIT_RANGE: int(top == 1)}
        frames = []
        for number in (1, 2):
            mask, soft = _binary(arrays[f"mask{number}"])
            notes[SOFT] = notes.get(SOFT, 0) + soft
            if not mask.any():
                raise BadInput("empty mask", met=f"mask{number} has no pixel", wanted="the object in both frames")
            picture = Image.fromarray(_picture(arrays[f"frame{number}"], top))
            frames.append(RawFrame(f"frame{number}", picture, (Mask.from_array(mask),)))
        return RawSample(path, self.name, tuple(frames), (RawObject("0"),), notes=notes)


def _is_pair(name: str) -> bool:
    return name.startswith("masklet_data_") and name.lower().endswith(".npz")


def _read(path: Path) -> dict[str, _Array]:
    """Return the four arrays: frames (H, W, 3), masks (H, W)."""
    arrays = read_npz(path, _ARRAYS, max_values=3 * _MAX_SIDE * _MAX_SIDE)
    checked: dict[str, _Array] = {}
    for name, array in arrays.items():
        if name.startswith("frame") and array.ndim == 3 and array.shape[2] != 3 and array.shape[0] == 3:
            array = array.transpose(1, 2, 0)
        expected = "(H, W, 3)" if name.startswith("frame") else "(H, W)"
        fits = array.ndim == 3 and array.shape[2] == 3 if name.startswith("frame") else array.ndim == 2
        if not fits or not all(1 <= side <= _MAX_SIDE for side in array.shape[:2]):
            raise BadInput("wrong shape", met=f"{name} {array.shape}", wanted=f"{expected}, sides 1 to {_MAX_SIDE}")
        checked[name] = _rounded(array) or _in_range(name, array)
    for number in (1, 2):
        frame = checked[f"frame{number}"].values
        mask = checked[f"mask{number}"].values
        if frame.shape[:2] != mask.shape:
            raise BadInput(
                "wrong shape",
                met=f"frame{number} {frame.shape[:2]}, mask{number} {mask.shape}",
                wanted="frame and mask of one size",
            )
    return checked


def _rounded(array: NDArray[Any]) -> _Array | None:
    """Check and round an array in one pass; None where that cannot be done, or a value is out of range."""
    if _loops is None or array.dtype != np.float32 or not array.flags.c_contiguous:
        return None
    rounded = np.empty(array.shape, np.uint8)
    most = _loops.rounded(array, -_TOLERANCE, 255 + _TOLERANCE, rounded)
    return None if most is None else _Array(array, np.float32(most), rounded)


def _in_range(name: str, array: NDArray[Any]) -> _Array:
    """Check an array; raises `BadInput`."""
    low = array.min()
    high = array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise BadInput("NaN or infinite values", met=f"{name}: {low} to {high}", wanted="finite values")
    if low < -_TOLERANCE or high > 255 + _TOLERANCE:
        raise BadInput("values outside the range", met=f"{name}: {low} to {high}", wanted="0 to 255 or 0 to 1")
    return _Array(array.astype(np.float32, copy=False), np.float32(max(high, 0)), None)


def _fractional(arrays: dict[str, _Array]) -> bool:
    return any(bool(np.any(arrays[name].values % 1)) for name in ("frame1", "frame2"))


def _value_range(arrays: dict[str, _Array], of_the_set: int) -> int:
    """Return the maximum of this file's range: 255 or 1."""
    if max(arrays["frame1"].most, arrays["frame2"].most) > 1 + _TOLERANCE:
        return 255
    # No value is above 1. Fractions show a file in [0, 1]; zeros and ones alone could have either range.
    return 1 if _fractional(arrays) else of_the_set


def _picture(frame: _Array, top: int) -> UInt8:
    # Values within the tolerance round to 0 and 255: none needs to be clipped.
    if top == 255 and frame.rounded is not None:
        return frame.rounded
    scaled = frame.values if top == 255 else frame.values * np.float32(255)
    picture = np.empty_like(scaled, np.uint8)
    np.rint(scaled, out=picture, casting="unsafe", dtype=np.float32)  # converted while it is in the processor's cache
    return np.ascontiguousarray(picture)


def _binary(mask: _Array) -> tuple[NDArray[np.bool_], int]:
    """Return the mask cut at half of its range, 0..255 or 0..1, and the number of pixels strictly in between."""
    top = np.float32(255 if mask.most > 1 + _TOLERANCE else 1)
    values = mask.values
    if _loops is not None and values.flags.c_contiguous:
        cut = np.empty(values.shape, np.bool_)
        return cut, _loops.cut(values, _TOLERANCE, top / 2, top - _TOLERANCE, cut)
    soft = int(np.count_nonzero((values > _TOLERANCE) & (values < top - _TOLERANCE)))
    return np.ascontiguousarray(values > top / 2), soft
