"""Writing a shard set again with another codec, without the raw data: bit-equal tensors, unless the codec is lossy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shards import codec
from shards.archive import ShardWriter
from shards.errors import BadShard, UserError
from shards.format import LOSSY, VERSION, Codec, Field, FieldName
from shards.lossy import recorded_psnr
from shards.manifest import Manifest, positions_by_shard
from shards.reader import ShardSet, decode_field
from shards.rewrite import PlannedTar, read_checked_ledger, rewrite
from shards.sample import FrameTensors, Sample


def recode(folder: Path, out: Path, pictures: Codec, threads: int = 1) -> Manifest:
    """Write the finished set in `folder` into `out` with its pictures in the codec `pictures`; return the manifest.

    Shards keep their names and samples; the PSNR of a lossy set stays recorded. A set of version 1 becomes one of
    version 2. After an interruption the same call goes on.

    Raises:
        UserError: a sample that differs from its checksum, another set in `out`, or a full disk; finished tars stay.
            A lossy set and a lossy codec: the total loss could not be measured.
    """
    source = ShardSet(folder)
    manifest = source.manifest
    if pictures in LOSSY and manifest.psnr:
        raise UserError(
            "a lossy set already",
            where=str(folder),
            met=manifest.pictures,
            wanted="a lossless one",
            do="recode the lossless set that it was made of",
        )
    ledger = read_checked_ledger(source)
    positions = positions_by_shard(source.index, len(manifest.shards))
    tars = [
        PlannedTar(info.name, tar_positions) for info, tar_positions in zip(manifest.shards, positions, strict=True)
    ]
    target = replace(manifest, codec=pictures, version=max(manifest.version, VERSION))

    def write_sample(writer: ShardWriter, position: int) -> None:
        writer.write(decoded_sample(source, position))

    return rewrite(source, out, target, ledger, tars, write_sample, threads, same_pixels=pictures not in LOSSY)


def decoded_sample(shards: ShardSet, position: int) -> Sample:
    """Decode sample `position` to what the writer was given, apart from a lossy codec's loss.

    Raises:
        BadShard: its bytes differ from the index's checksum, or cannot be decoded.
    """
    meta, members = shards.sample(position)
    del meta["crc32"]
    masks: tuple[FieldName, ...] = ("prompt_masks", "masks")
    none: dict[str, Any] = {name: np.zeros(Field(name, None).shape(shards.recipe, 0), np.bool_) for name in masks}
    frames: list[dict[str, Any]] = [{"g_pixel_values": None, **none} for _ in meta["frames"]]
    try:
        recorded_psnr(meta, [field for field in members if field.is_picture], bool(shards.manifest.psnr))
        for field, data in members.items():
            if field.is_picture:
                value = codec.decode_picture(data, field.shape(shards.recipe, 1)[1])
            else:
                value = decode_field(field, data, shards.recipe)
            if not field.is_picture and len(value) != len(meta["objects"]):
                raise BadShard("number of masks", met=str(len(value)), wanted=f"{len(meta['objects'])}, as in the JSON")
            frames[(field.frame or 1) - 1][field.name] = value
    except BadShard as error:
        where = f"{shards.folder}: {shards.key(position)}"
        raise BadShard(error.what, where=where, met=error.met, wanted=error.wanted, do=error.do) from None
    return Sample(shards.key(position), meta, tuple(FrameTensors(**frame) for frame in frames))
