"""The files that describe a finished shard set: manifest, index of samples, ledger of what was left out."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shards.archive import Entry
from shards.checksum import file_sha256
from shards.errors import BadShard, UserError
from shards.format import (
    CODECS,
    FORMAT,
    INDEX,
    LEDGER,
    LOSSY,
    MANIFEST,
    READABLE,
    UNSTATED_CODEC,
    VERSION,
    VERSION_WITHOUT_OBJECTS,
    Codec,
)
from shards.groups import Groups
from shards.hidden import is_hidden
from shards.lossy import Psnr
from shards.program import command, copy_changed
from shards.recipe import Recipe
from shards.regular_file import check_regular, open_regular, read_regular
from shards.storage.protocols import is_url
from shards.strict_json import parse_json

MOST_MANIFEST = 256 << 20  # bytes, enough for a million shards
_MOST_HEADER = 4096  # bytes, of the index
_MOST_ROW = 256  # bytes: twice the columns there are now
_SHOWN_SETS = 5
_MOST_LINE = 1 << 20  # bytes, of the ledger
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)"
    rb"\{'descr': \[((?:\('\w{1,32}', '[|<>][SUuifb]\d{1,3}'\)(?:, )?){1,64})\], "
    rb"'fortran_order': False, 'shape': \((\d{1,15}),\), \} *\n",
    re.DOTALL,
)
_AGAIN = "copy it here again, or write the set again"
_OWN_CHECKSUM = "manifest_sha256"
_Record = TypeVar("_Record", "ShardInfo", "Manifest")
_COLUMNS: list[tuple[str, str]] = [
    *[("key", "|S64"), ("shard", "<u4"), ("offset", "<u8"), ("size", "<u8"), ("crc32", "<u4")],
    *[("texts", "<u4"), ("regions", "<u4")],
]
_GROUPED = [*_COLUMNS, *((name, "<u8") for name in Groups._fields)]
INDEX_DTYPE = np.dtype([*_GROUPED, ("frames", "|u1"), ("letters", "<u4")])
"""One row per sample, in the order of the set. `shard` is a position in the manifest's list, from 0."""
_KNOWN: list[Any] = INDEX_DTYPE.descr
_RELEASED = (len(_COLUMNS), len(_GROUPED), len(_KNOWN))
"""Numbers of columns that releases have written."""


