"""Reading samples: in order from one tar, or any one out of a shard set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards import codec
from shards.archive import MappedTar, group_members
from shards.checksum import Check, Copies, crc32, crc32_while_copying
from shards.errors import BadShard
from shards.format import CODECS, FIELDS, KEY, META_EXTENSION, VERSION, Codec, Field, frame_fields
from shards.manifest import Manifest, read_index
from shards.meta import parse_meta
from shards.program import copy_changed
from shards.recipe import Recipe

Array = NDArray[Any]
_OPEN_TARS = 256  # mapped at a time; far below any limit on open files


def decode_field(
    field: Field,
    data: codec.Buffer,
    recipe: Recipe,
    objects: Sequence[int] | None = None,
    out: Array | None = None,
    as_stored: bool = False,
) -> Array:
    """Decode one member to the array that the format's table promises (see `docs/FORMAT.md`).

    Args:
        objects: decode only these objects' masks (positions); all by default. Pictures have none.
        out: a contiguous array of the right shape and dtype that gets the result.
        as_stored: `pixel_values` before normalisation, uint8, and `masks` as packed bits (see `codec.decode_masks`).
    """
    if field.name == "masks":
        return codec.decode_masks(data, recipe.sam_size, objects, out, as_stored)
    if field.name == "prompt_masks":
        return codec.decode_prompts(data, recipe.grid, objects, out)
    if field.name == "g_pixel_values":
        return codec.decode_picture(data, recipe.sam_size, out)
    if as_stored:
        return codec.decode_picture(data, recipe.vision_size, out)
    return codec.normalise(codec.read_picture(data, recipe.vision_size), recipe.mean, recipe.std, out)


@lru_cache(maxsize=256)
def _member_names(frames: int, pictures: Codec, version: int) -> dict[bytes, Field | None]:
    """What follows the key in the names of a sample's members, in the tar's order; None stands for the JSON."""
    fields = {f".{field}.{field.extension(pictures, version)}".encode(): field for field in frame_fields(frames)}
    return {f".{META_EXTENSION}".encode(): None, **fields}


def stored_fields(
    meta: dict[str, Any], members: dict[str, memoryview], pictures: Codec | None = None, version: int | None = None
) -> dict[Field, memoryview]:
    """The members of a sample by field; raises `BadShard` unless they are exactly those that its JSON calls for.

    Args:
        pictures: the codec of its pictures, where it is known beforehand.
        version: of the format, where it is known beforehand.
    """
    fields = frame_fields(len(meta["frames"]))
    version = version or (1 if any(name.endswith(".zst") for name in members) else VERSION)
    met_codecs = [c for c in CODECS if f"{fields[0]}.{fields[0].extension(c, version)}" in members]
    stored = pictures or (met_codecs or [CODECS[0]])[0]
    named = {f"{field}.{field.extension(stored, version)}": field for field in fields}
    met = members.keys() - {META_EXTENSION}
    if met != named.keys():
        missing, extra = sorted(named.keys() - met), sorted(met - named.keys())
        raise BadShard("incomplete sample", met=f"missing {missing}, unexpected {extra}", wanted="one member a field")
    views = {field: members[name] for name, field in named.items()}
    _check_pictures(views, stored)
    return views


def _check_pictures(members: dict[Field, memoryview], pictures: Codec) -> None:
    for field, data in members.items():
        if field.is_picture and codec.codec_of(data) != pictures:
            wanted = f"{field}.{field.extension(pictures)}"
            raise BadShard("not what the extension says", met=repr(bytes(data[:16])), wanted=wanted)


def read_samples(path: Path | str, recipe: Recipe | None = None) -> Iterator[dict[str, Any]]:
    """Yield each sample of the tar at `path`: `__key__`, `meta`, and the arrays under their fields' names.

    Args:
        path: of a tar. Its samples are compared with the CRC-32 in the index of the set that it lies in.
        recipe: of a tar that lies in no set. Its members are compared with the CRC-32 in the JSON of their sample;
            nothing protects that JSON and the headers then.

    Raises:
        BadShard: it is not what the format, the index or the JSON says.
    """
    path = Path(path)
    if recipe is None:
        yield from _read_listed(path)
        return
    for key, _, members in group_members(MappedTar(path).members()):
        if META_EXTENSION not in members:
            raise BadShard("sample without JSON", where=f"{path}: {key}")
        meta, arrays = parse_meta(members[META_EXTENSION]), {}
        for field, data in stored_fields(meta, members).items():
            if (met := crc32(data)) != (wanted := meta["crc32"].get(str(field))):
                where = f"{path}: {key}.{field}"
                raise BadShard("CRC-32 of the member", where=where, met=str(met), wanted=str(wanted), do=copy_changed())
            arrays[str(field)] = decode_field(field, data, recipe)
        yield {"__key__": key, "meta": meta, **arrays}


def _read_listed(path: Path) -> Iterator[dict[str, Any]]:
    shards = ShardSet(path.parent)
    names = [info.name for info in shards.manifest.shards]
    if path.name not in names:
        raise BadShard("a tar that the manifest does not list", where=str(path))
    for position in np.flatnonzero(shards.index["shard"] == names.index(path.name)).tolist():
        yield shards[position]


class StoredSample:
    """A sample as it stands in its tar: its members are views of the mapped file, neither decoded nor copied."""

    def __init__(
        self, key: str, where: str, frames: int, json: memoryview | bytes, members: dict[Field, memoryview]
    ) -> None:
        self.key, self.where, self.frames, self.members, self._json = key, where, frames, members, json
        self.compare: Callable[[Copies], None] | None = None
        """Compares its bytes with the index, and meanwhile copies arrays that are views of them; None: not to be done.

        Raises `BadShard`.
        """

    @cached_property
    def objects(self) -> int:
        """How many objects it has, as its first member of masks says."""
        try:
            return codec.count_masks(self.members[Field("masks", 1 if self.frames > 1 else None)])
        except BadShard as error:
            raise error.at(self.where) from None

    @contextmanager
    def changed_bytes_first(self) -> Iterator[None]:
        """Compare the sample's bytes, where they are still to be compared, when an exception ends the block.

        That the bytes have changed is the better reason to give.

        Raises:
            BadShard: its bytes have changed; else what was raised inside.
        """
        try:
            yield
        except Exception:
            if self.compare:
                self.compare(())
            raise

    def detached(self) -> StoredSample:
        """The same sample without its members: its JSON is copied, and nothing of the mapped file is kept."""
        detached = StoredSample(self.key, self.where, self.frames, bytes(self._json), {})
        detached.objects = self.objects
        return detached

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Its JSON, read when it is first asked for."""
        try:
            meta = parse_meta(self._json)
            met, wanted = (len(meta["frames"]), len(meta["objects"])), (self.frames, self.objects)
            if met != wanted:
                said = "%d frames, %d objects"
                raise BadShard("JSON and members differ", met=said % met, wanted=said % wanted)
            return meta
        except BadShard as error:
            raise error.at(self.where) from None


