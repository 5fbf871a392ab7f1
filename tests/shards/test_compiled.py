"""The compiled part of reading gives the bits and the errors of the Python way, and stays within its buffers."""

from __future__ import annotations

import ctypes
import tarfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import codec, compiled
from shards.archive import MappedTar
from shards.codec import zstd
from shards.errors import BadShard
from shards.format import CODECS, MAX_OBJECTS
from shards.same_region import centres, original_mask

pytestmark = pytest.mark.skipif(not compiled.is_compiled(), reason="not compiled here")

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def picture(side: int) -> np.ndarray:
    """Smooth, noisy and constant parts: (3, side, side) uint8."""
    rng = np.random.default_rng(side)
    made = np.cumsum(rng.integers(-2, 3, (3, side, side)), axis=2).astype(np.uint8)
    made[:, : side // 4] = rng.integers(0, 256, (3, side // 4, side))
    made[:, -side // 4 :] = 255
    return made


def masks() -> np.ndarray:
    """No pixel, all, one at each end, a box, and noise: (6, 1024, 1024) bool."""
    made = np.zeros((6, 1024, 1024), bool)
    made[1] = True
    made[2, 0, 0] = made[2, -1, -1] = True
    made[3, 200:431, 77:1001] = True
    made[4, 512] = np.random.default_rng(0).random(1024) < 0.5
    made[5] = np.random.default_rng(1).random((1024, 1024)) < 0.5
    return made


def outcome(decode: Callable[[], np.ndarray]) -> Any:
    """The array's shape, dtype and bytes, or the words of the error."""
    try:
        array = decode()
    except BadShard as error:
        return str(error)
    return array.shape, array.dtype.str, array.tobytes()


def both(decode: Callable[[], np.ndarray]) -> list[Any]:
    """The outcome of the compiled way and of Python alone."""
    compiled_way = outcome(decode)
    with compiled.python_alone():
        return [compiled_way, outcome(decode)]


def test_kinds_and_limits_are_those_of_the_c_code():
    names = ("PICTURE", "PACKED", "MASK", "PACKED_UNION", "MASK_UNION", "CELLS", "COPY")
    loops = compiled._compiled
    assert [getattr(loops, name) for name in names] == [getattr(compiled, name) for name in names] == [*range(7)]
    assert loops.MAX_OBJECTS == MAX_OBJECTS


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("side", [448, 1024])
def test_pictures_are_equal_bit_for_bit(name, side):
    encoded = codec.encode_picture(picture(side), name)
    ours, python = both(lambda: codec.decode_picture(memoryview(encoded), side))
    assert ours == python
    assert name == "jpeg" or ours[2] == picture(side).tobytes()
    ours, python = both(lambda: codec.decode_normalised(encoded, side, MEAN, STD))
    assert ours == python and ours[1] == "<f4"
    if name != "jpeg":  # independent of the codec's own arithmetic
        divided = picture(side).astype(np.float32) / np.float32(255)
        expected = (divided - np.float32(MEAN)[:, None, None]) / np.float32(STD)[:, None, None]
        assert ours[2] == expected.tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_masks_are_equal_bit_for_bit(packed):
    encoded = codec.encode_masks(masks())
    expected = np.packbits(masks(), axis=2) if packed else masks()
    for objects in (None, [3], [5, 0, 0, 2], []):
        ours, python = both(lambda o=objects: codec.decode_masks(encoded, 1024, o, packed=packed))
        chosen = expected if objects is None else expected[objects]
        assert ours == python == (chosen.shape, chosen.dtype.str, chosen.tobytes())


def test_all_jobs_of_a_batch_in_one_call():
    cells = np.random.default_rng(3).random((4, 16, 16)) < 0.5
    encoded = codec.encode_masks(masks())
    prompts = codec.encode_prompts(cells)
    outs = [
        np.ones((3, 448, 448), np.uint8),
        np.ones((1024, 1024), bool),
        np.ones((1024, 128), np.uint8),
        np.zeros((16, 16), bool),
        np.zeros((2, 5), np.uint8),
    ]
    jobs = [
        codec.picture_job(codec.encode_picture(picture(448), "gradient"), 448, outs[0]),
        codec.mask_job(encoded, 3, outs[1], packed=False),
        codec.mask_job(encoded, 4, outs[1], packed=False, united=True),
        codec.mask_job(encoded, 2, outs[2], packed=True),
        codec.mask_job(encoded, 3, outs[2], packed=True, united=True),
        (compiled.CELLS, prompts, outs[3], 3, codec.header_of_prompts(len(prompts), 16), None),
        (compiled.COPY, np.arange(10, dtype=np.uint8), outs[4], 0, None, None),
        codec.mask_job(encoded, 6, outs[1], packed=False),  # no such object
    ]
    assert compiled.left_undone(jobs) == [7] and not compiled.run(jobs) and compiled.run(jobs[:7])
    united = masks()[[3, 4, 2]]
    assert np.array_equal(outs[0], picture(448)) and np.array_equal(outs[1], united[0] | united[1])
    assert np.array_equal(outs[2], np.packbits(united[2] | united[0], axis=1))
    assert np.array_equal(outs[3], cells[3]) and outs[4].ravel().tolist() == [*range(10)]
    with compiled.python_alone():
        assert [*compiled.left_undone(jobs)] == [*range(8)] and not compiled.run(jobs)


GOOD = {
    "raw": (codec.encode_picture(picture(448), "raw"), lambda data: codec.decode_picture(data, 448)),
    "gradient": (codec.encode_picture(picture(448), "gradient"), lambda data: codec.decode_picture(data, 448)),
    "zstd": (codec.encode_picture(picture(448), "zstd"), lambda data: codec.decode_picture(data, 448)),
    "float32": (
        codec.encode_picture(picture(448), "gradient"),
        lambda data: codec.decode_normalised(data, 448, MEAN, STD),
    ),
    "masks": (codec.encode_masks(masks()[:4]), lambda data: codec.decode_masks(data, 1024, [0, 3])),
    "packed": (codec.encode_masks(masks()[:4]), lambda data: codec.decode_masks(data, 1024, packed=True)),
}


def versions_of_zstd_differ() -> bool:
    """Whether the compiled part's library of the system is of another version than Python's."""
    (major, minor, release) = zstd.zstd_version_info
    return ctypes.CDLL("libzstd.so.1").ZSTD_versionNumber() != 10_000 * major + 100 * minor + release


@pytest.mark.parametrize("kind", GOOD)
@settings(max_examples=40)
@given(data=st.data())
def test_damaged_members_give_the_errors_of_the_python_way(kind, data):
    good, decode = GOOD[kind]
    bad = bytearray(good)
    damage = data.draw(st.sampled_from(["cut", "garbage", "flip", "head", "longer", "twice"]))
    if damage == "cut":
        bad = bad[: data.draw(st.integers(0, len(good) - 1))]
    elif damage == "garbage":
        bad = bytearray(data.draw(st.binary(max_size=40)))
    elif damage == "longer":
        bad += data.draw(st.binary(min_size=1, max_size=9))
    elif damage == "twice":
        bad += good
    else:
        bit = data.draw(st.integers(0, 8 * (len(good) if damage == "flip" else 24) - 1))
        bad[bit // 8] ^= 1 << bit % 8
    ours, python = both(lambda: decode(bytes(bad)))
    # Of a damaged frame two versions of zstd may make different bits, or only one of them an error.
    if ours != python:
        assert damage in ("flip", "head") and kind != "raw"
        assert ours == outcome(lambda: decode(good)) or versions_of_zstd_differ()


FRAME = zstd.compress(bytes(range(256)) * 512, 1)
LIES: dict[str, bytes] = {
    "holds less than it says": b"\x28\xb5\x2f\xfd\xa0" + (1 << 17).to_bytes(4, "little") + b"\x02\x00\x00\x07",
    "holds more than it says": b"\x28\xb5\x2f\xfd\xa0" + (1 << 17).to_bytes(4, "little") + b"\x02\x00\x10\x07" * 2,
    "does not say": zstd.compress(bytes(1 << 17), options={zstd.CompressionParameter.content_size_flag: 0}),
    "two frames": zstd.compress(bytes(1 << 17)) + zstd.compress(b""),
    "a frame to be skipped before it": b"\x50\x2a\x4d\x18\x01\x00\x00\x00x" + FRAME,
    "a frame to be skipped after it": FRAME + b"\x50\x2a\x4d\x18\x01\x00\x00\x00x",
    "a terabyte": b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + FRAME[9:],
    "a dictionary": b"\x28\xb5\x2f\xfd\xa1\x07" + (1 << 17).to_bytes(4, "little") + b"\x02\x00\x10\x07",
    "a window of 256 MiB": b"\x28\xb5\x2f\xfd\x80\x90" + (1 << 17).to_bytes(4, "little") + b"\x03\x00\x10\x07",
    "nothing": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_frames_that_lie_are_refused_and_write_nothing_beyond_their_place(lie):
    frame = LIES[lie]
    member = np.array([1, len(frame)], "<u4").tobytes() + frame
    around = np.full((1 << 17) + 128, 7, np.uint8)
    out = around[64:-64].reshape(1, 1024, 128)
    ours, python = both(lambda: codec.decode_masks(member, 1024, [0], out, packed=True))
    assert isinstance(ours, str) and ours == python
    assert (around[:64] == 7).all() and (around[-64:] == 7).all()


def test_positions_may_be_numbers_of_numpy_and_of_any_size():
    member = codec.encode_masks(masks()[:4])
    for positions in ([*np.flatnonzero([1, 0, 0, 1])], np.array([0, 3]), [1 << 70], [-(1 << 70)]):
        ours, python = both(lambda positions=positions: codec.decode_masks(member, 1024, positions))
        assert ours == python and isinstance(ours, str) == (abs(positions[0]) > 3)
    tensor = np.ones((1, 1, 1024, 128), np.uint8)
    for number in (1 << 70, -(1 << 70)):
        row = 0, [number], None, [member], (0,)
        assert compiled.left_of_rows((part_of(compiled.PACKED, tensor),), [row]) == [(0, 0)] and (tensor == 1).all()


@pytest.mark.parametrize(("said", "objects"), [(MAX_OBJECTS, MAX_OBJECTS + 1), (4, 8), (8, 4)])
def test_prompts_whose_header_says_another_number_are_left_undone(said, objects):
    header, _, _ = codec.encode_prompts(np.zeros((said, 16, 16), bool)).partition(b"\n")
    data = header + b"\n" + bytes(256 * objects)
    out = np.full((1, 16, 16), 7, np.uint8).view(bool)
    for number in (0, min(said, objects) - 1, objects - 1):
        assert compiled.left_undone([(compiled.CELLS, data, out, number, header + b"\n", None)]) == [0]
    with pytest.raises(BadShard, match="not the npy of this field"):
        codec.decode_prompts(data, 16, [0])


@pytest.mark.parametrize(("offset", "size"), [(1 << 63, 512), (512, 1 << 63), (1 << 70, 1 << 70)])
def test_places_of_any_size_hold_no_members(offset, size):
    mapped = MappedTar.__new__(MappedTar)
    mapped.path, mapped.view = "x.tar", memoryview(bytes(2048))
    ours, python = both(lambda: mapped.exact_members(offset, size, b"key", (b".up",), (b"",)) or np.zeros(0))
    assert ours == python == outcome(lambda: np.zeros(0))


def test_a_member_that_the_end_of_the_file_cuts_off_is_refused():
    tar = header_bytes(b"key.up", 40) + bytes(18)
    mapped = MappedTar.__new__(MappedTar)
    mapped.path, mapped.view = "x.tar", memoryview(bytes(tar))
    with pytest.raises(BadShard, match=r"member leaves its place.*met 40 bytes; wanted <= 18"):
        [*mapped.members(0, 1024)]


@pytest.mark.parametrize("fault", ["out", "read-only", "strided", "side", "kind", "header", "table", "short", "number"])
def test_jobs_that_do_not_fit_their_buffers_are_left_or_refused(fault):
    good = [
        *codec.normalised_job(codec.encode_picture(picture(448), "raw"), 448, MEAN, STD, np.empty((3, 448, 448), "f4"))
    ]
    assert compiled.run([tuple(good)])
    if fault == "out":
        good[2] = good[2][:, :-1].copy()
    elif fault == "read-only":
        good[2].flags.writeable = False
    elif fault == "strided":
        good[2] = np.empty((3, 448, 896), np.float32)[:, :, ::2]
    elif fault == "side":
        good[3] = 449
    elif fault == "header":
        good[4] = good[4][:-1]
    elif fault == "number":
        good[3] = 1 << 70
    if fault in ("out", "read-only", "strided", "side", "header", "number"):
        assert compiled.left_undone([tuple(good)]) == [0]
        return
    bad = {"kind": (0, 7), "table": (5, good[5][:-1]), "short": (5, None)}
    position, value = bad[fault]
    good[position] = value
    with pytest.raises((TypeError, ValueError, OverflowError)):
        compiled.left_undone([tuple(good if fault != "short" else good[:5])])


@pytest.mark.parametrize("side", [448, 1024])
def test_sums_of_blocks_and_ends_of_planes_are_those_of_numpy(side):
    made = np.clip(picture(side), [[[3]], [[0]], [[9]]], [[[255]], [[200]], [[254]]]).astype(np.uint8)
    expected = made.astype(np.int64).reshape(3, 64, side // 64, 64, side // 64).sum(axis=(2, 4))
    sums, ends = compiled.block_sums(made, 64)
    assert np.array_equal(sums, expected) and ends.tolist() == [[3, 255], [0, 200], [9, 254]]
    assert compiled.block_sums(made[:, ::-1], 64) is None and compiled.block_sums(made, 1) is None
    with compiled.python_alone():
        assert compiled.block_sums(made, 64) is None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(height=st.integers(1, 128), width=st.integers(1, 128), seed=st.integers(0, 99), flip=st.booleans())
def test_masks_are_made_small_again_as_python_does(height, width, seed, flip):
    original = np.random.default_rng(seed).random((height, width)) < seed % 5 / 4
    enlarged = original[np.ix_(centres(height, 128), centres(width, 128))]
    if flip:
        enlarged[seed, 99 - seed] ^= True
    bits = np.packbits(enlarged, axis=1)
    ours = original_mask(bits, height, width)
    with compiled.python_alone():
        expected = original_mask(bits, height, width)
    assert np.array_equal(ours, expected) if ours is not None else expected is None
    assert flip or np.array_equal(ours, original)


@pytest.mark.parametrize("argument", range(6))
@pytest.mark.parametrize("fault", ["short", "negative", "large"])
def test_masks_are_not_made_small_with_places_beyond_them(argument, fault):
    rows = np.arange(64)
    good = [np.zeros((64, 8), np.uint8), rows, rows, rows, rows, np.zeros((64, 64), np.uint8)]
    assert compiled._compiled.shrunk(*good) is True
    bad = good[argument].copy()
    if fault == "short":
        bad = bad[:-1]
    elif bad.ndim == 2:
        return
    else:
        bad[5] = -1 if fault == "negative" else 64
    assert compiled._compiled.shrunk(*good[:argument], bad, *good[argument + 1 :]) is None


@pytest.mark.parametrize("side", [1, 15, 17, 300, 448])
def test_pictures_of_any_side_and_place(side):
    """The loop takes sixteen bytes at a time where it can, and passes the cache where the memory is aligned."""
    made = np.random.default_rng(side).integers(0, 256, (3, side, side), np.uint8)
    for name in ("gradient", "zstd"):
        encoded = codec.encode_picture(made, name)
        for shift in (0, 1):
            memory = np.full(made.size + 64, 7, np.uint8)
            start = 32 - memory.ctypes.data % 16 + shift
            out = memory[start : start + made.size].reshape(made.shape)
            assert compiled.run([codec.picture_job(encoded, side, out)])
            assert np.array_equal(out, made)
            assert (memory[:start] == 7).all() and (memory[start + made.size :] == 7).all()


@pytest.mark.parametrize("name", ["gradient", "zstd"])
@pytest.mark.parametrize("side", [448, 1024])
def test_filtered_pictures_are_those_of_python(side, name):
    ours = codec.encode_picture(picture(side), name)
    with compiled.python_alone():
        assert ours == codec.encode_picture(picture(side), name)
    transposed = picture(side).transpose(0, 2, 1).copy().transpose(0, 2, 1)  # not contiguous
    assert ours == codec.encode_picture(transposed, name)
    made = picture(side)
    for fault, out in ((made[:, :-1].copy(), made.copy()), (made, made[:2].copy()), (made, made)):
        before = out.copy()
        assert not compiled._compiled.filtered(fault, side, name == "gradient", out) and np.array_equal(out, before)


def part_of(kind: int, tensor: np.ndarray, side: int = 0, table: bytes | None = None) -> compiled.Job:
    header = codec.picture_rest(side)[1] if side else None
    return kind, None, tensor, side, header, table


@pytest.mark.parametrize("packed", [False, True])
def test_rows_of_tensors_in_one_call(packed):
    """Two objects of one sample, one of another, and a third sample of which only the picture is taken."""
    cells = np.random.default_rng(3).random((6, 16, 16)) < 0.5
    rest = codec.normalised_rest(448, MEAN, STD)
    pictures = [picture(448), picture(448)[:, ::-1].copy(), picture(448)[::-1].copy()]
    stored = [
        [codec.encode_picture(pictures[0], "raw"), codec.encode_prompts(cells), codec.encode_masks(masks())],
        [
            codec.encode_picture(pictures[1], "gradient"),
            codec.encode_prompts(cells[:4]),
            codec.encode_masks(masks()[:4]),
        ],
        [codec.encode_picture(pictures[2], "jpeg")],
    ]
    tensors = [
        np.full((5, 3, 448, 448), 7, np.uint8 if packed else np.float32),
        np.ones((5, 2, 16, 16), bool),
        np.ones((5, 2, 1024, 128), np.uint8) if packed else np.ones((5, 2, 1024, 1024), bool),
    ]
    parts = (
        part_of(compiled.PICTURE, tensors[0], 448, None if packed else rest[2]),
        part_of(compiled.CELLS, tensors[1]),
        part_of(compiled.PACKED if packed else compiled.MASK, tensors[2]),
    )
    headers = [codec.header_of_prompts(len(members[1]), 16) for members in stored[:2]]
    rows: list[compiled.Row] = [
        (3, [5, 2], headers[0], stored[0], (0, 1, 2)),
        (0, [3], headers[1], stored[1], (0, 1, 2)),
        (1, [0, 1], None, stored[2], (0, -1, -1)),
    ]
    assert compiled.left_of_rows(parts, rows) == [(2, 0)]  # a JPEG
    for row, shown in ((3, pictures[0]), (0, pictures[1])):
        assert np.array_equal(tensors[0][row], shown if packed else codec.normalise(shown, MEAN, STD))
    bits = np.packbits(masks(), axis=2) if packed else masks()
    assert np.array_equal(tensors[1][3], cells[[5, 2]]) and np.array_equal(tensors[2][3], bits[[5, 2]])
    assert np.array_equal(tensors[1][0, 0], cells[3]) and np.array_equal(tensors[2][0, 0], bits[3])
    assert (tensors[0][[1, 2, 4]] == 7).all()
    for tensor in tensors[1:]:  # nothing else is written
        assert (tensor[[1, 2, 4]] == 1).all() and (tensor[0, 1] == 1).all()
    lacking = [(0, [5, 2], headers[0], stored[0], (-1, 1, 2)), (1, [2, 4], headers[1], stored[1], (-1, 1, 2))]
    assert compiled.left_of_rows(parts, lacking) == [(1, 1), (1, 2)]  # there is no object 4
    with compiled.python_alone():
        assert compiled.left_of_rows(parts, rows) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]


BAD_ROWS = {
    "row": (5, [0], None, [b""], (0,)),
    "negative row": (-1, [0], None, [b""], (0,)),
    "objects": (0, [0, 1, 2], None, [b""], (0,)),
    "member": (0, [0], None, [b""], (1,)),
    "negative member": (0, [0], None, [b""], (-2,)),
    "numbers": (0, [0], None, [b""], (0, 0)),
    "header": (0, [0], "", [b""], (0,)),
    "no number": (0, [None], None, [b""], (0,)),
    "no member": (0, [0], None, [None], (0,)),
    "short": (0, [0], None, [b""]),
    "list": [0, [0], None, [b""], (0,)],
}


@pytest.mark.parametrize("fault", BAD_ROWS)
def test_rows_that_do_not_fit_the_tensors_are_refused(fault):
    tensor = np.ones((5, 2, 1024, 128), np.uint8)
    good = 0, [1, 0], None, [codec.encode_masks(masks()[:2])], (0,)
    for rows in ([BAD_ROWS[fault]], [good, BAD_ROWS[fault]]):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            compiled.left_of_rows((part_of(compiled.PACKED, tensor),), rows)
        assert (tensor == 1).all()
    for tensors in (tensor[:, :, ::2], tensor[0, 0, 0], np.frombuffer(bytes(64), np.uint8)):
        with pytest.raises((ValueError, BufferError)):
            compiled.left_of_rows((part_of(compiled.PACKED, tensors),), [good])


CHANGED_HEADERS = [{}] * 8 + [{"mode": 0o600}, {"mtime": 1}, {"uname": "a"}, {"type": b"2"}]


def header_bytes(name: bytes, size: int, **changes: Any) -> bytearray:
    info = tarfile.TarInfo(name.decode("latin-1"))
    info.size = size
    for key, value in changes.items():
        setattr(info, key, value)
    return bytearray(info.tobuf(tarfile.USTAR_FORMAT, "latin-1"))


@settings(max_examples=150)
@given(data=st.data())
def test_headers_are_compared_as_python_does(data):
    sizes = data.draw(st.lists(st.integers(0, 1600), min_size=1, max_size=3))
    rests = tuple(f".{n}.up".encode() for n in range(len(sizes)))
    begins = tuple(data.draw(st.sampled_from([b"", b"", b"\0\0", b"a"])) for _ in sizes)
    key = data.draw(st.sampled_from([b"key"] * 4 + [b"k" * 64, b"k" * 65, b"k.y", b"k/y", b"k\x80", b""]))
    tar = bytearray(512)  # what stands before the sample
    plain = key in (b"key", b"k" * 64)
    for rest, size, begin in zip(rests, sizes, begins, strict=True):
        changes: dict[str, Any] = data.draw(st.sampled_from(CHANGED_HEADERS))
        plain &= not changes and bytes(size).startswith(begin)
        tar += header_bytes(key + rest, size, **changes) + bytes(size + -size % 512)
    size = len(tar) - 512
    fault = data.draw(st.sampled_from(["none", "flip", "cut", "more", "less", "far", "key"]))
    if fault == "flip":
        bit = data.draw(st.integers(8 * 512, 8 * min(len(tar), 1024) - 1))
        tar[bit // 8] ^= 1 << bit % 8
    tar = tar[: len(tar) - data.draw(st.integers(1, 600))] if fault == "cut" else tar
    size += {"more": 512, "less": -512}.get(fault, 0)
    mapped = MappedTar.__new__(MappedTar)
    mapped.view = memoryview(bytes(tar))
    offset = len(tar) + 99 if fault == "far" else 512
    asked = offset, size, b"other" if fault == "key" else key, rests, begins
    found = mapped.exact_members(*asked)
    with compiled.python_alone():
        expected = mapped.exact_members(*asked)
    assert found == expected
    assert found is None or [len(member) for member in found] == sizes
    if fault == "none":
        assert (found is not None) == plain
