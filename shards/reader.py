"""Reading samples: in order from one tar, or any one out of a shard set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards import codec
from shards.archive import MappedTar, group_members
from shards.checksum import Check, Copies, crc32, crc32_while_copying
from shards.errors import BadShard
from shards.format import (
    CODECS,
    FIELDS,
    LAYOUTS,
    LOSSY,
    META_EXTENSION,
    PICTURES,
    VERSION,
    Codec,
    Field,
    FieldName,
    frame_fields,
)
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
    """Decode one member to the array of shape and dtype that `docs/FORMAT.md` gives for its field.

    Args:
        objects: positions of the objects whose masks are decoded; all by default. Without effect on pictures.
        out: contiguous array of the right shape and dtype for the result.
        as_stored: leave `pixel_values` as uint8 before normalisation, and `masks` as packed bits (see
            `codec.decode_masks`).

    Raises:
        BadShard: the bytes are not a member of this field.
    """
    if field.name == "masks":
        return codec.decode_masks(data, recipe.sam_size, objects, out, as_stored)
    if field.name == "prompt_masks":
        return codec.decode_prompts(data, recipe.grid, objects, out)
    if field.name == "g_pixel_values":
        return codec.decode_picture(data, recipe.sam_size, out)
    if as_stored:
        return codec.decode_picture(data, recipe.vision_size, out)
    return codec.decode_normalised(data, recipe.vision_size, recipe.mean, recipe.std, out)


class Alike:
    """Members that samples of a set have in common: those with as many frames, of the same fields.

    Args:
        frames: number of frames; 0 for text alone.
        layout: fields of each frame.
        pictures, version: of the set.
    """

    def __init__(self, frames: int, layout: tuple[FieldName, ...], pictures: Codec, version: int) -> None:
        self.frames = frames
        self.fields = tuple(frame_fields(frames, layout))
        """Fields of the members but the first, which is the JSON, in the tar's order."""
        self.at = {field: number for number, field in enumerate(self.fields)}
        """The numbers of the fields."""
        stored = [f".{field}.{field.extension(pictures, version)}".encode() for field in self.fields]
        self.rests = (f".{META_EXTENSION}".encode(), *stored)
        """Ends of the members' names, after the key."""
        self.begins = (b"", *(codec.BEGINS[pictures] if field.is_picture else b"" for field in self.fields))
        """First bytes of each member; b"" where they may be any."""
        self.masks = self.at.get(Field("masks", 1 if frames > 1 else None))
        """The number of the first masks; None where there are none."""


_alike = lru_cache(maxsize=256)(Alike)


def stored_fields(
    meta: dict[str, Any], members: dict[str, memoryview], pictures: Codec | None = None, version: int | None = None
) -> dict[Field, memoryview]:
    """Return the members of a sample by field.

    Args:
        pictures: codec of the pictures, if known; found from the names otherwise.
        version: of the format, if known; found from the names otherwise.

    Raises:
        BadShard: the members are not exactly those that the JSON calls for.
    """
    segmentable = any(name.startswith("g_pixel_values") for name in members)
    layout = FIELDS if meta["objects"] else PICTURES if segmentable else PICTURES[:1]
    fields = frame_fields(len(meta["frames"]), layout)
    version = version or (1 if any(name.endswith(".zst") for name in members) else VERSION)
    possible = [c for c in CODECS if fields and f"{fields[0]}.{fields[0].extension(c, version)}" in members]
    codec_of_pictures = pictures or (possible or [CODECS[0]])[0]
    expected = {f"{field}.{field.extension(codec_of_pictures, version)}": field for field in fields}
    names = members.keys() - {META_EXTENSION}
    if names != expected.keys():
        missing = sorted(expected.keys() - names)
        extra = sorted(names - expected.keys())
        raise BadShard("incomplete sample", met=f"missing {missing}, unexpected {extra}", wanted="one member a field")
    views = {field: members[name] for name, field in expected.items()}
    _check_pictures(views, codec_of_pictures)
    return views


