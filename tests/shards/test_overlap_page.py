import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from shards.format import MANIFEST
from shards.manifest import Manifest
from shards.reader import ShardSet
from shards.table import write_tables
from tests.shards.conftest import change_frame, stored_samples, write_set


@pytest.fixture
def two(small_set, tmp_path):
    """Two sets: b has the third sample of a as it is, the first with a brighter frame, and another sample."""
    samples = stored_samples(small_set)
    manifest = Manifest.read(small_set)
    brighter = np.minimum(samples[0].frames[1].pixel_values, 245) + np.uint8(10)
    inverted = [255 - frame.pixel_values[:, ::-1, ::-1] for frame in samples[4].frames]
    other = samples[4]
    for number, picture in enumerate(inverted, 1):
        other = change_frame(other, number, pixel_values=picture)
    other_first = change_frame(samples[0], 1, pixel_values=inverted[0][:, :, ::-1])
    write_set(tmp_path / "a", manifest, samples[:3])
    write_set(tmp_path / "b", manifest, [change_frame(other_first, 2, pixel_values=brighter), samples[2], other])
    return tmp_path / "a", tmp_path / "b"


def test_the_verb_names_counts_and_draws_the_pairs(two, here, tmp_path):
    a, b = two
    done = here("overlap", a, b, "--out", tmp_path / "page.html")
    assert done.returncode == 1
    assert f"{a}: no table of its pictures" in done.stderr
    assert f"table {a}" in done.stderr
    for folder in two:
        write_tables(folder)
    done = here("overlap", a, b, "--distance", 2, "--out", tmp_path / "page.html", "--fail")
    assert done.returncode == 1  # there are some
    keys = [ShardSet(a).key(n) for n in range(3)]
    rows = pq.read_table(tmp_path / "page.parquet").to_pylist()
    named = {(row["a_key"], row["a_frame"], row["b_key"], row["b_frame"], row["equal"]) for row in rows}
    assert {(keys[2], 0, keys[2], 0, True), (keys[2], 1, keys[2], 1, True), (keys[0], 1, keys[0], 1, False)} <= named
    assert not any(row["b_key"] == ShardSet(b).key(2) for row in rows)
    assert {(row["a_set"], row["b_set"]) for row in rows} == {(str(a), str(b))}
    equal = sum(row["equal"] for row in rows)
    assert f"{equal} equal pairs, {len(rows) - equal} nearly equal pairs" in done.stdout
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.count("<img") == 2 * len(rows)
    assert not re.search(r'(src|href)="(?!data:)', page)
    found = json.loads(here("overlap", a, b, "--distance", 2, "--out", tmp_path / "page.html", "--json").stdout)
    assert (found["equal"], found["near"], found["pictures"]) == (equal, len(rows) - equal, [6, 6])
    assert found["pairs"][0]["equal"]
    assert here("overlap", b, b, "--distance", 0, "--out", tmp_path / "self.html", "--fail").returncode == 0


def test_what_cannot_be_compared_is_said(two, here, tmp_path):
    a, b = two
    shutil.copytree(a, tmp_path / "sets" / "a")
    write_tables(a)
    manifest = Manifest.read(b)
    (b / MANIFEST).write_bytes(replace(manifest, recipe=replace(manifest.recipe, image_filter="bicubic")).to_bytes())
    write_tables(b)
    done = here("overlap", a, b, "--out", tmp_path / "page.html")
    assert "0 equal pairs" in done.stdout
    assert "other filters (bicubic, bilinear) are not comparable" in done.stdout
    done = here("overlap", tmp_path / "sets", tmp_path / "sets" / "a", "--out", tmp_path / "page.html")
    assert done.returncode == 1  # the same sets, which have no table yet
    write_tables(tmp_path / "sets" / "a")
    assert here("overlap", tmp_path / "sets", tmp_path / "sets" / "a", "--out", tmp_path / "p.html").returncode == 0
    shutil.copytree(b, tmp_path / "sets" / "b")
    done = here("overlap", tmp_path / "sets", tmp_path / "sets" / "a", "--out", tmp_path / "p.html")
    assert "a set on both sides" in done.stderr