class ShardSet:
    """A finished shard set: any sample by its position, from files that are mapped when they are first needed.

    Args:
        folder: of the set.
        check: when a sample's bytes (headers, JSON, members, padding) are compared with the CRC-32 in the index. What
            has been compared is remembered by this object, for all threads that read from it. The index itself is
            compared with the manifest when the set is opened, unless this is "never".
    """

    _may_compare_later = True

    def __init__(self, folder: Path | str, check: Check = "first") -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        self.recipe = self.manifest.recipe
        self.index = read_index(self.folder, None if check == "never" else self.manifest.index_sha256)
        self.check: Check = check
        self._checked = bytearray(len(self.index))  # a byte per sample: setting a bit would not be atomic
        self._rows = self.index.view(np.ndarray)  # a row of a memmap takes ten times as long to get
        if len(self.index) != self.manifest.samples:
            met, wanted = f"{len(self.index)} rows", f"{self.manifest.samples} samples"
            raise BadShard("index and manifest differ", where=str(self.folder), met=met, wanted=wanted)
        if not len(self.index):
            do = "ledger.jsonl there says why each input was left out"
            raise BadShard("a set without samples", where=str(self.folder), wanted="at least one", do=do)
        if (last := int(self.index["shard"].max())) >= len(self.manifest.shards):
            wanted = f"0 to {len(self.manifest.shards) - 1}"
            raise BadShard("index", where=str(self.folder), met=f"shard {last}", wanted=wanted)
        self._frames = 1  # of the sample that was opened last
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
        return str(self.index[position]["key"].decode("ascii", "replace"))

    def stored(self, position: int) -> memoryview:
        """A sample's bytes in its tar, a view of the mapped file."""
        row = self.index[position]
        return self._tar(int(row["shard"])).view[int(row["offset"]) : int(row["offset"]) + int(row["size"])]

    def open(self, position: int, compare_later: bool = False) -> StoredSample:
        """A sample whose members are still encoded and whose JSON is still unread.

        Args:
            compare_later: it may be left to the caller to compare its bytes, by `StoredSample.compare`, where its
                pictures are raw, and so are copied out of the same bytes.

        Raises:
            BadShard: the bytes are not those that were written, or the index leads to something else than a whole
                sample of this key.
        """
        name, shard, offset, size, crc, *_ = self._rows[position].item()
        key = name.decode("ascii", "replace")
        tar = self._tar(shard)
        compare = None
        if self.check == "always" or (self.check == "first" and not self._checked[position]):
            if compare_later and self._may_compare_later and self.manifest.codec == "raw":
                compare = partial(self._compare, tar, position)
            else:
                tar = self._compared(tar, shard, key, offset, size, crc)
                self._checked[position] = 1
        try:
            sample = self._open(tar, key, offset, size)
        except BadShard as error:
            if compare:
                compare(())  # bytes that have changed are the better reason
            raise error.at(f"{tar.path}: {key}") from None
        sample.compare = compare
        return sample

    def _open(self, tar: MappedTar, key: str, offset: int, size: int) -> StoredSample:
        name, where = key.encode("ascii", "replace"), f"{tar.path}: {key}"
        frames = self._frames
        expected = _member_names(frames, self.manifest.codec, self.manifest.version)
        found = tar.those(offset, size, [name + rest for rest in expected]) if KEY.fullmatch(key) else None
        if found is None:
            members = list(tar.members(offset, size))
            frames = max(1, (len(members) - 1) // len(FIELDS))
            expected = _member_names(frames, self.manifest.codec, self.manifest.version)
            if [met for _, met, _ in members] != [key + rest.decode() for rest in expected]:
                return self._open_unusual(key, where, members)
            self._frames, found = frames, [data for _, _, data in members]
        views = {field: data for field, data in zip(expected.values(), found, strict=True) if field}
        _check_pictures(views, self.manifest.codec)
        return StoredSample(key, where, frames, found[0], views)

    def _compare(self, tar: MappedTar, position: int, copies: Copies) -> None:
        """Compare a sample's bytes with the index while copying arrays out of them; raises `BadShard`."""
        name, _, offset, size, crc, *_ = self._rows[position].item()
        _check_crc32(crc32_while_copying(tar.view[offset : offset + size], copies), crc, tar, name.decode("ascii"))
        self._checked[position] = 1

    def _compared(self, tar: MappedTar, shard: int, key: str, offset: int, size: int, wanted: int) -> MappedTar:
        """The tar to read the sample from: `tar`, if the sample's bytes there have the CRC-32 `wanted`."""
        _check_crc32(crc32(tar.view[offset : offset + size]), wanted, tar, key)
        return tar

    def _open_unusual(self, key: str, where: str, members: list[tuple[int, str, memoryview]]) -> StoredSample:
        """A sample whose members do not stand in the usual order: another key, one is missing, or only the order."""
        groups = list(group_members(iter(members)))
        if [group[0] for group in groups] != [key] or META_EXTENSION not in groups[0][2]:
            raise BadShard("the index points at another sample", met=str([g[0] for g in groups]), wanted=key)
        named = groups[0][2]
        meta = parse_meta(named[META_EXTENSION])
        stored = stored_fields(meta, named, self.manifest.codec, self.manifest.version)
        return StoredSample(key, where, len(meta["frames"]), named[META_EXTENSION], stored)

    def sample(self, position: int) -> tuple[dict[str, Any], dict[Field, memoryview]]:
        """A sample's JSON and its still encoded members (views of the mapped file)."""
        stored = self.open(position)
        return stored.meta, stored.members

    def __getitem__(self, position: int) -> dict[str, Array | Any]:
        """Decode sample `position`: `__key__`, `meta`, and the arrays under their fields' names."""
        return self.read(position)

    def read(
        self, position: int, fields: Sequence[str] | None = None, objects: Sequence[int] | None = None
    ) -> dict[str, Array | Any]:
        """Decode a part of sample `position`; what is not asked for is neither decoded nor copied.

        Args:
            position: from 0; negative ones count from the end.
            fields: names such as "pixel_values" or "masks2"; all that the sample has by default.
            objects: positions of the objects whose masks are decoded, in `meta["objects"]`; all by default. `meta`
                stays whole.

        Raises:
            IndexError: there is no such sample.
            BadShard: a field that the sample has not, or bytes that have changed.
        """
        if not -len(self) <= position < len(self):
            raise IndexError(f"sample {position} of {len(self)}")
        meta, members = self.sample(position % len(self))
        named = {str(field): field for field in members}
        wanted = [*named] if fields is None else [*fields]
        if unknown := [name for name in wanted if name not in named]:
            where = f"{self.folder}: {self.key(position)}"
            raise BadShard("no such field", where=where, met=", ".join(unknown), wanted=", ".join(named))
        arrays = {name: decode_field(named[name], members[named[name]], self.recipe, objects) for name in wanted}
        return {"__key__": self.key(position), "meta": meta, **arrays}

    def meta(self, position: int) -> dict[str, Any]:
        """The JSON of sample `position`, which `docs/FORMAT.md` lists."""
        return self.open(position).meta

    def __iter__(self) -> Iterator[dict[str, Array | Any]]:
        return map(self.read, range(len(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the folder's name: the process that unpickles it opens the set itself."""
        return type(self), (self.folder, self.check)


def _check_crc32(met: int, wanted: int, tar: MappedTar, key: str) -> None:
    if met != wanted:
        where = f"{tar.path}: {key}"
        raise BadShard("CRC-32 of the sample", where=where, met=str(met), wanted=str(wanted), do=copy_changed())