def _check_pictures(members: dict[Field, memoryview], pictures: Codec) -> None:
    """Raise `BadShard` where a picture has another codec than `pictures`, which its extension names."""
    for field, data in members.items():
        if field.name in PICTURES and codec.codec_of(data) != pictures:
            expected = f"{field}.{field.extension(pictures)}"
            raise BadShard("not what the extension says", met=repr(bytes(data[:16])), wanted=expected)


def check_member(data: codec.Buffer, field: Field, meta: dict[str, Any], where: str) -> None:
    """Compare a member's bytes with the CRC-32 in the JSON of its sample; raises `BadShard`, which names `where`."""
    checksum = crc32(data)
    expected = meta["crc32"].get(str(field))
    if checksum != expected:
        raise BadShard("CRC-32 of the member", where=where, met=str(checksum), wanted=str(expected), do=copy_changed())


def read_samples(path: Path | str, recipe: Recipe | None = None) -> Iterator[dict[str, Any]]:
    """Yield each sample of the tar at `path`: `__key__`, `meta`, and the arrays under their fields' names.

    Args:
        path: of a tar. Each sample is compared with its CRC-32 in the index of the set that the tar is in.
        recipe: for a tar outside a set. Each member is compared with its CRC-32 in the sample's JSON; the JSON and the
            headers are then unprotected.

    Raises:
        BadShard: the tar differs from the format, the index or the JSON.
    """
    path = Path(path)
    if recipe is None:
        yield from _read_tar_of_set(path)
        return
    for key, _, members in group_members(MappedTar(path).members()):
        if META_EXTENSION not in members:
            raise BadShard("sample without JSON", where=f"{path}: {key}")
        meta = parse_meta(members[META_EXTENSION])
        arrays = {}
        for field, data in stored_fields(meta, members).items():
            check_member(data, field, meta, f"{path}: {key}.{field}")
            arrays[str(field)] = decode_field(field, data, recipe)
        yield {"__key__": key, "meta": meta, **arrays}


def _read_tar_of_set(path: Path) -> Iterator[dict[str, Any]]:
    shards = ShardSet(path.parent)
    names = [info.name for info in shards.manifest.shards]
    if path.name not in names:
        raise BadShard("a tar that the manifest does not list", where=str(path))
    for position in np.flatnonzero(shards.index["shard"] == names.index(path.name)).tolist():
        yield shards[position]


