"""Encoding and decoding of the four formats: deterministic, decoded straight into the caller's buffer.

Pictures have one of four codecs. raw: npy. gradient: RGB turned into (R - G, G, B - G), each row minus the row above,
then each column minus the column to its left, all modulo 256, then one zstd frame of Huffman codes without matches.
zstd, which older sets have: the same without the step to the left, and with matches. jpeg, the only lossy one: see
`shards.lossy`. Masks: one zstd frame of packed bits per object, so that each is decoded alone. Prompts: npy.
`docs/FORMAT.md` explains the choice.
"""

from __future__ import annotations

import io
import math
import sys
import threading
from collections.abc import Sequence
from functools import lru_cache
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards import compiled
from shards.compiled import Job
from shards.errors import BadShard
from shards.format import MAX_OBJECTS, Codec
from shards.lossy import JPEG, decode_jpeg, encode_jpeg, is_jpeg

if sys.version_info >= (3, 14):
    from compression import zstd as zstd
else:
    from backports import zstd as zstd

Buffer = bytes | memoryview
UInt8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]

GRADIENT = b"\x52\x2a\x4d\x18" + bytes(4)
"""First bytes of a picture of the codec `gradient`: an empty skippable frame, which zstd's decoders pass over."""
ZSTD_VERSION = zstd.zstd_version
"""Version of the library that compresses. The bytes of what is written depend on it."""
_LEVEL = 1  # a higher level costs 4 to 7 times the time for 3 % of the size
_PICTURE_HASH = 8  # log2 of the table's size; finds as much in pictures as zstd's 14, in three quarters of the time
_WITH_MATCHES: dict[int, int] = {
    zstd.CompressionParameter.compression_level: _LEVEL,
    zstd.CompressionParameter.hash_log: _PICTURE_HASH,
}
_LITERALS = 1002
"""The parameter ZSTD_c_literalCompressionMode, which Python has no name for: 1 compresses literals in any case."""
_WITHOUT_MATCHES: dict[int, int] = {
    zstd.CompressionParameter.compression_level: _LEVEL,
    zstd.CompressionParameter.hash_log: zstd.CompressionParameter.hash_log.bounds()[0],
    zstd.CompressionParameter.target_length: zstd.CompressionParameter.target_length.bounds()[1],  # the longest steps
    _LITERALS: 1,
}
_REPETITIVE = 5
"""A picture of which Huffman codes take less than this part of its bytes is also tried with matches."""
_BANDS = 32  # of rows, in a mask
_BYTES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).view(np.uint64)[:, 0]
"""(256,) uint64: the eight bits of each byte value as eight bytes."""
_ROW_BLOCKS = 32  # both picture sizes are multiples of it
_FRAME_HEADER = 18  # bytes, the longest
_UINT32 = Struct("<I")
_NPY = b"\x93NUMPY"
BEGINS: dict[Codec, bytes] = {"gradient": GRADIENT, "zstd": b"\x28\xb5\x2f\xfd", "raw": _NPY, "jpeg": JPEG}
"""First bytes of a sound picture of each codec."""
_local = threading.local()


def _compress_mask(data: Any) -> bytes:
    # A compressor must not be shared by threads.
    if not hasattr(_local, "of_masks"):
        _local.of_masks = zstd.ZstdCompressor(_LEVEL)
    return bytes(_local.of_masks.compress(data, zstd.ZstdCompressor.FLUSH_FRAME))


def _decompress(data: Buffer, size: int) -> UInt8:
    """Decompress `data`, (size,) uint8; raises `BadShard` unless it is one zstd frame of exactly `size` bytes."""
    try:
        found = zstd.get_frame_info(data[:_FRAME_HEADER]).decompressed_size
        if found != size:  # checked before anything is decompressed
            met = f"{found} bytes" if found is not None else "a frame that does not say it"
            raise BadShard("zstd frame of another size", met=met, wanted=f"{size} bytes")
        decompressor = zstd.ZstdDecompressor()
        content = decompressor.decompress(data, size + 1)  # never more, whatever the frame holds
    except zstd.ZstdError as error:
        raise BadShard("not a zstd frame", met=str(error), wanted=f"one frame of {size} bytes") from None
    if not decompressor.eof or decompressor.unused_data:
        met = f"{len(decompressor.unused_data)} bytes after it" if decompressor.eof else "it is cut off"
        raise BadShard("not a zstd frame", met=met, wanted=f"one frame of {size} bytes")
    return np.frombuffer(content, np.uint8)


