"""Decoders for programs that read the tars themselves, such as webdataset and Hugging Face's datasets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from shards.errors import BadShard
from shards.format import CODECS, META_EXTENSION, READABLE, Field
from shards.meta import parse_meta
from shards.reader import check_member, decode_field
from shards.recipe import Recipe

_RECIPE = Recipe()
"""Sizes, mean and std, which every readable set has in common."""


def decoder(key: str, data: bytes) -> Any:
    """Decode one member of a sample, for `webdataset.WebDataset(tars).decode(shards.decoder)`.

    Args:
        key: the member's name after the sample's key, such as ".masks1.bits".
        data: its bytes.

    Returns:
        The array that `docs/FORMAT.md` promises for the field; None for any other member, which webdataset then hands
        to its next decoder.

    Raises:
        BadShard: the bytes are not a member of this kind.
    """
    field = _field_of(key.removeprefix("."))
    return None if field is None else decode_field(field, memoryview(data), _RECIPE)


def decode_sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Decode a sample whose members are bytes, or partly decoded, for `.map` of webdataset and datasets.

    Each member that is still bytes is compared with its CRC-32 in the sample's JSON. Members that are None, as in a
    table of samples with different numbers of frames, are left out.

    Args:
        sample: `__key__`, `json` and the members under their names in the tar, such as "masks1.bits".

    Returns:
        `__key__`, `meta` (the JSON) and the arrays under their fields' names, as `ShardSet` returns them.

    Raises:
        BadShard: a member is missing, damaged, or not what its name says.
    """
    key = str(sample.get("__key__", ""))
    if sample.get(META_EXTENSION) is None:
        raise BadShard("sample without JSON", where=key)
    meta = _meta(sample[META_EXTENSION], key)
    decoded: dict[str, Any] = {"__key__": key, "meta": meta}
    for name, value in sample.items():
        field = _field_of(name)
        if field is None or value is None:
            continue
        if isinstance(value, bytes | bytearray | memoryview):
            check_member(memoryview(value), field, meta, f"{key}.{field}")
            decoded[str(field)] = decode_field(field, memoryview(value), _RECIPE)
        else:
            decoded[str(field)] = _as_promised(field, value, len(meta["objects"]), f"{key}.{field}")
    missing = [name for name in meta["crc32"] if name not in decoded]
    if missing:
        raise BadShard("incomplete sample", where=key, met=f"no {', '.join(missing)}", wanted="one member per field")
    return decoded


def _meta(value: Any, key: str) -> dict[str, Any]:
    data = value if isinstance(value, bytes | bytearray | memoryview) else json.dumps(value).encode()
    try:
        return parse_meta(bytes(data))
    except BadShard as error:
        raise error.at(key) from None


def _as_promised(field: Field, value: Any, objects: int, where: str) -> Any:
    """Give a member that another library decoded the shape and dtype of `docs/FORMAT.md`."""
    array = np.asarray(value)
    shape = field.shape(_RECIPE, objects)
    if array.shape != shape:
        raise BadShard("shape of a member", where=where, met=str(array.shape), wanted=str(shape))
    if field.name == "pixel_values" and array.dtype == np.uint8:
        from shards.codec import normalise

        return normalise(array, _RECIPE.mean, _RECIPE.std)
    return array.astype(field.dtype, copy=False)


def _field_of(name: str) -> Field | None:
    """The field that a member of this name ("masks1.bits") holds; None for any other member."""
    stem, _, extension = name.partition(".")
    try:
        field = Field.parse(stem)
    except BadShard:
        return None
    known = {field.extension(codec, version) for codec in CODECS for version in READABLE}
    return field if extension in known else None
