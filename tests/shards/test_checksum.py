"""Changed bytes are found when they are read, or change nothing that is read."""

import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import reader
from shards.checksum import crc32, crc32_while_copying
from shards.errors import BadShard, UserError
from shards.format import INDEX
from shards.preview import preview
from shards.reader import ShardSet, read_samples
from shards.recode import recode
from shards.select import sample, split
from shards.stats import measure_sets

SAMPLES = 6


@pytest.fixture(scope="module")
def copy(sav_set, tmp_path_factory) -> Path:
    """A copy of `sav_set` with the bytes of its first tar, which each test writes anew."""
    return Path(shutil.copytree(sav_set, tmp_path_factory.mktemp("checksum") / "copy"))


@pytest.fixture(scope="module")
def first_tar(sav_set) -> bytes:
    return (sav_set / ShardSet(sav_set).manifest.shards[0].name).read_bytes()


def flip(folder: Path, data: bytes, *bits: int) -> Path:
    """Write `data` as the first tar of the set, with these bits changed, under a new inode as no mapping has it."""
    changed = bytearray(data)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    path = folder / ShardSet(folder, "never").manifest.shards[0].name
    path.unlink(missing_ok=True)
    path.write_bytes(changed)
    return path


def equal(actual: dict, expected: dict) -> bool:
    return actual.keys() == expected.keys() and all(
        np.array_equal(actual[k], v) if isinstance(v, np.ndarray) else actual[k] == v for k, v in expected.items()
    )


@given(data=st.binary(max_size=300), start=st.integers(0, 2**32 - 1))
def test_crc32_equals_that_of_zlib(data, start):
    assert crc32(data, start) == zlib.crc32(data, start)
    assert crc32(memoryview(data)) == zlib.crc32(data)


@given(data=st.data())
def test_crc32_while_copying_equals_that_of_all_bytes(data):
    whole = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 256, 600_000, np.uint8)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), min_size=2, max_size=6, unique=True)))
    sources = [whole[a:b] for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    sources += sources[: data.draw(st.integers(0, 1))]  # one is copied twice
    copies = [(np.zeros_like(source), source) for source in data.draw(st.permutations(sources))]
    assert crc32_while_copying(memoryview(whole), copies) == zlib.crc32(whole)
    assert all(np.array_equal(target, source) for target, source in copies)


@settings(max_examples=100)
@given(data=st.data())
def test_any_flips_in_a_tar_are_found_or_harmless(copy, sav_set, first_tar, data):
    """Headers, JSON, members, padding and the end of the archive: any bit, and any few of them together."""
    rows = ShardSet(sav_set).index
    rows = rows[rows["shard"] == 0]
    ends = [int(row["offset"] + row["size"]) for row in rows]
    bits = data.draw(st.lists(st.integers(0, 8 * len(first_tar) - 1), min_size=1, max_size=4, unique=True))
    near = data.draw(st.integers(0, len(rows) - 1))  # headers and JSON are a small part of all bytes
    bits += [8 * int(rows[near]["offset"]) + data.draw(st.integers(0, 8 * 2048 - 1))]
    path = flip(copy, first_tar, *{*bits})
    changed = {n for n, end in enumerate(ends) for bit in {*bits} if end - int(rows[n]["size"]) <= bit // 8 < end}
    shards = ShardSet(copy)
    for position in range(len(rows)):
        if position not in changed:
            continue
        with pytest.raises(BadShard, match="CRC-32 of the sample") as raised:
            shards.open(position)
        assert raised.value.where == f"{path}: {shards.key(position)}" and "\n" not in str(raised.value)
    untouched = next((n for n in range(len(rows)) if n not in changed), None)
    if untouched is not None:
        assert shards.open(untouched).meta == ShardSet(sav_set).open(untouched).meta


def test_a_flip_in_the_padding_or_the_end_of_the_archive_changes_no_tensor(copy, sav_set, first_tar):
    flip(copy, first_tar, 8 * len(first_tar) - 1)
    assert equal(ShardSet(copy)[0], ShardSet(sav_set)[0])


def test_without_the_check_a_flip_is_read_as_data(copy, sav_set, first_tar):
    """A flip that is found by default is not found with `never`."""
    row = ShardSet(sav_set).index[0]
    name = b'"has_paired_frame"'
    at = first_tar.index(name, int(row["offset"]))
    flip(copy, first_tar, 8 * (at + 3))  # in a name of the JSON, which stays JSON
    assert "has_paired_frame" not in ShardSet(copy, "never").open(0).meta
    with pytest.raises(BadShard, match="CRC-32 of the sample"):
        ShardSet(copy).open(0)


def test_a_sample_is_compared_at_its_first_read_at_each_or_never(copy, first_tar, monkeypatch):
    flip(copy, first_tar)
    compared = []
    monkeypatch.setattr(reader, "crc32", lambda view: compared.append(len(view)) or crc32(view))
    counts = {}
    for check in ("first", "always", "never"):
        shards = ShardSet(copy, check)
        for position in (0, 1, 0, 0):
            shards.open(position)
        counts[check] = len(compared)
        compared[:] = []
    assert counts == {"first": 2, "always": 4, "never": 0}


def test_a_sample_that_failed_is_compared_again(copy, first_tar):
    flip(copy, first_tar, 8 * 600)
    shards = ShardSet(copy)
    for _ in range(2):
        with pytest.raises(BadShard):
            shards.open(0)


@pytest.mark.parametrize("door", ["preview", "stats", "recode", "split", "sample", "in order"])
def test_every_reader_finds_a_flipped_bit(copy, first_tar, door, tmp_path):
    path = flip(copy, first_tar, 8 * (len(first_tar) // 40))
    doors = {
        "preview": lambda: preview(copy, tmp_path / "page", 10**6),
        "stats": lambda: measure_sets([copy], 10**6),
        "recode": lambda: recode(copy, tmp_path / "raw", "raw"),
        "split": lambda: split(copy, tmp_path / "parts", 0.5, "sample", 10**9),
        "sample": lambda: sample(copy, tmp_path / "few", len(ShardSet(copy)), 0, 10**9),
        "in order": lambda: list(read_samples(path)),
    }
    with pytest.raises(BadShard, match=r"CRC-32 of the sample; met [0-9]+; wanted [0-9]+; ") as raised:
        doors[door]()
    assert path.name in str(raised.value) or copy.name in str(raised.value)


def test_a_tar_without_its_set_is_compared_with_the_json(copy, sav_set, first_tar, tmp_path):
    recipe = ShardSet(sav_set).recipe
    path = flip(copy, first_tar, 8 * (len(first_tar) // 40))  # in a picture of the first sample
    alone = Path(shutil.copy(path, tmp_path / "alone.tar"))
    with pytest.raises(BadShard, match="CRC-32 of the member"):
        next(read_samples(alone, recipe))


@pytest.mark.parametrize("place", ["header", "rows"])
def test_an_index_that_has_changed_is_refused_when_the_set_is_opened(copy, sav_set, first_tar, place):
    flip(copy, first_tar)
    whole = (copy / INDEX).read_bytes()
    try:
        for byte in range(128) if place == "header" else range(128, len(whole), 37):
            damaged = bytearray(whole)
            damaged[byte] ^= 4
            os.replace(_written(copy / "new", damaged), copy / INDEX)
            with pytest.raises(UserError, match=f"{INDEX}: SHA-256 of the index; met [0-9a-f]+; wanted [0-9a-f]+; "):
                ShardSet(copy)
    finally:
        (copy / INDEX).write_bytes(whole)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