def encode_picture(picture: UInt8, pictures: Codec) -> bytes:
    """Encode (3, S, S) uint8 RGB with a codec."""
    if pictures == "raw":
        return b"".join((_npy_header("|u1", *picture.shape), np.ascontiguousarray(picture).data))
    if pictures == "jpeg":
        return encode_jpeg(picture)
    filtered = _filter(picture, pictures == "gradient").data
    if pictures == "zstd":
        return zstd.compress(filtered, options=_WITH_MATCHES)
    frame = zstd.compress(filtered, options=_WITHOUT_MATCHES)
    if _REPETITIVE * len(frame) < filtered.nbytes:
        frame = min(frame, zstd.compress(filtered, options=_WITH_MATCHES), key=len)
    return GRADIENT + frame


def _filter(picture: UInt8, is_gradient: bool) -> UInt8:
    """Return the differences of (3, S, S) uint8 RGB that zstd compresses, see above; of both directions or of rows."""
    filtered = np.empty(picture.shape, np.uint8)
    if compiled.filtered(picture, is_gradient, filtered):
        return filtered
    filtered[:, 0] = picture[:, 0]
    np.subtract(picture[:, 1:], picture[:, :-1], out=filtered[:, 1:])
    # All differences are linear modulo 256, so their order does not matter.
    filtered[0] -= filtered[1]
    filtered[2] -= filtered[1]
    if is_gradient:
        filtered[:, :, 1:] -= filtered[:, :, :-1].copy()
    return filtered


def is_raw(data: Buffer) -> bool:
    """Return whether the bytes of a picture are npy."""
    return bytes(data[: len(_NPY)]) == _NPY


def codec_of(data: Buffer) -> Codec:
    """Return the codec of a picture, from its first bytes; zstd where they match no other."""
    return next((name for name, begin in BEGINS.items() if bytes(data[: len(begin)]) == begin), "zstd")


def decode_picture(data: Buffer, size: int, out: UInt8 | None = None) -> UInt8:
    """Decode a picture of any codec to (3, size, size) uint8 RGB, into `out` (contiguous) if given.

    Raises:
        BadShard: the bytes are not a picture of this size.
    """
    if out is None:
        out = np.empty((3, size, size), np.uint8)
    if compiled.run([picture_job(data, size, out)]):
        return out
    if is_raw(data):
        out[...] = read_picture(data, size)
        return out
    if is_jpeg(data):
        return decode_jpeg(data, size, out)
    # A prefix sum over rows, in blocks. Each addition covers one row of all blocks: some sixty calls to numpy, not
    # `size`, each without the interpreter lock.
    split = 3, _ROW_BLOCKS, size // _ROW_BLOCKS, size
    if codec_of(data) == "gradient":
        stored = np.add.accumulate(_decompress(data[len(GRADIENT) :], out.size).reshape(split), -1, np.uint8)
    else:
        stored = _decompress(data, out.size).reshape(split)
    blocks = out.reshape(split)
    blocks[:, :, 0] = stored[:, :, 0]
    for row in range(1, split[2]):
        np.add(stored[:, :, row], blocks[:, :, row - 1], out=blocks[:, :, row])
    for block in range(1, _ROW_BLOCKS):
        blocks[:, block] += blocks[:, block - 1, -1:]
    out[0] += out[1]
    out[2] += out[1]
    return out


def read_picture(data: Buffer, size: int) -> UInt8:
    """Decode as `decode_picture`, but return a raw picture as a read-only view of `data`."""
    shape = 3, size, size
    return _npy_values(data, "|u1", shape).reshape(shape) if is_raw(data) else decode_picture(data, size)


