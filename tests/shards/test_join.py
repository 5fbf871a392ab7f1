"""Joined tables, compared with what pandas merges."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from commands import sets
from shards import join as joining
from shards.checksum import file_sha256
from shards.errors import UserError
from shards.format import MANIFEST
from shards.join import Source, drop, explain, join_file
from shards.reader import ShardSet
from shards.table import TABLE, write_table
from shards.table_list import LIST, TableInfo, read_tables, record_table
from shards.where import choose
from tests.conftest import files_of


@pytest.fixture
def tabled(small_set: Path, tmp_path: Path) -> Path:
    """A copy of `small_set` with its table."""
    folder = Path(shutil.copytree(small_set, tmp_path / "sav"))
    write_table(folder, 1)
    return folder


def later(folder: Path, seed: int = 0) -> pa.Table:
    """Columns of every type for two thirds of the objects and one that does not exist, in another order."""
    rng = np.random.default_rng(seed)
    objects = pq.read_table(folder / TABLE, columns=["key", "object"]).to_pandas()
    some = objects.sample(frac=0.67, random_state=seed)
    some = pd.concat([some, pd.DataFrame({"key": ["no such key"], "object": [7]})]).sample(frac=1, random_state=seed)
    n = len(some)
    values = {
        "score": pa.array(np.where(np.arange(n) == 1, np.nan, rng.random(n)), pa.float32()),
        "count": pa.array(rng.integers(0, 2**64, n, np.uint64)),
        "Caption text": pa.array([f"größe {i}" if i else None for i in range(n)]).dictionary_encode(),
        "sure": pa.array(rng.random(n) > 0.5),
        "parts": pa.array([[f"{i}"] * (i % 3) for i in range(n)], pa.large_list(pa.string())),
        "token": pa.FixedSizeListArray.from_arrays(pa.array(rng.random(4 * n).astype(np.float32)), 4),
        "price": pa.array([i / 4 for i in range(n)]).cast(pa.decimal128(12, 2)),
    }
    return pa.table({"key": pa.array(some["key"]), "object": pa.array(some["object"], pa.int16()), **values})


def write(table: pa.Table | dict[str, Any], path: Path, **options: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(table) if isinstance(table, dict) else table, path, **options)
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


TYPES = ["float", "uint64", "string", "bool", "list<string>", "list<float>", "double"]


def test_a_join_is_what_pandas_merges(tabled: Path, tmp_path: Path):
    before = files_of(tabled)
    made = later(tabled)
    joined = join_file(tabled, write(made, tmp_path / "scores.parquet", row_group_size=2))
    objects = pq.read_table(tabled / TABLE, columns=["key", "object"]).to_pandas()
    expected = objects.merge(made.to_pandas(), "left", ["key", "object"], indicator=True)
    found = rows_of(joined.path)
    assert [*joined.about.columns.values()] == TYPES
    for name in joined.about.columns:
        for met, wanted in zip((row[name] for row in found), expected[name], strict=True):
            is_null = np.ndim(wanted) == 0 and pd.isna(wanted)  # NaN in the file counts as none
            assert met is None if is_null else np.array_equal(met, [*wanted] if name in ("parts", "token") else wanted)
    assert joined.about.without_partner == (expected["_merge"] == "left_only").sum() > 0
    assert joined.about.unused == 1 and joined.info.rows == len(objects) and not joined.was_there
    assert read_tables(tabled, ShardSet(tabled).manifest)["scores.parquet"] == joined.info
    after = files_of(tabled)
    assert {name for name in after if after[name] != before.get(name)} == {"scores.parquet", LIST}
    assert "1 rows of scores.parquet unused; columns Caption text, count, parts" in explain(joined)


def test_the_bytes_do_not_depend_on_how_much_is_held(tabled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write(later(tabled), tmp_path / "a.parquet")
    first = join_file(tabled, file)
    data = first.path.read_bytes()
    assert join_file(tabled, file) == replace(first, was_there=True)
    monkeypatch.setattr(joining, "usable_processors", lambda: 1)
    drop(tabled, "a")
    assert not first.path.exists() and "a.parquet" not in read_tables(tabled, ShardSet(tabled).manifest)
    monkeypatch.setattr(joining, "_PARTNERS", 2)
    monkeypatch.setattr(joining, "_GROUP_BYTES", 1)
    assert join_file(tabled, file).path.read_bytes() == data
    rows = rows_of(first.path)
    drop(tabled, "a")
    monkeypatch.setattr(Source, "group_rows", lambda self: 3)  # so that there are several buckets
    assert rows_of(join_file(tabled, file).path) == rows
    assert pq.ParquetFile(first.path).metadata.num_row_groups == 3
    other = write(later(tabled, 1), tmp_path / "other" / "a.parquet")
    with pytest.raises(UserError, match=r"the name is taken; met a table of another file; .*--overwrite"):
        join_file(tabled, other)
    assert join_file(tabled, other, overwrite=True).path.read_bytes() != data


def test_rows_are_found_by_id_or_by_the_sample_alone(tabled: Path, tmp_path: Path):
    objects = pq.read_table(tabled / TABLE).to_pylist()
    by_key = {key: n for n, key in enumerate(dict.fromkeys(row["key"] for row in objects))}
    del by_key[objects[0]["key"]]
    file = write({"key": [*by_key], "n": [*by_key.values()]}, tmp_path / "samples.parquet")
    joined = join_file(tabled, file)
    assert rows_of(joined.path) == [{"n": by_key.get(row["key"])} for row in objects]
    assert joined.about.by == ("key",) and not joined.about.unused
    assert joined.about.without_partner == sum(row["key"] == objects[0]["key"] for row in objects)
    by_id = {"key": [row["key"] for row in objects], "id": [row["id"] for row in objects], "n": [*range(len(objects))]}
    joined = join_file(tabled, write(by_id, tmp_path / "ids.parquet"))
    assert rows_of(joined.path) == [{"n": n} for n in range(len(objects))] and joined.about.by == ("key", "id")


KEY = {"key": ["a", "b"]}
REFUSED = {
    "no column of keys; met object, x": {"object": [1, 2], "x": [1, 2]},
    "nothing to join; met no column but key": KEY,
    "a key that is there twice; met 2 rows with key a, object 1, the first of them row 0": {
        "key": ["a", "a"],
        "object": [1, 1],
        "x": [1, 2],
    },
    "row 1: a row without a key; met no key": {"key": ["a", None], "x": [1, 2]},
    "a column that the table of objects has; met Area": {**KEY, "Area": [1, 2]},
    "two columns of one name; met x and X": {**KEY, "x": [1, 2], "X": [1, 2]},
    "a column of another type; met timestamp": {**KEY, "x": pa.array([0, 1], pa.timestamp("s"))},
    "a column of another type; met struct": {**KEY, "x": [{"y": 1}, {"y": 2}]},
    "a column of another type; met null": {**KEY, "x": [None, None]},
    "key: a column of keys; met int64; wanted texts": {"key": [1, 2], "x": [1, 2]},
    "object: a column of keys; met double; wanted whole numbers": {**KEY, "object": [1.0, 2.0], "x": [1, 2]},
    "the name of a column; met .*wanted 1 to 200 printable": {**KEY, "x\n": [1, 2]},
}


@pytest.mark.parametrize("wanted", REFUSED)
def test_a_file_that_cannot_be_joined_is_one_line(tabled: Path, tmp_path: Path, wanted: str):
    before = files_of(tabled)
    with pytest.raises(UserError, match=wanted) as caught:
        join_file(tabled, write(REFUSED[wanted], tmp_path / "late.parquet"))
    assert "\n" not in str(caught.value)
    assert {**files_of(tabled), LIST: b""} == {**before, LIST: b""}


def test_a_damaged_file_is_one_line(tabled: Path, tmp_path: Path):
    file = write(later(tabled), tmp_path / "late.parquet", compression="none", write_page_checksum=True)
    data = bytearray(file.read_bytes())
    data[len(data) // 4] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="damaged file"):
        join_file(tabled, file)
    file.write_bytes(data[:-9])
    with pytest.raises(UserError, match="not a parquet file"):
        join_file(tabled, file)
    with pytest.raises(UserError, match="no such file"):
        join_file(tabled, tmp_path / "none.parquet")


@pytest.mark.parametrize("name", ["objects", "pictures", "area", "Captions", "a-b", "1a", "../a", "a.b", "a" * 65, ""])
def test_names_that_a_table_cannot_have(tabled: Path, tmp_path: Path, name: str):
    with pytest.raises(UserError, match=r"--as: (not a name of a table|the name is taken)"):
        join_file(tabled, write({**KEY, "x": [1, 2]}, tmp_path / "late.parquet"), name)


def test_a_file_of_somebody_else_is_not_written_over(tabled: Path):
    file = write({**KEY, "x": [1, 2]}, tabled / "late.parquet")
    data = file.read_bytes()
    with pytest.raises(UserError, match="met a file that is no joined table"):
        join_file(tabled, file, overwrite=True)
    with pytest.raises(UserError, match="no such joined table; met late; wanted none has been joined"):
        drop(tabled, "late")
    assert file.read_bytes() == data


def test_a_table_of_an_earlier_state_is_refused_and_joined_again(tabled: Path, tmp_path: Path):
    file = write(later(tabled), tmp_path / "late.parquet")
    joined = join_file(tabled, file)
    shards = ShardSet(tabled)
    assert "late.parquet" in choose(shards, "score >= 0").tables
    manifest = replace(shards.manifest, selection="another state")
    (tabled / MANIFEST).write_bytes(manifest.to_bytes())
    (tabled / LIST).unlink()
    write_table(tabled, 1)
    record_table(tabled, manifest, TABLE, TableInfo.of_file(tabled / TABLE, manifest.objects))
    with pytest.raises(UserError, match=r"late.parquet: not a table of this set; wanted .*; join it again"):
        choose(ShardSet(tabled), "score >= 0")
    record_table(tabled, manifest, "late.parquet", joined.info)  # as a copy of another set would have it
    with pytest.raises(
        UserError, match=r"joined to another state of the set; met \w{16}; wanted .* join it again with"
    ):
        choose(ShardSet(tabled), "score >= 0")
    (tabled / LIST).unlink()
    assert not join_file(tabled, file).was_there
    assert choose(ShardSet(tabled), "score >= 0").tables == {"late.parquet": file_sha256(joined.path)}


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["replace", "record", "spill", "listed"])
def test_a_killed_join_leaves_nothing_half_written(
    tabled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    """Killed before the table is renamed, before or after it is listed, or when its rows are in buckets."""
    file = write(later(tabled), tmp_path / "late.parquet")
    before = files_of(tabled)
    names = {"replace": "os.replace", "record": "shards.join.record_table", "spill": "shards.join._write_rows"}
    name = names.get(moment, "os.unlink")
    program = f"""
