"""A shard set once more with another codec: every tensor bit-equal, without the raw data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from shards import codec
from shards.format import Codec
from shards.manifest import Manifest
from shards.reader import Array, ShardSet, decode_field
from shards.rewrite import Part, check_index, checked_bytes, rewrite
from shards.sample import FrameTensors, Sample


def recode(folder: Path, out: Path, pictures: Codec, threads: int = 1) -> Manifest:
    """Write the finished set in `folder` into `out`, its pictures stored as `pictures` says; return the manifest.

    Shards keep their names and samples. Stopped, the same call goes on.

    Raises:
        UserError: a sample that is not what its checksum says, another set in `out`, a full disk. What is done stays.
    """
    source = ShardSet(folder)
    ledger, shard_of = check_index(source), np.asarray(source.index["shard"])
    parts = [Part(info.name, np.flatnonzero(shard_of == i).tolist()) for i, info in enumerate(source.manifest.shards)]
    target = replace(source.manifest, codec=pictures)
    return rewrite(
        source, out, target, ledger, parts, lambda writer, at: writer.write(stored_sample(source, at)), threads
    )


def stored_sample(shards: ShardSet, position: int) -> Sample:
    """Sample `position` as it was handed to the writer, pictures not normalised.

    Raises:
        BadShard: its bytes are not those that the index counted, or cannot be decoded.
    """
    meta, members = shards.sample(position)
    checked_bytes(shards, position)
    del meta["crc32"]
    frames: list[dict[str, Array]] = [{} for _ in meta["frames"]]
    for field, data in members.items():
        if field.is_picture:
            value = codec.decode_picture(data, field.shape(shards.recipe, 1)[1])
        else:
            value = decode_field(field, data, shards.recipe)
        frames[(field.frame or 1) - 1][field.name] = value
    return Sample(shards.key(position), meta, tuple(FrameTensors(**frame) for frame in frames))
