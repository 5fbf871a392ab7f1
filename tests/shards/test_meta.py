"""Tests that what is written can be read: the writer keeps to the reader's own rules for a sample's JSON."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.archive import encode_sample
from shards.errors import BadShard
from shards.meta import MAX_BYTES, check_counts, check_meta, pack_meta, parse_meta
from shards.strict_json import parse_json
from tests.shards.conftest import stored_samples


def meta_of(**changes):
    plain = {
        **{"source": "folder", "dataset_type": "folder", "path": "a.jpg", "has_paired_frame": False},
        **{"frames": [{"name": "a", "height": 3, "width": 4}], "crc32": {}},
        "objects": [{"id": "0", "texts": [], "filled": [0]}],
    }
    return {**plain, **changes}


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


FRAME = meta_of()["frames"][0]
ITEM = meta_of()["objects"][0]
REFUSED = {
    "100 frames": {"frames": [FRAME] * 100, "objects": [{**ITEM, "filled": [0] * 100}]},
    "4,097 objects": {"objects": [ITEM] * 4097},
    "99 frames of 83 objects": {"frames": [FRAME] * 99, "objects": [{**ITEM, "filled": [0] * 99}] * 83},
    "no frame": {"frames": []},
    "no object": {"objects": []},
    "height as text": {"frames": [{**FRAME, "height": "3"}]},
    "a side of 0": {"frames": [{**FRAME, "width": 0}]},
    "a side of 2 ** 40": {"frames": [{**FRAME, "width": 1 << 40}]},
    "true for a side": {"frames": [{**FRAME, "width": True}]},
    "an object without texts": {"objects": [{"id": "0"}]},
    "an id that is a number": {"objects": [{**ITEM, "id": 0}]},
    "filled as text": {"objects": [{**ITEM, "filled": "x"}]},
    "filled of two frames": {"objects": [{**ITEM, "filled": [0, 0]}]},
    "mask_sizes of a pixel short": {"objects": [{**ITEM, "mask_sizes": [[1]]}]},
    "mask_sizes below 1": {"objects": [{**ITEM, "mask_sizes": [[0, 5]]}]},
    "left_out as a number": {"left_out": 5},
    "path that is none": {"path": None},
    "pair flag as a number": {"has_paired_frame": 1},
    "NaN": {"own": {"score": math.nan}},
    "infinity in a list": {"own": [[-math.inf]]},
    "an integer of 65 bits": {"own": 1 << 64},
    "an integer below 64 bits": {"own": -(1 << 63) - 1},
    "an integer of 10,000 digits": {"own": 10**9999},
    "65 levels": {"own": nested(65)},
    "100,000 levels": {"own": nested(100_000)},
    "a key that is a number": {"own": {1: "a", "1": "b"}},
    "17 MB": {"own": "x" * MAX_BYTES},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_readers_refuse_is_not_written(name):
    with pytest.raises(BadShard):
        pack_meta(meta_of(**REFUSED[name]))


def test_the_writer_checks_the_json(sav_set):
    sample = stored_samples(sav_set)[0]
    for changes in (
        {"frames": sample.meta["frames"] * 50},
        {"own": math.nan},
        {"objects": sample.meta["objects"] * 4097},
    ):
        with pytest.raises(BadShard):
            encode_sample(replace(sample, meta={**sample.meta, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"frames": [FRAME] * 99, "objects": [{**ITEM, "filled": [0] * 99}] * 82},
        {"objects": [ITEM] * 4096},
        {"own": nested(60)},
        {"own": (1 << 64) - 1},
        {"own": -(1 << 63)},
        {"path": "half a pair \ud800, a line \u2028 and a \x00"},
    ],
)
def test_samples_within_the_limits_are_read(changes):
    meta = meta_of(**changes)
    assert parse_meta(pack_meta(meta)) == json.loads(json.dumps(meta))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150)
@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_any_json_of_a_source_is_read_as_it_was_or_refused(source_json):
    meta = meta_of(source_json=source_json)
    try:
        data = pack_meta(meta)
    except BadShard:
        return
    read = parse_meta(data)
    check_meta(read)
    assert read == meta and json.loads(data) == meta


def test_limits_are_those_of_the_document():
    check_counts(99, 82)
    check_counts(2, 4096)
    for frames, objects in ((100, 1), (1, 4097), (3, 4096), (99, 83)):
        with pytest.raises(BadShard):
            check_counts(frames, objects)


@pytest.mark.parametrize(
    "text",
    [
        *('{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 1}}', "NaN", '{"a": -Infinity}', "[" * 100_000, '{"a":' * 50_000),
        *("\ufeff{}", "{} {}", "", "1" * 5000, '"\x01"'),
    ],
)
def test_json_that_parsers_read_differently_is_refused(text):
    with pytest.raises(ValueError):
        parse_json(text.encode())
    with pytest.raises(ValueError):
        parse_json("{}".encode("utf-16"))
