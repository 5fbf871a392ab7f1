"""How each format is stored: deterministic, decoded straight into the caller's buffer.

Pictures are stored in one of three ways. jpeg, which alone is lossy: see `shards.lossy`. raw: npy. zstd: RGB turned
into (R - G, G, B - G), each row minus the row above (PNG's "Up" filter), all modulo 256, then one zstd frame. Masks:
one zstd frame of packed bits an object, so that one is decoded without the others. Prompts: npy. The choice among the
codecs that were measured is explained in `docs/FORMAT.md`.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from shards.errors import BadShard
from shards.format import MAX_OBJECTS, Codec
from shards.lossy import decode_jpeg, is_jpeg

Buffer = bytes | memoryview
UInt8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]

_LEVEL = 1  # a higher level costs 4 to 7 times the time for 3 % of the size
_PICTURE_SIZE = 3 * 1024 * 1024  # bytes, for which zstd chooses the other parameters
_PICTURE_HASH = 8  # as small a table finds as much in pictures as zstd's own of 2 ** 14, in three quarters of the time
_BANDS = 32  # of a mask
_BYTES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).view(np.uint64)[:, 0]
"""The eight bits of each byte, a byte each."""
_ROW_BLOCKS = 32  # both picture sizes are multiples of it
_NPY = b"\x93NUMPY"
_local = threading.local()


def _decompressor() -> zstandard.ZstdDecompressor:
    # A (de)compressor must not be shared by threads.
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    return _local.decompressor


def _compress_mask(data: Any) -> bytes:
    if not hasattr(_local, "of_masks"):
        _local.of_masks = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False, write_content_size=True)
    return bytes(_local.of_masks.compress(data))


def _compress_picture(data: UInt8) -> bytes:
    if not hasattr(_local, "of_pictures"):
        chosen = zstandard.ZstdCompressionParameters.from_level(
            _LEVEL, source_size=_PICTURE_SIZE, hash_log=_PICTURE_HASH, write_checksum=False, write_content_size=True
        )
        _local.of_pictures = zstandard.ZstdCompressor(compression_params=chosen)
    return bytes(_local.of_pictures.compress(data))


def _decompress(data: Buffer, size: int) -> UInt8:
    """The `size` bytes that `data` holds; raises `BadShard` unless it is one frame of exactly that many."""
    try:
        met = zstandard.get_frame_parameters(data).content_size
        if met != size:  # checked before anything is decompressed
            raise BadShard("zstd frame of another size", met=f"{met} bytes", wanted=f"{size} bytes")
        return np.frombuffer(_decompressor().decompress(data, allow_extra_data=False), np.uint8)
    except zstandard.ZstdError as error:
        raise BadShard("not a zstd frame", met=str(error), wanted=f"one frame of {size} bytes") from None


def encode_raw_picture(picture: UInt8) -> bytes:
    """Encode (3, S, S) uint8 RGB as npy, version 1.0."""
    return _npy_header("|u1", *picture.shape) + picture.tobytes()


def is_raw(data: Buffer) -> bool:
    """Whether the bytes of a picture are npy."""
    return bytes(data[: len(_NPY)]) == _NPY


def codec_of(data: Buffer) -> Codec:
    """What the first bytes of a picture say; zstd where they say nothing else."""
    return "raw" if is_raw(data) else "jpeg" if is_jpeg(data) else "zstd"


def encode_picture(picture: UInt8) -> bytes:
    """Encode (3, S, S) uint8 RGB with zstd."""
    filtered = np.empty_like(picture)
    filtered[:, 0] = picture[:, 0]
    np.subtract(picture[:, 1:], picture[:, :-1], out=filtered[:, 1:])
    # A difference of differences: both are linear modulo 256, so their order does not matter.
    filtered[0] -= filtered[1]
    filtered[2] -= filtered[1]
    return _compress_picture(filtered)


def decode_picture(data: Buffer, size: int, out: UInt8 | None = None) -> UInt8:
    """Decode to (3, size, size) uint8 RGB, into `out` (contiguous) where it is given; the bytes tell which codec."""
    if out is None:
        out = np.empty((3, size, size), np.uint8)
    if is_raw(data):
        out[...] = read_picture(data, size)
        return out
    if is_jpeg(data):
        return decode_jpeg(data, size, out)
    # The prefix sum over rows, in blocks: each addition covers one row of all blocks at once, so that some sixty calls
    # to numpy do the work of `size`, and the interpreter lock is free during each.
    split = 3, _ROW_BLOCKS, size // _ROW_BLOCKS, size
    stored, blocks = _decompress(data, out.size).reshape(split), out.reshape(split)
    blocks[:, :, 0] = stored[:, :, 0]
    for row in range(1, split[2]):
        np.add(stored[:, :, row], blocks[:, :, row - 1], out=blocks[:, :, row])
    for block in range(1, _ROW_BLOCKS):
        blocks[:, block] += blocks[:, block - 1, -1:]
    out[0] += out[1]
    out[2] += out[1]
    return out


def read_picture(data: Buffer, size: int) -> UInt8:
    """As `decode_picture`, but a raw picture is not copied: a view of `data`, not to be written to."""
    shape = 3, size, size
    return _npy_values(data, "|u1", shape).reshape(shape) if is_raw(data) else decode_picture(data, size)


def normalise(
    picture: UInt8, mean: Sequence[float], std: Sequence[float], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """(v / 255 - mean) / std for (3, S, S) uint8, in float32.

    In this order of operations the result is bit-equal to torchvision's ToTensor + Normalize; folding the constants
    into one multiplication is not.
    """
    if out is None:
        out = np.empty(picture.shape, np.float32)
    np.divide(picture, np.float32(255), out=out, dtype=np.float32)
    np.subtract(out, np.asarray(mean, np.float32)[:, None, None], out=out)
    np.divide(out, np.asarray(std, np.float32)[:, None, None], out=out)
    return out


def encode_masks(masks: Bool) -> bytes:
    """Encode (N, S, S) bool: N, the N end offsets of the frames that follow (all uint32, little endian), the frames."""
    frames = [_compress_mask(np.packbits(mask)) for mask in masks]
    ends = np.cumsum([len(frame) for frame in frames])
    return np.array([len(frames), *ends], "<u4").tobytes() + b"".join(frames)


def count_masks(data: Buffer) -> int:
    """How many objects an encoded `masks` member holds."""
    count = int.from_bytes(data[:4], "little") if len(data) >= 4 else -1
    if not 0 <= count <= min(MAX_OBJECTS, len(data) // 4 - 1):
        raise BadShard("impossible number of masks", met=str(count), wanted=f"0 to {max(0, len(data) // 4 - 1)}")
    return count


def decode_masks(
    data: Buffer, size: int, objects: Sequence[int] | None = None, out: NDArray[Any] | None = None, packed: bool = False
) -> NDArray[Any]:
    """Decode the masks of `objects` (positions; all by default) to (len(objects), size, size) bool.

    Args:
        out: a contiguous array that gets the result.
        packed: to (len(objects), size, size // 8) uint8 instead, eight pixels a byte, the first in the highest bit.
    """
    count = count_masks(data)
    begin, length = 4 + 4 * count, len(data) - 4 - 4 * count
    last = _end(data, count - 1)
    if last != length:
        raise BadShard("offsets of masks do not fit", met=f"the last is {last}", wanted=f"rising to {length}")
    objects = range(count) if objects is None else objects
    if out is None:
        shape = len(objects), size, size // 8 if packed else size
        out = np.empty(shape, np.uint8 if packed else np.bool_)
    for row, position in enumerate(objects):
        if not 0 <= position < count:
            raise BadShard("no such object", met=str(position), wanted=f"0 to {count - 1}")
        start, end = _end(data, position - 1), _end(data, position)
        if not start <= end <= length:
            raise BadShard("offsets of masks do not fit", met=f"{start}, {end}", wanted=f"rising to {length}")
        bits = _decompress(data[begin + start : begin + end], size * size // 8)
        if packed:
            out[row] = bits.reshape(out.shape[1:])
        else:
            _unpack(bits, out[row])
    return out


def _end(data: Buffer, position: int) -> int:
    """Where the frame of the mask at `position` ends, from the first one's beginning on."""
    return int.from_bytes(data[4 + 4 * position : 8 + 4 * position], "little") if position >= 0 else 0


def _unpack(packed: UInt8, out: Bool) -> None:
    """Set `out` (S, S) to the bits of `packed`: zero everywhere but between the first and the last band with a bit.

    Most objects are small, and to write zeros takes half the time of unpacking them.
    """
    bands, flat = packed.reshape(_BANDS, -1), out.reshape(_BANDS, -1)
    full = np.flatnonzero(bands.max(axis=1))
    first, end = (int(full[0]), int(full[-1]) + 1) if full.size else (0, 0)
    flat[:first] = flat[end:] = False
    # np.take converts its indices; unpackbits makes an array that is copied, and there is one pass fewer.
    np.take(_BYTES, bands[first:end], out=flat[first:end].view(np.uint64), mode="clip")


@lru_cache(maxsize=256)
def _npy_header(descr: str, *shape: int) -> bytes:
    """The header that numpy writes for such an array in C order, npy version 1.0."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _npy_values(data: Buffer, descr: str, shape: tuple[int, ...]) -> UInt8:
    """The bytes after the header; raises `BadShard` unless `data` is the npy of such an array."""
    return np.frombuffer(data, np.uint8, offset=_npy_begin(data, descr, shape))


def _npy_begin(data: Buffer, descr: str, shape: tuple[int, ...]) -> int:
    """Where the values begin; raises `BadShard` unless `data` is the npy of such an array."""
    # The header is compared, not parsed: numpy parses it through `ast`, which fails in threads (CPython issue 106905).
    header = _npy_header(descr, *shape)
    if len(data) != len(header) + math.prod(shape) or bytes(data[: len(header)]) != header:
        met = f"{len(data)} bytes, {bytes(data[:80])!r}"
        raise BadShard("not the npy of this field", met=met, wanted=f"npy 1.0, {descr} {shape}")
    return len(header)


def encode_prompts(prompts: Bool) -> bytes:
    """Encode (N, G, G) bool as npy, version 1.0."""
    return _npy_header("|b1", *prompts.shape) + prompts.tobytes()


def decode_prompts(data: Buffer, grid: int, objects: Sequence[int] | None = None, out: Bool | None = None) -> Bool:
    """Decode the cells of `objects` (positions; all by default) to (len(objects), grid, grid) bool."""
    # Headers are padded to 64 bytes, and a count's digits do not reach the next 64: all are equally long.
    count = (len(data) - len(_npy_header("|b1", 1, grid, grid))) // (grid * grid)
    shape = min(max(count, 0), MAX_OBJECTS), grid, grid
    begin, area = _npy_begin(data, "|b1", shape), grid * grid
    if objects and not 0 <= min(objects) <= max(objects) < count:
        raise BadShard("no such object", met=str(list(objects)), wanted=f"0 to {count - 1}")
    if objects is None:
        cells = np.frombuffer(data, np.uint8, offset=begin)
        binary = not cells.size or cells.max() <= 1
    else:  # few as they are, numpy's indexing costs more than the cells
        places = [begin + area * n for n in objects]
        cells = np.frombuffer(chosen := b"".join([data[at : at + area] for at in places]), np.uint8)
        binary = not chosen.strip(b"\0\1")
    if not binary:
        raise BadShard("prompt masks are not binary", met=str(int(cells.max())), wanted="0 or 1")
    prompts = cells.view(np.bool_).reshape(-1, grid, grid)
    if out is None:
        return prompts.copy()
    out[...] = prompts
    return out