@dataclass(frozen=True)
class ShardInfo:
    """One tar of a set."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class LedgerLine:
    """One raw input that did not become a sample."""

    path: str
    """Relative to the source's root."""
    reason: str
    """Short phrase, the same for all inputs with this fault."""
    detail: str
    """The value found and the value expected."""
    bad: bool
    """False if the input is sound and the recipe leaves it out."""


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json; `docs/FORMAT.md` describes each key."""

    source: str
    recipe: Recipe
    plan: str
    """Hash of everything that the set was made from: inputs with their sizes, recipe, options."""
    options: dict[str, Any]
    """Options of the source, which are needed to make the samples again."""
    inputs: int
    samples: int
    objects: int
    left_out: dict[str, int]
    """Number of inputs that did not become samples, by reason."""
    notes: dict[str, int]
    """Counts made while sharding: regions filled, objects dropped, grey pixels in masks, ..."""
    shards: tuple[ShardInfo, ...]
    index_sha256: str
    ledger_sha256: str
    codec: Codec = UNSTATED_CODEC
    """Codec of the pictures."""
    selection: str = ""
    """Which of the plan's samples the set holds; "" for all. Inputs, counts and ledger are those of the selection."""
    psnr: Psnr | None = None
    """PSNR of the pictures of a lossy set, in whatever codec they are stored now; None if they are bit-exact."""
    version: int = VERSION
    """Version of the format. A set of version 1 keeps its version: the names of its members depend on it."""

    def check_sample(self, frames: int, objects: bool) -> None:
        """Raise `BadShard` where a sample with `frames` frames, with objects or without, cannot stand in this set."""
        if not objects and self.version < VERSION_WITHOUT_OBJECTS:
            expected = f"objects, or version {VERSION_WITHOUT_OBJECTS}"
            raise BadShard("a sample without objects", met=f"format version {self.version}", wanted=expected)
        if frames and self.codec in LOSSY and self.psnr is None:
            raise _no_psnr(self.codec)

    @property
    def pictures(self) -> str:
        """The codec of the pictures and their loss, as text."""
        return f"{self.codec}, lossy: {self.psnr}" if self.psnr else self.codec

    def to_bytes(self) -> bytes:
        """Return the bytes of manifest.json."""
        body = {"format": FORMAT, "recipe_hash": self.recipe.digest, **asdict(self)}
        if self.codec == UNSTATED_CODEC:
            del body["codec"]
        if not self.selection:
            del body["selection"]
        if self.psnr is None:
            del body["psnr"]
        return pack_manifest(body)

    @property
    def checksum(self) -> str:
        """The checksum of the set's state: `manifest_sha256`, also of a set of version 1, which does not store it."""
        body = json.loads(self.to_bytes())
        body.pop(_OWN_CHECKSUM, None)
        return _own_checksum(body)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest in `folder`; raises `BadShard` where it is missing or breaks the format."""
        path = folder / MANIFEST
        do = f"finish the set with the same `{command('shard')}` command"
        try:
            if (size := path.stat().st_size) > MOST_MANIFEST:
                raise BadShard("not a manifest", where=str(path), met=f"{size} bytes", wanted=f"<= {MOST_MANIFEST}")
            return cls.parse(read_regular(path), path)
        except FileNotFoundError:
            if is_url(folder):
                do = f"copy the set here first; training and {command('evaluate')} read it at its URL"
                raise BadShard("only folders on this machine are read here", met=str(folder), do=do) from None
            if sets := [str(at.parent) for at in sorted(folder.glob(f"*/{MANIFEST}")) if not is_hidden(at.parent.name)]:
                more = ", ..." if len(sets) > _SHOWN_SETS else ""
                do = f"give one of the sets in it: {', '.join(sets[:_SHOWN_SETS])}{more}"
            raise BadShard("no manifest: not a finished shard set", where=str(path), do=do) from None
        except OSError as error:
            raise BadShard("not a manifest", where=str(path), met=str(error), do=do) from None

    @classmethod
    def parse(cls, data: bytes, path: str | Path) -> Manifest:
        """Parse a manifest; raises `BadShard` where it breaks the format. `path` is for messages."""
        try:
            body = parse_json(data)
        except ValueError as error:
            raise BadShard("not a manifest", where=str(path), met=str(error), do=_AGAIN) from None
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise BadShard("not a manifest of ours", where=str(path), wanted=f"format {FORMAT}")
        if (version := body.get("version")) not in READABLE:
            raise BadShard(
                "format version",
                where=str(path),
                met=str(version)[:60],
                wanted=" or ".join(map(str, READABLE)),
                do="use the release that wrote it, or write it again",
            )
        expected = body.pop(_OWN_CHECKSUM, None) if version != 1 else None
        if version != 1 and expected != (checksum := _own_checksum(body)):
            raise BadShard(
                "checksum of the manifest itself", where=str(path), met=checksum, wanted=str(expected), do=_AGAIN
            )
        del body["format"]
        recipe = Recipe.from_json(body.pop("recipe", None), where=str(path))
        digest = body.pop("recipe_hash", None)
        try:
            shards = tuple(_check_types(ShardInfo(**shard)) for shard in body.pop("shards"))
            psnr = Psnr.from_json(body.pop("psnr", None))
            manifest = _check_types(cls(recipe=recipe, shards=shards, psnr=psnr, **body))
        except (TypeError, KeyError) as error:
            raise BadShard("not a manifest of this version", where=str(path), met=str(error)) from None
        if manifest.codec not in CODECS:
            codecs = " or ".join(CODECS)
            raise BadShard("codec of the pictures", where=str(path), met=repr(manifest.codec), wanted=codecs)
        has_pictures = manifest.version < VERSION_WITHOUT_OBJECTS  # later ones may hold text alone
        if manifest.codec in LOSSY and manifest.psnr is None and manifest.samples and has_pictures:
            raise _no_psnr(manifest.codec).at(str(path))
        if digest != recipe.digest:
            raise BadShard("recipe and its hash differ", where=str(path), met=str(digest), wanted=recipe.digest)
        for name in (shard.name for shard in shards):
            if Path(name).name != name or not name.endswith(".tar"):
                raise BadShard("name of a shard", where=str(path), met=name, wanted="a tar in the same folder")
        return manifest


def _no_psnr(codec: Codec) -> BadShard:
    expected = "psnr: what was lost, measured when it was written"
    return BadShard("a lossy codec and no PSNR", met=codec, wanted=expected)


def pack_manifest(body: dict[str, Any]) -> bytes:
    """Return the bytes of manifest.json with these keys, and its own checksum from version 2 on."""
    body = {name: value for name, value in body.items() if name != _OWN_CHECKSUM}
    if body.get("version") != 1:
        body[_OWN_CHECKSUM] = _own_checksum(body)
    return (json.dumps(body, indent=1, sort_keys=True) + "\n").encode()


def _own_checksum(body: dict[str, Any]) -> str:
    """Return the SHA-256 of the manifest's other keys as canonical JSON: sorted, without spaces, ASCII."""
    return sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def _check_types(value: _Record) -> _Record:
    """Return the record; raise `TypeError` where the value of a field has another type, or a count is out of range."""
    for name, content in vars(value).items():
        kind = {"int": int, "str": str}.get(type(value).__annotations__[name], object)
        if name in ("options", "left_out", "notes"):
            kind = dict
        counts = (
            content.values()
            if name in ("left_out", "notes") and isinstance(content, dict)
            else [content]
            if kind is int
            else []
        )
        if not isinstance(content, kind) or any(type(count) is not int or not 0 <= count < 1 << 63 for count in counts):
            raise TypeError(f"{name}: {str(content)[:60]!r}")
    return value


