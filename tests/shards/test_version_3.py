"""Sets of version 3: samples without objects and text alone, beside samples with objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.derive import Deriver
from pipeline.request import make_request
from pipeline.run import run
from pipeline.sources import chosen_source
from shards.errors import BadShard
from shards.manifest import Manifest
from shards.reader import ShardSet, read_samples
from shards.verification import verify
from tests import mixed


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixed.write_raw(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def mixed_set(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of `mixed.RECORDS`, three samples in a tar. Not to be changed."""
    folder = tmp_path_factory.mktemp("shards") / "mixed"
    run(make_request(mixed.SOURCE, root, shard_bytes=6_000_000), folder, 1, 0)
    return folder


def numbers_of(shards: ShardSet) -> list[int]:
    """Return the number of the record that each sample was made of."""
    return [int(shards.meta(position)["path"].partition("#")[2]) for position in range(len(shards))]


def check_content(folder: Path, root: Path, chosen: list[int]) -> None:
    """The set holds the records `chosen`, with the tensors that Pillow makes of their pictures."""
    shards = ShardSet(folder)
    assert sorted(numbers_of(shards)) == sorted(chosen)
    for position, number in enumerate(numbers_of(shards)):
        sample = shards[position]
        record = mixed.RECORDS[number]
        assert list(sample) == ["__key__", "meta", *mixed.FIELDS[number]]
        assert {name: sample["meta"].get(name) for name in ("turns", "expressions", "captions")} == {
            name: record.get(name) for name in ("turns", "expressions", "captions")
        }
        assert [frame["name"] for frame in sample["meta"]["frames"]] == record.get("pictures", [])
        for field in mixed.FIELDS[number]:
            assert np.array_equal(sample[field], mixed.expected_field(root, number, field)), (number, field)
        row = shards.index[position]
        visible = int("box" in record)
        assert (row["frames"], row["letters"]) == (mixed.FRAMES[number], mixed.LETTERS[number])
        assert (row["texts"], row["regions"]) == (visible, visible)


def test_sharding_verifying_and_reading(root, mixed_set, tmp_path):
    manifest = Manifest.read(mixed_set)
    assert (manifest.version, manifest.samples, manifest.objects) == (3, 8, 2)
    assert manifest.notes["samples without objects"] == 6 and manifest.notes["samples without pictures"] == 2
    raw = Deriver(root, tmp_path, chosen_source(mixed.SOURCE))
    report = verify([mixed_set], derive=raw.derive, same_inputs=raw.same_inputs)
    assert report.ok and report.samples == 8, report.table()
    assert {name: row.samples for name, row in report.fields.items() if row.samples > 1} == {
        "pixel_values": 3,
        **{name: 2 for name in ("g_pixel_values", "g_pixel_values1", "g_pixel_values2")},
        **{name: 3 for name in ("pixel_values1", "pixel_values2")},
    }
    check_content(mixed_set, root, [*range(8)])
    in_order = [sample for info in manifest.shards for sample in read_samples(mixed_set / info.name, manifest.recipe)]
    for one, other in zip(in_order, ShardSet(mixed_set), strict=True):
        assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    again = run(make_request(mixed.SOURCE, root, shard_bytes=6_000_000), mixed_set, 1, 0)
    assert again.written_now == 0 and again.manifest == manifest


def test_a_release_that_knows_no_version_3_refuses_it_in_one_line(mixed_set, monkeypatch):
    monkeypatch.setattr("shards.manifest.READABLE", (1, 2))
    with pytest.raises(BadShard) as refused:
        ShardSet(mixed_set)
    assert str(refused.value) == (
        f"{mixed_set}/manifest.json: format version; met 3; wanted 1 or 2; use the release that wrote it, or write it "
        "again"
    )
