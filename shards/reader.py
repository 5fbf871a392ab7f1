"""Reading samples: in order from one tar, or any one out of a shard set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from shards import codec
from shards.archive import MappedTar, group_members, parse_meta
from shards.errors import BadShard
from shards.format import CODECS, META_EXTENSION, Codec, Field, frame_fields
from shards.manifest import Manifest, read_index
from shards.recipe import Recipe

Array = NDArray[Any]
_OPEN_TARS = 256  # mapped at a time; far below any limit on open files


def decode_field(
    field: Field, data: codec.Buffer, recipe: Recipe, objects: Sequence[int] | None = None, out: Array | None = None
) -> Array:
    """Decode one member to the array that DOMAIN's table promises (see `docs/FORMAT.md`).

    Args:
        objects: decode only these objects' masks (positions); all by default. Pictures have none.
        out: a contiguous array of the right shape and dtype that gets the result.
    """
    if field.name == "masks":
        return codec.decode_masks(data, recipe.sam_size, objects, out)
    if field.name == "prompt_masks":
        prompts = codec.decode_prompts(data, recipe.grid)
        chosen = prompts if objects is None else prompts[list(objects)]
        if out is None:
            return chosen
        out[...] = chosen
        return out
    if field.name == "g_pixel_values":
        return codec.decode_picture(data, recipe.sam_size, out)
    return codec.normalise(codec.decode_picture(data, recipe.vision_size), recipe.mean, recipe.std, out)


def stored_fields(
    meta: dict[str, Any], members: dict[str, memoryview], pictures: Codec | None = None
) -> dict[Field, memoryview]:
    """The members of a sample by field; raises `BadShard` unless they are exactly those that its JSON calls for.

    Args:
        pictures: the codec of its pictures, where it is known beforehand.
    """
    fields = frame_fields(len(meta["frames"]))
    met_codecs = [c for c in CODECS if f"{fields[0]}.{fields[0].extension(c)}" in members]
    stored = pictures or (met_codecs or [CODECS[0]])[0]
    named = {f"{field}.{field.extension(stored)}": field for field in fields}
    met = members.keys() - {META_EXTENSION}
    if met != named.keys():
        missing, extra = sorted(named.keys() - met), sorted(met - named.keys())
        raise BadShard("incomplete sample", met=f"missing {missing}, unexpected {extra}", wanted="one member a field")
    for name, field in named.items():
        if field.is_picture and codec.codec_of(members[name]) != stored:
            raise BadShard("not what the extension says", met=repr(bytes(members[name][:16])), wanted=name)
    return {field: members[name] for name, field in named.items()}


def read_samples(path: Path | str, recipe: Recipe | None = None) -> Iterator[dict[str, Any]]:
    """Yield each sample of the tar at `path`: `__key__`, `meta`, and the arrays under their fields' names.

    The recipe is read from the manifest beside the tar where it is not given.
    """
    path = Path(path)
    recipe = recipe or Manifest.read(path.parent).recipe
    for key, _, members in group_members(MappedTar(path).members()):
        if META_EXTENSION not in members:
            raise BadShard("sample without JSON", where=f"{path}: {key}")
        meta = parse_meta(members[META_EXTENSION])
        arrays = {str(f): decode_field(f, data, recipe) for f, data in stored_fields(meta, members).items()}
        yield {"__key__": key, "meta": meta, **arrays}


class ShardSet:
    """A finished shard set: any sample by its position, from files that are mapped when they are first needed."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        self.recipe = self.manifest.recipe
        self.index = read_index(self.folder)
        if len(self.index) != self.manifest.samples:
            met, wanted = f"{len(self.index)} rows", f"{self.manifest.samples} samples"
            raise BadShard("index and manifest differ", where=str(self.folder), met=met, wanted=wanted)
        self._tar = lru_cache(maxsize=_OPEN_TARS)(self._map)

    def _map(self, shard: int) -> MappedTar:
        info = self.manifest.shards[shard]
        tar = MappedTar(self.folder / info.name)
        if len(tar) != info.bytes:
            raise BadShard("size of a shard", where=str(tar.path), met=f"{len(tar)} bytes", wanted=f"{info.bytes}")
        return tar

    def __len__(self) -> int:
        return len(self.index)

    def key(self, position: int) -> str:
        return str(self.index[position]["key"].decode("ascii"))

    def stored(self, position: int) -> memoryview:
        """A sample's bytes in its tar, a view of the mapped file."""
        row = self.index[position]
        return self._tar(int(row["shard"])).view[int(row["offset"]) : int(row["offset"]) + int(row["size"])]

    def sample(self, position: int) -> tuple[dict[str, Any], dict[Field, memoryview]]:
        """A sample's JSON and its still encoded members (views of the mapped file)."""
        row = self.index[position]
        key = self.key(position)
        if row["shard"] >= len(self.manifest.shards):
            raise BadShard("index", where=str(self.folder), met=f"shard {row['shard']}")
        tar = self._tar(int(row["shard"]))
        try:
            groups = list(group_members(tar.members(int(row["offset"]), int(row["size"]))))
            if [group[0] for group in groups] != [key] or META_EXTENSION not in groups[0][2]:
                raise BadShard("the index points at another sample", met=str([g[0] for g in groups]), wanted=key)
            members = groups[0][2]
            meta = parse_meta(members[META_EXTENSION])
            return meta, stored_fields(meta, members, self.manifest.codec)
        except BadShard as error:
            where = f"{tar.path}: {key}"
            raise BadShard(error.what, where=where, met=error.met, wanted=error.wanted, do=error.do) from None

    def __getitem__(self, position: int) -> dict[str, Array | Any]:
        """Sample `position`, decoded, as `read_samples` yields it."""
        meta, members = self.sample(position)
        arrays = {str(field): decode_field(field, data, self.recipe) for field, data in members.items()}
        return {"__key__": self.key(position), "meta": meta, **arrays}


def find_sets(paths: Sequence[Path | str]) -> list[ShardSet]:
    """Open the shard sets in `paths`, in their order."""
    if not paths:
        raise BadShard("no shard folder given", wanted="at least one", do="data.shards=[shards/sav]")
    return [ShardSet(path) for path in paths]
