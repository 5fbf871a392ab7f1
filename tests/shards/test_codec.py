"""Every codec returns each bit, and refuses what it has not written."""

import io
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import transforms as T

from shards import codec, compiled
from shards.codec import zstd
from shards.errors import BadShard

SEEDS = st.integers(0, 2**32 - 1)
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def random_masks(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, 1024, 1024), bool)
    for mask in masks:
        (a, b), (c, d) = np.sort(rng.integers(0, 1025, (2, 2)), axis=1)
        mask[a:b, c:d] = True
    return masks


def random_picture(seed: int, size: int, smooth: bool) -> np.ndarray:
    picture = np.random.default_rng(seed).integers(0, 256, (3, size, size), np.uint8)
    return np.cumsum(picture % 3, axis=2, dtype=np.uint8) if smooth else picture


@settings(max_examples=20)
@given(SEEDS, st.sampled_from([448, 1024]), st.booleans(), st.sampled_from(["gradient", "zstd", "raw"]))
def test_pictures_round_trip(seed, size, smooth, name):
    picture = random_picture(seed, size, smooth)
    encoded = codec.encode_picture(picture, name)
    assert codec.codec_of(encoded) == name
    assert np.array_equal(codec.decode_picture(encoded, size), picture)
    out = np.empty((2, 3, size, size), np.uint8)
    codec.decode_picture(memoryview(encoded), size, out[1])
    assert np.array_equal(out[1], picture)


def test_a_frame_that_holds_more_than_it_says_takes_no_memory():
    size = 3 * 448 * 448
    block = (1 << 17 << 3 | 1 << 1).to_bytes(3, "little") + b"x"  # RFC 8878: a byte, 131,072 times; not the last block
    frame = b"\x28\xb5\x2f\xfd\x80\x58" + size.to_bytes(4, "little") + 10_000 * block  # a window of 2 MB; 1.3 GB
    for data in (frame, codec.GRADIENT + frame):
        tracemalloc.start()
        with compiled.python_alone(), pytest.raises(BadShard, match="not a zstd frame"):
            codec.decode_picture(data, 448)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 10 * size


@pytest.mark.parametrize("smooth", [False, True])
def test_a_gradient_picture_holds_differences_of_both_directions(smooth):
    picture = random_picture(1, 448, smooth)
    data = codec.encode_picture(picture, "gradient")
    assert data[:8] == bytes.fromhex("522a4d1800000000")  # RFC 8878: a skippable frame of no bytes
    stored = np.frombuffer(zstd.decompress(data), np.uint8).reshape(3, 448, 448)
    red, green, blue = picture.astype(int)
    for plane, values in zip(stored, (red - green, green, blue - green), strict=True):
        around = np.pad(values, ((1, 0), (1, 0)))
        assert np.array_equal(plane, (values - around[1:, :-1] - around[:-1, 1:] + around[:-1, :-1]) % 256)


def test_gradient_pictures_are_small():
    rows, columns = np.mgrid[:448, :448]
    waves = 128 + 60 * np.sin(rows / 37) + 50 * np.cos(columns / 23)
    noise = np.random.default_rng(0).normal(0, 2, (3, 448, 448))
    photograph = np.clip(np.rint(waves + noise), 0, 255).astype(np.uint8)
    sizes = {name: len(codec.encode_picture(photograph, name)) for name in ("gradient", "zstd", "raw")}
    assert sizes["gradient"] < sizes["raw"] / 1.8
    # Huffman codes take a bit a value at least: a drawing is stored with matches.
    drawing = np.repeat(np.repeat(photograph[:, ::32, ::32], 32, 1), 32, 2)
    assert len(codec.encode_picture(drawing, "gradient")) < drawing.nbytes / 30


@settings(max_examples=10)
@given(SEEDS, st.integers(0, 5))
def test_all_and_some_masks_round_trip(seed, count):
    masks = random_masks(seed, count)
    encoded = codec.encode_masks(masks)
    assert codec.count_masks(encoded) == count
    assert np.array_equal(codec.decode_masks(encoded, 1024), masks)
    chosen = [*range(count)][::-2]
    assert np.array_equal(codec.decode_masks(encoded, 1024, chosen), masks[chosen])
    assert np.array_equal(codec.decode_masks(encoded, 1024, chosen, packed=True), np.packbits(masks[chosen], axis=2))


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 0), (0, 1, 0, 1), (1023, 1024, 1023, 1024), (31, 33, 5, 9), (0, 1024, 0, 1024)]
)
def test_masks_overwrite_the_whole_buffer(box):
    masks = np.zeros((1, 1024, 1024), bool)
    masks[0, box[0] : box[1], box[2] : box[3]] = True
    out = np.ones((1, 1024, 1024), bool)
    assert np.array_equal(codec.decode_masks(codec.encode_masks(masks), 1024, [0], out), masks)


