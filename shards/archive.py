"""Tars of samples: written deterministically, read in place.

Plain ustar without times or owners, in WebDataset's conventions. A sample's members are adjacent, its JSON first.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shards import codec, compiled
from shards.checksum import crc32
from shards.errors import BadShard
from shards.format import DEFAULT_CODEC, KEY, LOSSY, META_EXTENSION, Codec, FieldName
from shards.groups import groups_of
from shards.lossy import psnr
from shards.meta import check_meta, pack_meta
from shards.regular_file import open_regular
from shards.sample import FrameTensors, Sample, letters_of, usable_objects

BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * BLOCK)
_BLANK = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)
_BLANK_SUM = sum(_BLANK[:148] + _BLANK[156:] + b" " * 8) - sum(_BLANK[124:135])


@dataclass(frozen=True, slots=True)  # there are millions of them
class Entry:
    """Position and counts of one sample in a tar: its row of the index."""

    key: str
    offset: int
    """Byte in the tar at which the header of its first member begins."""
    size: int
    """Bytes from there to the end of the padding of its last member."""
    crc32: int
    """CRC-32 of these bytes."""
    texts: int
    """Objects with a usable text, and a prompt cell in at least one frame."""
    regions: int
    """Objects with a prompt cell in at least one frame."""
    psnr: Sequence[float] = ()
    """PSNR in dB of each picture; () in a lossless set."""
    groups: Sequence[int] = (0, 0, 0)
    """`shards.groups.Groups`; 0 for unknown, as older releases recorded them."""
    frames: int | None = None
    """Number of frames; None for unknown, as older releases recorded it."""
    letters: int | None = None
    """Characters of all texts, see `shards.sample.letters_of`; None for unknown."""


def _encode(frame: FrameTensors, name: FieldName, pictures: Codec) -> bytes:
    value = getattr(frame, name)
    if name == "masks":
        return codec.encode_masks(value)
    if name == "prompt_masks":
        return codec.encode_prompts(value)
    return codec.encode_picture(value, pictures)


def encode_sample(sample: Sample, pictures: Codec = DEFAULT_CODEC) -> list[tuple[str, bytes]]:
    """Return the members of a sample, (name, bytes), in the tar's order.

    With a lossy codec the JSON gets `psnr`: each picture is decoded again and compared.

    Args:
        pictures: codec of the pictures.

    Raises:
        BadShard: a reader would refuse the JSON, or frames lack pictures.
    """
    check_meta(sample.meta)
    if not KEY.fullmatch(sample.key):
        raise ValueError(f"not a key: {sample.key!r}")
    fields = sample.fields
    frames = [sample.frames[(field.frame or 1) - 1] for field in fields]
    blobs = [_encode(frame, field.name, pictures) for frame, field in zip(frames, fields, strict=True)]
    checksums = {str(field): crc32(blob) for field, blob in zip(fields, blobs, strict=True)}
    added: dict[str, dict[str, Any]] = {"crc32": checksums}
    if pictures in LOSSY and fields:
        exact = [getattr(frame, field.name) for frame, field in zip(frames, fields, strict=True)]
        added["psnr"] = {
            str(field): psnr(codec.decode_picture(blob, value.shape[1]), value)
            for field, value, blob in zip(fields, exact, blobs, strict=True)
            if field.is_picture
        }
    is_checked = "psnr" not in added  # checksums break no rule
    members = [(f"{sample.key}.{META_EXTENSION}", pack_meta({**sample.meta, **added}, is_checked))]
    members += [(f"{sample.key}.{f}.{f.extension(pictures)}", blob) for f, blob in zip(fields, blobs, strict=True)]
    return members


class ShardWriter:
    """Writes samples into an open binary file; `close` ends the tar.

    Args:
        pictures: codec of the pictures.
    """

    def __init__(self, file: BinaryIO, pictures: Codec = DEFAULT_CODEC) -> None:
        self._file = file
        self._pictures = pictures
        self._sha256 = hashlib.sha256()
        self.size = 0
        self.entries: list[Entry] = []

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.size += len(data)

    def write(self, sample: Sample) -> None:
        """Encode and write a sample; raises `BadShard` as `encode_sample` does."""
        self.put(sample, encode_sample(sample, self._pictures))

    def put(self, sample: Sample, members: Sequence[tuple[str, bytes]]) -> None:
        """Write an encoded sample; `members` as `encode_sample` returns them."""
        offset = self.size
        checksum = 0
        for name, blob in members:
            for data in (plain_header(name.encode("ascii"), len(blob)), blob, bytes(-len(blob) % BLOCK)):
                checksum = crc32(data, checksum)
                self._put(data)
        texts, regions = usable_objects(sample.meta["objects"], [frame.prompt_masks for frame in sample.frames])
        meta = json.loads(members[0][1]) if self._pictures in LOSSY else sample.meta
        ratios = [*meta.get("psnr", {}).values()]
        counts = (len(sample.frames), letters_of(sample.meta))
        groups = groups_of(sample.key, str(sample.meta.get("path", "")), len(sample.frames))
        size = self.size - offset
        self.entries.append(Entry(sample.key, offset, size, checksum, texts, regions, ratios, groups, *counts))

    def copy(
        self, key: str, data: memoryview, meta: dict[str, Any], texts: int, regions: int, psnr: Sequence[float]
    ) -> None:
        """Copy the bytes of a sample in another tar, from the header of its first member on.

        Args:
            meta: its JSON.
            texts, regions, psnr: as in its `Entry`.
        """
        counts = (len(meta["frames"]), letters_of(meta))
        groups = groups_of(key, str(meta.get("path", "")), len(meta["frames"]))
        checksum = crc32(data)
        self.entries.append(Entry(key, self.size, len(data), checksum, texts, regions, psnr, groups, *counts))
        self._put(data)

    def close(self) -> str:
        """End the tar; return its SHA-256, hexadecimal."""
        self._put(_END)
        self._put(bytes(-self.size % tarfile.RECORDSIZE))
        return self._sha256.hexdigest()


def plain_header(name: bytes, size: int) -> bytes:
    """Return the header of a member as `ShardWriter` writes it: only name and size differ between members."""
    digits = b"%011o" % size
    checksum = b"%06o\0 " % (_BLANK_SUM + sum(name) + sum(digits))
    return name.ljust(100, b"\0") + _BLANK[100:124] + digits + _BLANK[135:148] + checksum + _BLANK[156:]


def _parse_header(header: bytes) -> tuple[str, int, bytes]:
    """Return (name, size, type) of a member; raises `ValueError` or `HeaderError` on a wrong checksum or number."""
    # Writing the header again and comparing checks all of it, in a tenth of the time of parsing.
    name = header[:100].rstrip(b"\0")
    digits = header[124:135]
    if digits.isdigit() and header == plain_header(name, int(digits, 8)):
        return name.decode("ascii"), int(digits, 8), tarfile.REGTYPE
    info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    return info.name, info.size, info.type


class MappedTar:
    """A tar mapped into memory. Members are views of the mapped file: nothing is copied before it is decoded.

    Args:
        opened: the file, if it is open already; it stays open.

    Raises:
        BadShard: the file cannot be read or mapped.
    """

    def __init__(self, path: Path, opened: BinaryIO | None = None) -> None:
        self.path = path
        try:
            with nullcontext(opened) if opened else open_regular(path) as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise BadShard("cannot be read", where=str(path), met=str(error), wanted="a tar") from None
        self.view = memoryview(self._map)

    def __len__(self) -> int:
        return len(self.view)

    def members(self, offset: int = 0, size: int | None = None) -> Iterator[tuple[int, str, memoryview]]:
        """Yield (offset of the header, name, bytes) of the members between `offset` and `offset + size`.

        Without `size`, it reads up to the end of the archive.

        Raises:
            BadShard: a member that is not a regular file with a plain name, or no end of archive.
        """
        end = len(self.view) if size is None else offset + size
        while offset < end:
            header = bytes(self.view[offset : offset + BLOCK])
            if not any(header):
                rest = self.view[offset:]
                if size is None and len(_END) <= len(rest) <= tarfile.RECORDSIZE + BLOCK and not any(rest):
                    return
                raise BadShard("end of archive in the wrong place", where=self._at(offset))
            try:
                name, length, kind = _parse_header(header)
            except (tarfile.HeaderError, UnicodeDecodeError, ValueError) as error:
                raise BadShard("broken tar header", where=self._at(offset), met=str(error)) from None
            start = offset + BLOCK
            stop = start + length
            if kind != tarfile.REGTYPE or "/" in name or "\\" in name or name.startswith("."):
                raise BadShard(
                    "not a plain file",
                    where=self._at(offset),
                    met=f"{name!r}, type {kind!r}",
                    wanted="KEY.FIELD.EXTENSION",
                )
            if length < 0 or stop > min(end, len(self.view)):
                raise BadShard(
                    "member leaves its place",
                    where=self._at(offset),
                    met=f"{length} bytes",
                    wanted=f"<= {min(end, len(self.view)) - start}",
                )
            yield offset, name, self.view[start:stop]
            offset = stop + -length % BLOCK
        if size is None:
            raise BadShard("no end of archive", where=str(self.path), wanted="two zero blocks", do="write it again")

    def exact_members(
        self, offset: int, size: int, key: bytes, rests: tuple[bytes, ...], begins: tuple[bytes, ...]
    ) -> list[memoryview] | None:
        """Return the members' bytes if exactly these members, in this order, fill `size` bytes from `offset` on.

        None otherwise. This is the fast path of `members`, which says what is there instead.

        Args:
            key: of the sample; no members are found of one that is not a `KEY`.
            rests: what follows the key in the members' names.
            begins: what each member begins with.
        """
        if compiled.is_compiled():
            return compiled.exact_members(self.view, offset, size, key, rests, begins, _BLANK)
        if not KEY.fullmatch(key.decode("ascii", "replace")):
            return None
        end = offset + size
        if end > len(self.view):
            return None
        found = []
        for rest, begin in zip(rests, begins, strict=True):
            start = offset + BLOCK
            header = bytes(self.view[offset : offset + BLOCK])
            try:
                length = int(header[124:135], 8)
            except ValueError:
                return None
            if not 0 <= length <= end - start or header != plain_header(key + rest, length):
                return None
            found.append(member := self.view[start : start + length])
            if bytes(member[: len(begin)]) != begin:
                return None
            offset = start + length + -length % BLOCK
        return found if offset == end else None

    def _at(self, offset: int) -> str:
        return f"{self.path} at byte {offset}"


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name into (key, rest); raises `BadShard`."""
    key, _, rest = name.partition(".")
    if not KEY.fullmatch(key) or not rest:
        raise BadShard("member's name", met=name, wanted="KEY.FIELD.EXTENSION")
    return key, rest


def group_members(
    members: Iterator[tuple[int, str, memoryview]],
) -> Iterator[tuple[str, int, dict[str, memoryview]]]:
    """Group neighbouring members into samples: (key, offset, {rest of the name: bytes}). Raises `BadShard`."""
    key = ""
    first = 0
    group: dict[str, memoryview] = {}
    for offset, name, data in members:
        member_key, rest = split_name(name)
        if member_key != key:
            if group:
                yield key, first, group
            key = member_key
            first = offset
            group = {}
        if rest in group:
            raise BadShard("member stands twice", where=key, met=rest)
        group[rest] = data
    if group:
        yield key, first, group
