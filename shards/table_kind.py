"""A kind of table that is made of the samples of a set, and what its rows are made of."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shards import codec
from shards.codec import Bool, PackedMasks, UInt8
from shards.errors import BadShard
from shards.format import LOSSY, Codec, Field
from shards.manifest import Manifest
from shards.meta import check_meta
from shards.reader import ShardSet
from shards.sample import Sample

if TYPE_CHECKING:
    import pyarrow as pa

METADATA = b"sa2va-shards"
"""Key of a table's metadata. Its value is JSON: `version` and `manifest`, the checksum of the set's state."""
VERSION = 1
_MASKS = 64  # decoded at a time: 8 MiB of bits
_COUNTED = 8  # masks whose bits are counted at a time: what is in between stays in the processor's L2 cache
Row = tuple[Any, ...]
"""The values of a row, in the order of the columns."""


def arrow_schema(columns: Mapping[str, str]) -> pa.Schema:
    """Return the schema of columns whose types are given by name, such as "int32" or "list<double>"."""
    import pyarrow as pa

    types = {"string": pa.string(), "float": pa.float32(), "double": pa.float64()}
    types |= {"int32": pa.int32(), "int64": pa.int64(), "uint64": pa.uint64()}
    types |= {f"list<{name}>": pa.list_(kind) for name, kind in types.items()}
    return pa.schema([(name, types[kind]) for name, kind in columns.items()])


class SampleContent(ABC):
    """The material of rows: a sample's JSON, masks and pictures. Each is only decoded where it is asked for.

    Args:
        key: of the sample.
        position: of the sample in the set, from 0; while a set is written, in its shard.
        meta: the sample's JSON, as a reader parses it.
    """

    def __init__(self, key: str, position: int, meta: dict[str, Any]) -> None:
        self.key = key
        self.position = position
        self.meta = meta

    @abstractmethod
    def pictures(self) -> Iterator[UInt8]:
        """Yield (3, 448, 448) uint8 RGB for each frame, before normalisation, as a reader decodes it."""

    @abstractmethod
    def _prompts(self, frame: int) -> Bool:
        """Return the prompt cells of a frame, counted from 0, of a sample with N objects: (N, 16, 16)."""

    @abstractmethod
    def _bits(self, frame: int) -> Iterator[UInt8]:
        """Yield the masks of a frame in order, some objects at a time: (n, S, S / 8) uint8, eight pixels per byte."""

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self.meta["frames"]), len(self.meta["objects"])

    @cached_property
    def areas(self) -> NDArray[np.float64]:
        """Share of the mask that is set, 0 to 1, for each frame and object: (frames, objects)."""
        counts = np.empty(self._shape, np.uint32)
        pixels = 1
        for frame in range(len(counts) if counts.size else 0):
            pixels = self._count(frame, counts[frame])
        return counts / pixels

    def _count(self, frame: int, counts: NDArray[np.uint32]) -> int:
        """Put the number of pixels that are set in each mask of a frame into `counts`; return that of all of a mask."""
        first = 0
        pixels = 1
        for bits in self._bits(frame):
            pixels = 8 * bits[0].size
            words = bits.reshape(len(bits), -1).view(np.uint64)
            for begin in range(0, len(words), _COUNTED):
                some = np.bitwise_count(words[begin : begin + _COUNTED])
                np.sum(some, axis=1, dtype=np.uint32, out=counts[first : first + len(some)])
                first += len(some)
        return pixels

    @cached_property
    def cells(self) -> NDArray[np.int64]:
        """Number of prompt cells for each frame and object: (frames, objects)."""
        cells = np.empty(self._shape, np.int64)
        for frame in range(len(cells) if cells.size else 0):
            cells[frame] = np.count_nonzero(self._prompts(frame), axis=(1, 2))
        return cells


class StoredContent(SampleContent):
    """Content of a sample of a set, decoded from its tar.

    Args:
        position: of the sample in `shards`.

    Raises:
        BadShard: the JSON breaks the format. Its methods raise it where something cannot be decoded.
    """

    def __init__(self, shards: ShardSet, position: int) -> None:
        meta, self._members = shards.sample(position)
        check_meta(meta)
        super().__init__(shards.key(position), position, meta)
        self._recipe = shards.recipe

    def _member(self, name: str, frame: int) -> memoryview:
        return self._members[Field(name, None if len(self.meta["frames"]) == 1 else frame + 1)]  # type: ignore[arg-type]

    def _check_count(self, what: str, count: int) -> None:
        if count != (objects := len(self.meta["objects"])):
            raise BadShard(f"number of {what}", met=str(count), wanted=f"{objects}, as in the JSON")

    def pictures(self) -> Iterator[UInt8]:
        for frame in range(len(self.meta["frames"])):
            yield codec.decode_picture(self._member("pixel_values", frame), self._recipe.vision_size)

    def _prompts(self, frame: int) -> Bool:
        prompts = codec.decode_prompts(self._member("prompt_masks", frame), self._recipe.grid)
        self._check_count("prompts", len(prompts))
        return prompts

    def _bits(self, frame: int) -> Iterator[UInt8]:
        masks = self._member("masks", frame)
        self._check_count("masks", count := codec.count_masks(masks))
        for first in range(0, count, _MASKS):
            some = range(first, min(first + _MASKS, count))
            yield codec.decode_masks(masks, self._recipe.sam_size, some, packed=True)


class WrittenContent(SampleContent):
    """Content of a sample that is being written, as it is in memory.

    Args:
        members: as `shards.archive.encode_sample` returns them.
        pictures: codec of the pictures. What a lossy one keeps is decoded again.
    """

    def __init__(self, sample: Sample, position: int, members: Sequence[tuple[str, bytes]], pictures: Codec) -> None:
        super().__init__(sample.key, position, json.loads(members[0][1]))  # lists, where a source gives tuples
        self._sample = sample
        self._members = members
        self._lossy = pictures in LOSSY

    def pictures(self) -> Iterator[UInt8]:
        for field, (_, data) in zip(self._sample.fields, self._members[1:], strict=True):
            if field.name == "pixel_values":
                exact = self._sample.frames[(field.frame or 1) - 1].pixel_values
                yield codec.decode_picture(data, exact.shape[1]) if self._lossy else exact

    def _prompts(self, frame: int) -> Bool:
        return self._sample.frames[frame].prompt_masks

    def _count(self, frame: int, counts: NDArray[np.uint32]) -> int:
        tensors = self._sample.frames[frame]
        if tensors.mask_pixels is None:
            return super()._count(frame, counts)
        counts[:] = tensors.mask_pixels
        return int(np.prod(tensors.masks.shape[1:]))

    def _bits(self, frame: int) -> Iterator[UInt8]:
        masks = self._sample.frames[frame].masks
        for first in range(0, len(masks), _MASKS):
            some = slice(first, first + _MASKS)
            yield masks.bits[some] if isinstance(masks, PackedMasks) else np.packbits(masks[some], axis=-1)


@dataclass(frozen=True, eq=False)
class TableKind:
    """A table that follows from the samples of a set alone."""

    name: str
    """Name of its file."""
    what: str
    """Name of what a row describes, for messages: "objects"."""
    columns: dict[str, str]
    """Types of its columns by name, in order; `position` is one of them."""
    rows: Callable[[SampleContent], list[Row]]
    """Returns the rows of a sample. Raises `BadShard` where it cannot be decoded."""
    of_pictures: bool
    """Whether the rows depend on the pixels of the pictures, which a lossy codec changes."""
    count: Callable[[Manifest], int | None]
    """Returns the number of rows that a set has; None where its manifest does not say."""

    def schema(self, manifest: str) -> pa.Schema:
        """Return the table's schema; `manifest` is the checksum of the set's state."""
        about = {"version": VERSION, "manifest": manifest}
        return self.plain_schema.with_metadata({METADATA: json.dumps(about, sort_keys=True)})

    @cached_property
    def plain_schema(self) -> pa.Schema:
        """The schema without metadata."""
        return arrow_schema(self.columns)

    def batch(self, rows: Sequence[Row]) -> pa.RecordBatch:
        """Return rows as Arrow's columns."""
        import pyarrow as pa

        schema = self.plain_schema
        columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
        return pa.record_batch([pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)], schema)