def decode_normalised(
    data: Buffer, size: int, mean: Sequence[float], std: Sequence[float], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Decode a picture of any codec and normalise it: (3, size, size) float32, into `out` (contiguous) if given.

    Raises:
        BadShard: the bytes are not a picture of this size.
    """
    if out is None:
        out = np.empty((3, size, size), np.float32)
    if compiled.run([normalised_job(data, size, mean, std, out)]):
        return out
    return normalise(read_picture(data, size), mean, std, out)


def picture_job(data: Buffer, size: int, out: UInt8) -> Job:
    """Return the job of `decode_picture`."""
    return compiled.PICTURE, data, out, *picture_rest(size)


def picture_rest(size: int) -> tuple[int, bytes, bytes | None]:
    """Return what follows the data and the array in the job of `decode_picture`: it is the same for all pictures."""
    return size, _npy_header("|u1", 3, size, size), None


def normalised_job(
    data: Buffer, size: int, mean: Sequence[float], std: Sequence[float], out: NDArray[np.float32]
) -> Job:
    """Return the job of `decode_normalised`."""
    return compiled.PICTURE, data, out, *normalised_rest(size, mean, std)


def normalised_rest(size: int, mean: Sequence[float], std: Sequence[float]) -> tuple[int, bytes, bytes | None]:
    """Return what follows the data and the array in the job of `decode_normalised`: it is the same for all pictures."""
    return size, _npy_header("|u1", 3, size, size), _table(tuple(mean), tuple(std))


@lru_cache
def _table(mean: tuple[float, ...], std: tuple[float, ...]) -> bytes:
    """The normalised values of 0..255 in each of three channels: (3, 256) float32."""
    values = np.arange(256, dtype=np.uint8)
    return normalise(np.stack([values] * 3)[:, None], mean, std).tobytes()


def normalise(
    picture: UInt8, mean: Sequence[float], std: Sequence[float], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return (v / 255 - mean) / std for (3, S, S) uint8, in float32.

    This order of operations is bit-equal to torchvision's ToTensor and Normalize; one folded multiplication is not.
    """
    if out is None:
        out = np.empty(picture.shape, np.float32)
    np.divide(picture, np.float32(255), out=out, dtype=np.float32)
    np.subtract(out, np.asarray(mean, np.float32)[:, None, None], out=out)
    np.divide(out, np.asarray(std, np.float32)[:, None, None], out=out)
    return out


class PackedMasks:
    """Masks (N, S, S) bool, eight pixels per byte. Numpy takes them for the whole array; `len` and indices are its.

    Args:
        bits: (N, S, S // 8) uint8, the first pixel of a byte in its highest bit.
    """

    def __init__(self, bits: UInt8) -> None:
        self.bits = bits
        self.shape = (*bits.shape[:2], 8 * bits.shape[2])
        self.dtype = np.dtype(np.bool_)

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, index: Any) -> Bool:
        return np.unpackbits(self.bits[index], axis=-1).view(np.bool_)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or np.bool_, copy=False)


def encode_masks(masks: Bool | PackedMasks) -> bytes:
    """Encode (N, S, S) bool as N and the N end offsets of the frames (uint32, little endian), then the frames."""
    packed = masks.bits if isinstance(masks, PackedMasks) else map(np.packbits, masks)
    frames = [*map(_compress_mask, packed)]
    ends = np.cumsum([len(frame) for frame in frames])
    return np.array([len(frames), *ends], "<u4").tobytes() + b"".join(frames)


def count_masks(data: Buffer) -> int:
    """Return the number of objects of an encoded `masks` member; raises `BadShard`."""
    most = len(data) // 4 - 1
    count: int = _UINT32.unpack_from(data)[0] if most >= 0 else -1
    if not (0 <= count <= most and count <= MAX_OBJECTS):
        raise BadShard("impossible number of masks", met=str(count), wanted=f"0 to {max(0, most)}")
    return count


