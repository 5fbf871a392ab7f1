"""A shard set once more with another codec, without the raw data: every tensor bit-equal, unless the codec is lossy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shards import codec
from shards.errors import BadShard, UserError
from shards.format import LOSSY, VERSION, Codec
from shards.lossy import ratios_of
from shards.manifest import Manifest, positions_by_shard
from shards.reader import Array, ShardSet, decode_field
from shards.rewrite import Part, read_checked_ledger, rewrite
from shards.sample import FrameTensors, Sample


def recode(folder: Path, out: Path, pictures: Codec, threads: int = 1) -> Manifest:
    """Write the finished set in `folder` into `out`, its pictures stored as `pictures` says; return the manifest.

    Shards keep their names and samples, and what was lost stays told. The new set has the current version of the
    format, whatever that of `folder` is. Stopped, the same call goes on.

    Raises:
        UserError: a sample that is not what its checksum says, another set in `out`, a full disk: what is done stays.
            A lossy set to be stored lossily once more: nobody could say what was lost in all.
    """
    source = ShardSet(folder)
    manifest = source.manifest
    if pictures in LOSSY and manifest.psnr:
        met, do = manifest.pictures, "recode the lossless set that it was made of"
        raise UserError("a lossy set already", where=str(folder), met=met, wanted="a lossless one", do=do)
    ledger, positions = read_checked_ledger(source), positions_by_shard(source.index, len(manifest.shards))
    parts = [Part(info.name, own) for info, own in zip(manifest.shards, positions, strict=True)]
    target = replace(manifest, codec=pictures, version=VERSION)
    return rewrite(
        source, out, target, ledger, parts, lambda writer, at: writer.write(stored_sample(source, at)), threads
    )


def stored_sample(shards: ShardSet, position: int) -> Sample:
    """Sample `position` as it was handed to the writer, but for what a lossy codec lost; pictures not normalised.

    Raises:
        BadShard: its bytes are not those that the index counted, or cannot be decoded.
    """
    meta, members = shards.sample(position)
    del meta["crc32"]
    frames: list[dict[str, Array]] = [{} for _ in meta["frames"]]
    try:
        ratios_of(meta, [field for field in members if field.is_picture], bool(shards.manifest.psnr))
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
