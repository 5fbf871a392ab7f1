"""The JSON of a sample: rules shared by writers and readers.

Every reader calls `parse_meta`, which checks all that readers rely on. The writer and `verify-shard` also call
`check_meta`, which checks all rules of `docs/FORMAT.md`.
"""

from __future__ import annotations

import json
import math
from typing import Any

from shards.errors import BadShard
from shards.format import LAYOUTS, MAX_OBJECTS, frame_fields
from shards.strict_json import parse_json

MAX_BYTES = 16 << 20
MAX_FRAMES = 99
MAX_MASKS = 1 << 13
"""Frames times objects; each takes a megabyte when a whole sample is decoded."""
MAX_DEPTH = 64
MAX_SIDE = 1 << 20
"""Largest side of an original, in pixels."""
OWN_KEYS = frozenset(
    ("source", "dataset_type", "path", "has_paired_frame", "frames", "objects", "crc32", "psnr", "source_keys")
)
"""Keys of the JSON that the format defines and no source may set. A source may set `left_out` and `turns`."""
OWN_OBJECT_KEYS = frozenset(("id", "texts", "filled", "mask_sizes", "source_keys"))
_TYPES = {"source": str, "dataset_type": str, "path": str, "has_paired_frame": bool}


def parse_meta(data: memoryview | bytes) -> dict[str, Any]:
    """Parse a sample's JSON; raises `BadShard` where it breaks a rule that readers rely on."""
    if len(data) > MAX_BYTES:
        raise BadShard("JSON too large", met=f"{len(data)} bytes", wanted=f"<= {MAX_BYTES}")
    try:
        meta = parse_json(data)
    except ValueError as error:
        raise BadShard("not JSON", met=str(error)) from None
    if not isinstance(meta, dict) or not isinstance(meta.get("crc32"), dict):
        raise BadShard("JSON of a sample", met=str(meta)[:80], wanted="an object with frames, objects and crc32")
    _check_structure(meta)
    return meta


def pack_meta(meta: dict[str, Any], is_checked: bool = False) -> bytes:
    """Return the bytes of a sample's JSON; raises `BadShard` where a reader would refuse them.

    Args:
        is_checked: `check_meta` has accepted it.
    """
    if not is_checked:
        check_meta(meta)
    text = json.dumps(meta, ensure_ascii=False, sort_keys=True, allow_nan=False)
    # Half a surrogate pair, which JSON can hold and UTF-8 cannot, stays an escape.
    data = text.encode("utf-8", "backslashreplace")
    parse_meta(data)
    return data


def check_counts(frames: int, objects: int) -> None:
    """Raise `BadShard` where a sample has too many frames, objects or masks."""
    if frames > MAX_FRAMES:
        raise BadShard("too many frames", met=str(frames), wanted=f"at most {MAX_FRAMES}", do="take fewer frames")
    if objects > MAX_OBJECTS:
        raise BadShard("too many objects", met=str(objects), wanted=f"at most {MAX_OBJECTS}")
    if frames * objects > MAX_MASKS:
        raise BadShard(
            "too many masks",
            met=f"{frames} frames x {objects} objects",
            wanted=f"at most {MAX_MASKS} masks",
            do="take fewer frames",
        )


def check_meta(meta: dict[str, Any]) -> None:
    """Raise `BadShard` at the first rule of the format that a sample's JSON breaks."""
    _check_values(meta)
    _check_structure(meta)
    for name, kind in _TYPES.items():
        if not isinstance(meta.get(name), kind):
            raise _fault(name, meta.get(name), kind.__name__)
    left_out = meta.get("left_out", [])
    if not isinstance(left_out, list) or not all(isinstance(item, dict) for item in left_out):
        raise _fault("left_out", left_out, "a list of objects with id, reason and detail")
    frames = len(meta["frames"])
    for item in meta["objects"]:
        filled = item.get("filled", [0] * frames)
        if not _is_list(filled, frames) or not all(type(n) is int and n >= 0 for n in filled):
            raise _fault("filled", filled, f"{frames} counts, one a frame")
        sizes = item.get("mask_sizes", [[1, 1]] * frames)
        if not _is_list(sizes, frames) or not all(_is_list(size, 2) and all(map(_is_side, size)) for size in sizes):
            raise _fault("mask_sizes", sizes, f"{frames} times [height, width]")