def test_one_mask_is_decoded_without_the_others():
    masks = random_masks(4, 3)
    encoded = bytearray(codec.encode_masks(masks))
    ends = np.frombuffer(bytes(encoded[4:16]), "<u4")
    encoded[16 : 16 + ends[0]] = bytes(ends[0])  # the first one's frame is destroyed
    assert np.array_equal(codec.decode_masks(bytes(encoded), 1024, [1, 2]), masks[1:])
    with pytest.raises(BadShard):
        codec.decode_masks(bytes(encoded), 1024)


@given(SEEDS, st.integers(0, 40))
def test_prompts_round_trip_and_are_plain_npy(seed, count):
    prompts = np.random.default_rng(seed).random((count, 16, 16)) < 0.5
    encoded = codec.encode_prompts(prompts)
    assert np.array_equal(codec.decode_prompts(encoded, 16), prompts)
    assert np.array_equal(np.load(io.BytesIO(encoded), allow_pickle=False), prompts)


@pytest.mark.parametrize("objects", [None, [2, 1]])
def test_cells_that_are_not_binary_are_refused(objects):
    encoded = bytearray(codec.encode_prompts(np.ones((3, 16, 16), bool)))
    encoded[-300] = 2  # of the second object
    assert codec.decode_prompts(bytes(encoded), 16, [0, 2]).all()
    with pytest.raises(BadShard, match="not binary; met 2"):
        codec.decode_prompts(bytes(encoded), 16, objects)


def test_normalise_equals_torchvision_for_all_values():
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(256, 1, 3)
    expected = T.Compose([T.ToTensor(), T.Normalize(MEAN, STD)])(values)
    normalised = codec.normalise(values.transpose(2, 0, 1).copy(), MEAN, STD)
    assert torch.equal(torch.from_numpy(normalised), expected)
    assert round(float(normalised.min()), 4) == -2.1179 and round(float(normalised.max()), 4) == 2.64


ZEROS = np.zeros((3, 448, 448), np.uint8)
DECODERS = {
    "picture": (lambda data: codec.decode_picture(data, 448), codec.encode_picture(ZEROS, "zstd")),
    "gradient": (lambda data: codec.decode_picture(data, 448), codec.encode_picture(ZEROS, "gradient")),
    "masks": (lambda data: codec.decode_masks(data, 1024), codec.encode_masks(random_masks(0, 2))),
    "prompts": (lambda data: codec.decode_prompts(data, 16), codec.encode_prompts(np.ones((2, 16, 16), bool))),
}


@pytest.mark.parametrize("kind", DECODERS)
@settings(max_examples=150)
@given(data=st.data())
def test_damage_is_a_bad_shard_and_nothing_else(kind, data):
    decode, good = DECODERS[kind]
    damage = data.draw(st.sampled_from(["cut", "garbage", "flip", "longer"]))
    bad = bytearray(good)
    if damage == "cut":
        bad = bad[: data.draw(st.integers(0, len(good) - 1))]
    elif damage == "garbage":
        bad = bytearray(data.draw(st.binary(max_size=400)))
    elif damage == "longer":
        bad += data.draw(st.binary(min_size=1, max_size=9))
    else:
        bit = data.draw(st.integers(0, 8 * len(good) - 1))
        bad[bit // 8] ^= 1 << bit % 8
    try:
        value = decode(bytes(bad))
    except BadShard:
        return
    assert damage == "flip" and value.shape == decode(good).shape  # a flip inside the data is for the checksums


@pytest.mark.parametrize("size", [3 * 448 * 448 + 1, 1 << 40])
def test_a_frame_of_another_size_is_not_decompressed(size):
    frame = zstd.compress(bytes(3 * 448 * 448 + 1))
    if size > 1 << 30:  # a frame that promises a terabyte
        frame = b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + frame[9:]
    with pytest.raises(BadShard, match="another size"):
        codec.decode_picture(frame, 448)