def pack_index(entries: Iterable[Iterable[Entry]]) -> bytes:
    """Return the bytes of the index of a set; `entries[i]` are the samples of shard i.

    It has no columns `frames` and `letters` where an entry does not know them: an older release began the set.
    """
    unknown = 0

    def rows() -> Iterator[tuple[Any, ...]]:
        nonlocal unknown
        for i, shard in enumerate(entries):
            for e in shard:
                unknown += e.frames is None or e.letters is None
                counts = (e.frames or 0, e.letters or 0)
                yield (e.key.encode(), i, e.offset, e.size, e.crc32, e.texts, e.regions, *e.groups, *counts)

    index = np.fromiter(rows(), INDEX_DTYPE)
    if unknown:
        known = np.empty(len(index), _GROUPED)
        for name, _ in _GROUPED:
            known[name] = index[name]
        index = known
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, index, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def most_index_bytes(samples: int) -> int:
    """Return the largest size in bytes of an index of `samples` rows, with columns of later releases."""
    return _MOST_HEADER + samples * _MOST_ROW


def read_index(folder: Path, checksum: str | None = None) -> NDArray[Any]:
    """Map the index of the set in `folder`: (N,) rows that begin with the columns of `INDEX_DTYPE`.

    Sets of older releases lack `frames` and `letters`, and even older ones the columns of the groups.

    Args:
        checksum: expected SHA-256, compared before anything is used; None: not compared.

    Raises:
        BadShard: the index is missing, or breaks the format or the checksum.
    """
    path = folder / INDEX
    try:
        check_regular(path)
        if checksum is not None and (digest := file_sha256(path)) != checksum:
            raise BadShard("SHA-256 of the index", where=str(path), met=digest, wanted=checksum, do=copy_changed())
        with open_regular(path) as file:
            head = file.read(_MOST_HEADER)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise BadShard("not an index", where=str(path), met=str(error)) from None
    begin, dtype, rows = _parse_header(head, str(path))
    if size != begin + rows * dtype.itemsize:
        expected = f"{begin} and {rows} rows of {dtype.itemsize}"
        raise BadShard("size of the index", where=str(path), met=f"{size} bytes", wanted=expected, do=_AGAIN)
    return np.memmap(path, dtype, "r", begin, (rows,)) if rows else np.empty(0, dtype)