class StoredSample:
    """A sample as stored in its tar. Members are views of the mapped file, neither decoded nor copied.

    Args:
        tar: its path, for messages.
        alike: which members it has.
        json: bytes of its JSON, which is parsed when `meta` is first read.
        stored: bytes of its other members, by the number of their field.
    """

    def __init__(
        self, key: str, tar: Path | str, alike: Alike, json: memoryview | bytes, stored: list[memoryview]
    ) -> None:
        self.key = key
        self.alike = alike
        self.stored = stored
        self._tar = tar
        self._json = json
        self._objects: int | None = None  # Python 3.11 takes half a microsecond to lock a cached_property
        self.compare: Callable[[Copies], None] | None = None
        """Compares the sample's bytes with the index while it copies arrays that are views of them. Raises `BadShard`.

        None: the bytes need no comparison.
        """

    @property
    def where(self) -> str:
        """Tar and key, for messages."""
        return f"{self._tar}: {self.key}"

    @property
    def frames(self) -> int:
        """Number of frames; 0 for text alone."""
        return self.alike.frames

    @property
    def members(self) -> dict[Field, memoryview]:
        """Encoded bytes by field; none of a detached sample."""
        return dict(zip(self.alike.fields, self.stored, strict=False))

    @property
    def objects(self) -> int:
        """Number of objects, from its first member of masks; 0 where it has none. Raises `BadShard`."""
        if self._objects is None:
            self._objects = self._count_objects()
        return self._objects

    def _count_objects(self) -> int:
        if self.alike.masks is None:
            return 0
        try:
            if not (count := codec.count_masks(self.stored[self.alike.masks])):
                raise BadShard("masks of no object", met="0 masks", wanted="at least 1, or no such member")
            return count
        except BadShard as error:
            raise error.at(self.where) from None

    def compare_now(self, copies: Copies = ()) -> None:
        """Compare the sample's bytes if that is still to be done, while copying arrays that are views of them.

        Raises:
            BadShard: the bytes have changed.
        """
        if self.compare:
            self.compare(copies)

    def detach(self) -> None:
        """Copy the JSON and forget the other members, so that the mapped file can be released. Raises `BadShard`."""
        self.objects  # noqa: B018  # counted while the masks are at hand
        self._json = bytes(self._json)
        self.stored = []

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The sample's JSON, parsed at the first access. Raises `BadShard`."""
        try:
            meta = parse_meta(self._json)
            counts = len(meta["frames"]), len(meta["objects"])
            expected = self.frames, self.objects
            if counts != expected:
                text = "%d frames, %d objects"
                raise BadShard("JSON and members differ", met=text % counts, wanted=text % expected)
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
        manifest: of a set that has all of its files but this one; read from the folder by default.

    Raises:
        BadShard: not a finished set, or its manifest and index contradict each other.
    """

    _may_compare_later = True

    def __init__(self, folder: Path | str, check: Check = "first", manifest: Manifest | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = manifest or Manifest.read(self.folder)
        self.recipe = self.manifest.recipe
        self.index = read_index(self.folder, None if check == "never" else self.manifest.index_sha256)
        self.check: Check = check
        self._checked = bytearray(len(self.index))  # a byte per sample: setting a bit would not be atomic
        # A row of a memmap takes ten times as long to get.
        self._places = self.index.view(np.ndarray)[["key", "shard", "offset", "size", "crc32"]]
        if len(self.index) != self.manifest.samples:
            raise BadShard(
                "index and manifest differ",
                where=str(self.folder),
                met=f"{len(self.index)} rows",
                wanted=f"{self.manifest.samples} samples",
            )
        if not len(self.index):
            do = "ledger.jsonl there says why each input was left out"
            raise BadShard("a set without samples", where=str(self.folder), wanted="at least one", do=do)
        if (last := int(self.index["shard"].max())) >= len(self.manifest.shards):
            expected = f"0 to {len(self.manifest.shards) - 1}"
            raise BadShard("index", where=str(self.folder), met=f"shard {last}", wanted=expected)
        # Of the sample opened last, to which the next one is probably alike. A set may have no pictures.
        pictures = self.manifest.codec not in LOSSY or self.manifest.psnr is not None
        self._alike = self._alike_of(int(pictures), FIELDS)
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
        """Return the key of sample `position`."""
        return str(self.index[position]["key"].decode("ascii", "replace"))

    def table_file(self, name: str) -> Path:
        """Return where `tables.json` or a table that it lists is on this machine, or would be.

        Raises:
            UserError: of a set at a URL, whose file is fetched: it is missing there, or of another state of the set.
        """
        return self.folder / name

    def sample_bytes(self, position: int) -> memoryview:
        """Return the bytes of a sample in its tar, headers and padding included: a view of the mapped file."""
        row = self.index[position]
        return self._tar(int(row["shard"])).view[int(row["offset"]) : int(row["offset"]) + int(row["size"])]

    def open(self, position: int, compare_later: bool = False) -> StoredSample:
        """Return a sample with its members encoded and its JSON not yet parsed.

        Args:
            compare_later: leave it to the caller to compare the bytes of raw pictures, with `StoredSample.compare`,
                while it copies them.

        Raises:
            BadShard: the bytes have changed since they were written, or the index does not point at a whole sample of
                this key.
        """
        place: Any = self._places.item(position)
        name, shard, offset, size, crc = place
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
            sample = self._open(tar, key, name, offset, size)
        except BadShard as error:
            if compare:
                compare(())  # changed bytes are the better reason to give
            raise error.at(f"{tar.path}: {key}") from None
        sample.compare = compare
        return sample

    def _open(self, tar: MappedTar, key: str, name: bytes, offset: int, size: int) -> StoredSample:
        alike = self._alike
        found = tar.exact_members(offset, size, name, alike.rests, alike.begins)
        if found is not None:
            return StoredSample(key, tar.path, alike, found[0], found[1:])
        members = list(tar.members(offset, size))
        named = self._named_alike(key, [member for _, member, _ in members])
        if named is None:
            return self._open_unusual(key, tar.path, members)
        self._alike = named
        json, *stored = (data for _, _, data in members)
        sample = StoredSample(key, tar.path, named, json, stored)
        _check_pictures(sample.members, self.manifest.codec)
        return sample

    def _alike_of(self, frames: int, layout: tuple[FieldName, ...]) -> Alike:
        return _alike(frames, layout, self.manifest.codec, self.manifest.version)

    def _named_alike(self, key: str, members: list[str]) -> Alike | None:
        """Return what samples are like whose members have these names; None for other names.

        Raises:
            BadShard: such a sample cannot stand in this set.
        """
        for layout in LAYOUTS:
            frames = (len(members) - 1) // len(layout)
            alike = self._alike_of(frames, layout)
            if members == [key + rest.decode() for rest in alike.rests]:
                self.manifest.check_sample(frames, layout is FIELDS and frames > 0)
                return alike
        return None

    def _compare(self, tar: MappedTar, position: int, copies: Copies) -> None:
        """Compare a sample's bytes with the index while copying arrays out of them; raises `BadShard`."""
        place: Any = self._places.item(position)
        name, _, offset, size, crc = place
        _check_crc32(crc32_while_copying(tar.view[offset : offset + size], copies), crc, tar, name.decode("ascii"))
        self._checked[position] = 1

    def _compared(self, tar: MappedTar, shard: int, key: str, offset: int, size: int, expected: int) -> MappedTar:
        """Return the tar to read the sample from; raises `BadShard` unless its bytes have the CRC-32 `expected`."""
        _check_crc32(crc32(tar.view[offset : offset + size]), expected, tar, key)
        return tar

    def _open_unusual(self, key: str, tar: Path, members: list[tuple[int, str, memoryview]]) -> StoredSample:
        """Open a sample whose members are in another order; raises `BadShard` on another key or a missing member."""
        groups = list(group_members(iter(members)))
        if [group[0] for group in groups] != [key] or META_EXTENSION not in groups[0][2]:
            raise BadShard("the index points at another sample", met=str([g[0] for g in groups]), wanted=key)
        named = groups[0][2]
        meta = parse_meta(named[META_EXTENSION])
        self.manifest.check_sample(len(meta["frames"]), bool(meta["objects"]))
        stored = stored_fields(meta, named, self.manifest.codec, self.manifest.version)
        alike = self._alike_of(len(meta["frames"]), tuple(dict.fromkeys(field.name for field in stored)))
        return StoredSample(key, tar, alike, named[META_EXTENSION], [stored[field] for field in alike.fields])

    def sample(self, position: int) -> tuple[dict[str, Any], dict[Field, memoryview]]:
        """Return a sample's JSON and its encoded members, which are views of the mapped file."""
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
        requested = [*named] if fields is None else [*fields]
        if unknown := [name for name in requested if name not in named]:
            where = f"{self.folder}: {self.key(position)}"
            raise BadShard("no such field", where=where, met=", ".join(unknown), wanted=", ".join(named))
        arrays = {name: decode_field(named[name], members[named[name]], self.recipe, objects) for name in requested}
        return {"__key__": self.key(position), "meta": meta, **arrays}

    def meta(self, position: int) -> dict[str, Any]:
        """Return the JSON of sample `position`; `docs/FORMAT.md` lists its keys."""
        return self.open(position).meta

    def __iter__(self) -> Iterator[dict[str, Array | Any]]:
        return map(self.read, range(len(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the folder's name: the process that unpickles it opens the set itself."""
        return type(self), (self.folder, self.check)


def _check_crc32(checksum: int, expected: int, tar: MappedTar, key: str) -> None:
    if checksum != expected:
        raise BadShard(
            "CRC-32 of the sample",
            where=f"{tar.path}: {key}",
            met=str(checksum),
            wanted=str(expected),
            do=copy_changed(),
        )