import os, sys, signal
from pathlib import Path
import shards.join
real = {name}
def kill(*args):
    if {{"spill": "", "listed": ".tables.lock"}}.get({moment!r}, "late") in str(args):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
{name} = kill
shards.join.join_file(Path({str(tabled)!r}), Path({str(file)!r}))
"""
    assert subprocess.run([sys.executable, "-c", program], stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    killed = {name: data for name, data in files_of(tabled).items() if not name.startswith(".")}
    complete = {"late.parquet"} if moment in ("record", "listed") else set()
    assert {name for name in killed if killed[name] != before.get(name)} - {LIST} == complete
    if moment != "listed":  # what was left of a table goes with the join of another one
        join_file(tabled, write(later(tabled), tmp_path / "other.parquet"))
        assert not [*tabled.glob(".*")]
        drop(tabled, "other")
    assert join_file(tabled, file).was_there == (moment == "listed")
    assert not [*tabled.glob(".*")]
    assert choose(ShardSet(tabled), "score >= 0").counts.any()


def test_the_commands_join_and_drop(tabled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = write(later(tabled), tmp_path / "late.parquet")
    sets.join(tabled, file, "scores")
    sets.join(tabled, file, "scores")
    sets.join(tabled, drop="scores")
    first, again, dropped = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tabled / 'scores.parquet'}: ") and " up to date;" in again and "up to date" not in first
    assert dropped == f"{tabled / 'scores.parquet'}: removed"
    with pytest.raises(UserError, match="a file or --drop"):
        sets.join(tabled, file, drop="scores")