def _parse_header(head: bytes, where: str) -> tuple[int, np.dtype[Any], int]:
    """Return (bytes of the header, dtype of a row, number of rows) of an index; raises `BadShard`."""
    # numpy evaluates a header as Python code, so a damaged one fails in many ways or takes memory: it is matched here.
    match = _HEADER.match(head)
    pairs = re.findall(rb"\('(\w+)', '(\S+)'\)", match[2]) if match else []
    columns = [(name.decode(), kind.decode()) for name, kind in pairs]
    names = [name for name, _ in columns]
    order = any(
        columns[:count] == _KNOWN[:count] and not {*names} & {name for name, _ in _KNOWN[count:]} for count in _RELEASED
    )
    if match is None or not order or len({*names}) < len(names):
        found = ", ".join(names) or repr(head[:60])
        raise BadShard("not an index", where=where, met=found, wanted=", ".join(INDEX_DTYPE.names or ()), do=_AGAIN)
    try:
        dtype = np.dtype(columns)
    except TypeError as error:
        raise BadShard("not an index", where=where, met=str(error), do=_AGAIN) from None
    if len(match[0]) != 10 + int.from_bytes(match[1], "little") or dtype.itemsize > _MOST_ROW:
        raise BadShard(
            "header of the index",
            where=where,
            met=f"{len(match[0])} bytes, rows of {dtype.itemsize}",
            wanted=f"as long as it says, rows <= {_MOST_ROW}",
            do=_AGAIN,
        )
    return len(match[0]), dtype, int(match[3])


def positions_by_shard(index: NDArray[Any], shards: int) -> list[NDArray[np.int64]]:
    """Return for each shard the positions of its rows in the index. One sort does it: there are many of both."""
    shard_of = np.ascontiguousarray(index["shard"])
    order = np.argsort(shard_of, kind="stable")
    return [order[a:b] for a, b in pairwise(np.searchsorted(shard_of[order], np.arange(shards + 1)))]


def pack_ledger(lines: Iterable[LedgerLine]) -> bytes:
    """Return the bytes of ledger.jsonl."""
    text = "".join(json.dumps(asdict(line), ensure_ascii=False) + "\n" for line in lines)
    return text.encode("utf-8", "backslashreplace")  # names that are not UTF-8 become JSON's own escapes


def read_ledger(folder: Path) -> list[LedgerLine]:
    """Read the ledger of the set in `folder`; raises `UserError`."""
    path = folder / LEDGER
    lines = []
    try:
        with open_regular(path) as file:
            # Only a line feed ends a line: names may hold other line ends, such as U+2028.
            for number, line in enumerate(iter(lambda: file.readline(_MOST_LINE + 1), b""), 1):
                lines.append(_ledger_line(line, f"line {number}"))
    except (OSError, ValueError, TypeError) as error:
        raise UserError("not a ledger", where=str(path), met=str(error)) from None
    return lines


def read_ledger_at(path: Path, begin: int, most: int, reason: str | None = None) -> tuple[list[LedgerLine], int | None]:
    """Read at most `most` lines of a ledger, from byte `begin` on.

    Args:
        begin: where a line begins: 0, or what this function returned.
        reason: take lines of this reason alone.

    Returns:
        The lines, and the byte at which the next one begins; None where there is no more.

    Raises:
        UserError: there is no ledger, it is damaged, or no line begins there.
    """
    lines: list[LedgerLine] = []
    try:
        with open_regular(path) as file:
            file.seek(max(begin - 1, 0))
            if begin < 0 or (begin and file.read(1) != b"\n"):
                raise ValueError(f"no line begins at byte {begin}")
            while data := file.readline(_MOST_LINE + 1):
                line = _ledger_line(data, f"the line at byte {file.tell() - len(data)}")
                if reason is not None and line.reason != reason:
                    continue
                if len(lines) == most:
                    return lines, file.tell() - len(data)
                lines.append(line)
    except (OSError, ValueError, TypeError) as error:
        raise UserError("not a ledger", where=str(path), met=str(error)) from None
    return lines, None


def _ledger_line(data: bytes, place: str) -> LedgerLine:
    """Parse a line of the ledger; raises `ValueError` or `TypeError`."""
    if len(data) > _MOST_LINE:
        raise ValueError(f"{place} is longer than {_MOST_LINE} bytes")
    try:
        body = parse_json(data)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    if not isinstance(body, dict):
        raise ValueError(f"{place}: {str(body)[:60]}")
    line = LedgerLine(**body)
    for name, kind in (("path", str), ("reason", str), ("detail", str), ("bad", bool)):
        if not isinstance(getattr(line, name), kind):
            raise TypeError(f"{place}: {name} is {str(getattr(line, name))[:60]}")
    return line


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data`, hexadecimal."""
    return hashlib.sha256(data).hexdigest()