def _check_structure(meta: dict[str, Any]) -> None:
    for name in ("frames", "objects"):
        items = meta.get(name)
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise BadShard(
                "JSON of a sample",
                met=f"{name}: {str(items)[:60]}",
                wanted="an object with frames, objects and crc32",
            )
    check_counts(len(meta["frames"]), len(meta["objects"]))
    if "turns" in meta:
        _check_turns(meta["turns"], len(meta["frames"]))
    if not meta["objects"]:
        _check_without_objects(meta)
    elif not meta["frames"]:
        raise BadShard("objects without a frame", met=f"{len(meta['objects'])} objects", wanted="at least one frame")
    for frame in meta["frames"]:
        for side in ("height", "width"):
            if not _is_side(frame.get(side)):
                raise _fault(side, frame.get(side), f"pixels of the original, 1 to {MAX_SIDE}")
    for item in meta["objects"]:
        if not isinstance(item.get("id"), str) or not isinstance(item.get("texts"), list):
            raise BadShard("object", met=str(item)[:80], wanted="id and texts")


def _check_turns(turns: Any, frames: int) -> None:
    """Raise `BadShard` where the turns of a sample with `frames` frames break a rule."""
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise _fault("turns", turns, "a list of questions with answers")
    for number, turn in enumerate(turns, 1):
        for name in ("question", "answer"):
            if not isinstance(turn.get(name), str):
                raise _fault(f"{name} of turn {number}", turn.get(name), "a text")
        if "picture" not in turn:
            continue
        place = turn["picture"]
        if number > 1 or not frames:
            wanted = "none: there is no picture" if number == 1 else "it in the first turn alone"
            raise _fault(f"picture of turn {number}", place, wanted)
        if type(place) is not int or not 0 <= place <= len(turn["question"]):
            raise _fault("picture of turn 1", place, f"a place in its question, 0 to {len(turn['question'])}")


def _check_without_objects(meta: dict[str, Any]) -> None:
    frames = len(meta["frames"])
    if not frames and "turns" not in meta:
        raise BadShard("a sample without frames", met="no turns", wanted="turns: questions and answers")
    if "crc32" not in meta:  # which the writer adds
        return
    stored = {*meta["crc32"]}
    if stored not in [{str(field) for field in frame_fields(frames, layout)} for layout in LAYOUTS[1:]]:
        text = ", ".join(map(str, meta["crc32"])) or "nothing"
        wanted = "pixel_values of each frame, and g_pixel_values of all or none" if frames else "nothing: no frames"
        raise BadShard("fields of a sample without objects", met=text[:80], wanted=wanted)


def _check_values(meta: dict[str, Any]) -> None:
    """Raise `BadShard` on values that JSON cannot hold, or that its parsers read differently."""
    level = [meta]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise BadShard("JSON of a sample", met="deeper nesting", wanted=f"at most {MAX_DEPTH} levels")
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                for key in value:
                    if not isinstance(key, str):
                        raise _fault("key", key, "a text")
                below += value.values()
            elif isinstance(value, list | tuple):
                below += value
            elif isinstance(value, float) and not math.isfinite(value):
                raise BadShard("number that JSON cannot hold", met=str(value), wanted="a finite one")
            elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
                bits = f"an integer of {value.bit_length()} bits"
                raise BadShard("number that few JSON parsers hold", met=bits, wanted="64 bits, or a text")
        level = below


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_SIDE


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def _fault(name: str, value: Any, wanted: str) -> BadShard:
    return BadShard(name, met=repr(value)[:80], wanted=wanted)