def decode_masks(
    data: Buffer, size: int, objects: Sequence[int] | None = None, out: NDArray[Any] | None = None, packed: bool = False
) -> NDArray[Any]:
    """Decode the masks of `objects` (positions; all by default) to (len(objects), size, size) bool.

    Args:
        out: contiguous array for the result.
        packed: return (len(objects), size, size // 8) uint8, eight pixels per byte, the first in the highest bit.

    Raises:
        BadShard: the bytes are not masks of this size, or an object does not exist.
    """
    count = count_masks(data)
    begin = 4 + 4 * count
    length = len(data) - begin
    last = _end(data, count - 1)
    if last != length:
        raise BadShard("offsets of masks do not fit", met=f"the last is {last}", wanted=f"rising to {length}")
    objects = range(count) if objects is None else objects
    if out is None:
        shape = len(objects), size, size // 8 if packed else size
        out = np.empty(shape, np.uint8 if packed else np.bool_)
    if compiled.run([mask_job(data, position, out[row], packed) for row, position in enumerate(objects)]):
        return out
    for row, position in enumerate(objects):
        if not 0 <= position < count:
            raise BadShard("no such object", met=str(position), wanted=f"0 to {count - 1}")
        start = _end(data, position - 1)
        end = _end(data, position)
        if not start <= end <= length:
            raise BadShard("offsets of masks do not fit", met=f"{start}, {end}", wanted=f"rising to {length}")
        bits = _decompress(data[begin + start : begin + end], size * size // 8)
        if packed:
            out[row] = bits.reshape(out.shape[1:])
        else:
            _unpack(bits, out[row])
    return out


def mask_job(data: Buffer, position: int, out: NDArray[Any], packed: bool, united: bool = False) -> Job:
    """Return the job that decodes the mask of one object.

    Args:
        out: (size, size) bool, or, with `packed`, (size, size // 8) uint8.
        united: put the union with what is in `out` there.
    """
    kinds = (
        (compiled.MASK, compiled.MASK_UNION),
        (compiled.PACKED, compiled.PACKED_UNION),
    )
    return kinds[packed][united], data, out, position, None, None


def _end(data: Buffer, position: int) -> int:
    """Return the offset at which the frame of the mask at `position` ends, from the start of the first frame."""
    return int.from_bytes(data[4 + 4 * position : 8 + 4 * position], "little") if position >= 0 else 0


def _unpack(packed: UInt8, out: Bool) -> None:
    """Unpack bits into `out` (S, S); outside the bands between the first and the last bit, zeros are written.

    Most objects are small, and writing zeros takes half the time of unpacking.
    """
    bands = packed.reshape(_BANDS, -1)
    flat = out.reshape(_BANDS, -1)
    occupied = np.flatnonzero(bands.max(axis=1))
    first, end = (int(occupied[0]), int(occupied[-1]) + 1) if occupied.size else (0, 0)
    flat[:first] = flat[end:] = False
    # np.take writes into `out`; unpackbits would make an array to be copied.
    np.take(_BYTES, bands[first:end], out=flat[first:end].view(np.uint64), mode="clip")


@lru_cache(maxsize=256)
def _npy_header(descr: str, *shape: int) -> bytes:
    """Return the header that numpy writes for such an array in C order, npy version 1.0."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _npy_values(data: Buffer, descr: str, shape: tuple[int, ...]) -> UInt8:
    """Return the bytes after the header; raises `BadShard` unless `data` is the npy of such an array."""
    return np.frombuffer(data, np.uint8, offset=_npy_begin(data, descr, shape))


def _npy_begin(data: Buffer, descr: str, shape: tuple[int, ...]) -> int:
    """Return the offset of the values; raises `BadShard` unless `data` is the npy of such an array."""
    # The header is compared, not parsed: numpy parses it through `ast`, which fails in threads (CPython issue 106905).
    header = _npy_header(descr, *shape)
    if len(data) != len(header) + math.prod(shape) or bytes(data[: len(header)]) != header:
        found = f"{len(data)} bytes, {bytes(data[:80])!r}"
        raise BadShard("not the npy of this field", met=found, wanted=f"npy 1.0, {descr} {shape}")
    return len(header)


def encode_prompts(prompts: Bool) -> bytes:
    """Encode (N, G, G) bool as npy, version 1.0."""
    return _npy_header("|b1", *prompts.shape) + prompts.tobytes()


@lru_cache(maxsize=1024)
def header_of_prompts(length: int, grid: int) -> bytes:
    """Return the header that encoded prompts of this length must have; what precedes the cells of the first object."""
    return _npy_header("|b1", _count_prompts(length, grid), grid, grid)


def _count_prompts(length: int, grid: int) -> int:
    """Return the number of objects that encoded prompts of this length have."""
    # Headers are padded to 64 bytes, and a count's digits do not reach the next 64: all are equally long.
    count = (length - len(_npy_header("|b1", 1, grid, grid))) // (grid * grid)
    return min(max(count, 0), MAX_OBJECTS)


def decode_prompts(data: Buffer, grid: int, objects: Sequence[int] | None = None, out: Bool | None = None) -> Bool:
    """Decode the cells of `objects` (positions; all by default) to (len(objects), grid, grid) bool.

    Raises:
        BadShard: the bytes are not prompts, or an object does not exist.
    """
    count = _count_prompts(len(data), grid)
    begin = _npy_begin(data, "|b1", (count, grid, grid))
    area = grid * grid
    if objects and not 0 <= min(objects) <= max(objects) < count:
        raise BadShard("no such object", met=str(list(objects)), wanted=f"0 to {count - 1}")
    if objects is None:
        cells = np.frombuffer(data, np.uint8, offset=begin)
        binary = not cells.size or cells.max() <= 1
    else:  # numpy's indexing would take longer than these few cells
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
