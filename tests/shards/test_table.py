import json
import os
import random
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import table, table_file
from shards.errors import UserError
from shards.lock import hold_lock
from shards.reader import ShardSet
from shards.report import Report
from shards.table import TABLE, check_tables, open_table, rows_of, write_table, write_tables
from shards.table_list import LIST, TableInfo, record_table
from tests.conftest import files_of, without_tables
from tests.killed import fork_killed_at
from tests.shards.conftest import stored_samples, write_set

VERSION_1 = Path(__file__).with_name("version_1")


@pytest.fixture
def own(request, tmp_path):
    """A copy of the set that the parameter names."""
    source = VERSION_1 / "folder" if request.param == "version_1" else request.getfixturevalue(request.param)
    return without_tables(Path(shutil.copytree(source, tmp_path / "set")))


def expected_rows(folder):
    """The table, from the arrays and the JSON that the reader returns."""
    rows = []
    for position, sample in enumerate(ShardSet(folder)):
        meta = sample["meta"]
        count = len(meta["frames"])
        numbers = [""] if count == 1 else [str(k + 1) for k in range(count)]
        for n, item in enumerate(meta["objects"]):
            areas = [float(np.mean(sample[f"masks{k}"][n])) for k in numbers]
            texts = [text for text in item["texts"] if isinstance(text, str)]
            rows.append(
                {
                    "key": sample["__key__"],
                    "position": position,
                    "object": n,
                    "id": item["id"],
                    "source": meta["source"],
                    "path": meta["path"],
                    "split": meta.get("split"),
                    "frames": count,
                    "height": meta["frames"][0]["height"],
                    "width": meta["frames"][0]["width"],
                    "areas": areas,
                    "area": sum(areas) / count,
                    "area_min": min(areas),
                    "area_max": max(areas),
                    "cells": [int(np.count_nonzero(sample[f"prompt_masks{k}"][n])) for k in numbers],
                    "filled": item["filled"],
                    "texts": texts,
                    "words": max([len(text.split()) for text in texts] or [0]),
                }
            )
    return rows


@pytest.mark.parametrize("own", ["mixed_set", "small_set", "version_1"], indirect=True)
def test_one_row_per_object_of_every_version_and_nothing_else_in_the_set_changes(own):
    before = files_of(own)
    assert write_table(own, 2) == (ShardSet(own).manifest.objects, False)
    after = files_of(own)
    written = after.pop(TABLE)
    del after[LIST]
    assert after == before
    found = pq.read_table(own / TABLE).to_pylist()
    expected = expected_rows(own)
    assert expected
    assert [{name: row[name] for name in expected[0]} for row in found] == expected
    assert write_table(own) == (len(found), True)
    assert write_table(own, 1, overwrite=True) == (len(found), False)
    assert (own / TABLE).read_bytes() == written  # by one thread


def test_what_a_source_says_of_an_object_and_its_sample(tmp_path, small_set):
    sample = stored_samples(small_set)[0]
    item = sample.meta["objects"][0]
    item |= {"category": "cat", "score": 0.5, "crowd": True, "bbox": [1, 2], "source_keys": {"filled": "no"}}
    item["texts"] = ["a\ud800", "two words here", "x y"]
    sample.meta["split"] = "val"
    sample.meta["expressions"] = [
        {"text": "all", "objects": [one["id"] for one in sample.meta["objects"]]},
        {"text": "none", "objects": []},
        {"text": "it", "objects": [item["id"]]},
    ]
    write_set(tmp_path / "set", ShardSet(small_set).manifest, [sample])
    write_table(tmp_path / "set")
    first, *others = pq.read_table(tmp_path / "set" / TABLE).to_pylist()
    assert first["texts"] == ["a\\ud800", "two words here", "x y"]
    assert first["words"] == 3
    assert (first["category"], first["split"], first["expressions"]) == ("cat", "val", ["all", "it"])
    assert json.loads(first["more"]) == {"score": 0.5, "crowd": True, "filled": "no"}
    assert all(row["expressions"] == ["all"] and row["category"] is None for row in others)


def test_a_row_group_ends_after_a_fixed_number_of_rows(small_set, tmp_path, monkeypatch):
    own = without_tables(Path(shutil.copytree(small_set, tmp_path / "set")))
    monkeypatch.setattr(table_file, "ROW_GROUP", 5)
    monkeypatch.setattr(table, "_SAMPLES", 3)
    write_table(own, 3)
    parquet = pq.ParquetFile(own / TABLE)
    sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    total = ShardSet(own).manifest.objects
    assert sizes == [5] * (total // 5) + ([total % 5] if total % 5 else [])
    assert pq.read_table(own / TABLE).column("object").to_pylist() == [row["object"] for row in expected_rows(own)]


def test_a_table_of_another_set_is_refused_and_written_again(small_set, mixed_set, tmp_path):
    own = without_tables(Path(shutil.copytree(small_set, tmp_path / "set")))
    other = without_tables(Path(shutil.copytree(mixed_set, tmp_path / "other")))
    with pytest.raises(UserError, match=r"no table of its objects.* table .*set"):
        open_table(ShardSet(own))
    write_table(other)
    shutil.copy(other / TABLE, own / TABLE)
    with pytest.raises(UserError, match=r"objects\.parquet: a table of another set; .* table .*set"):
        open_table(ShardSet(own))
    assert write_table(own) == (ShardSet(own).manifest.objects, False)
    open_table(ShardSet(own))
    (own / LIST).unlink()
    (own / TABLE).write_bytes(b"PAR1 of somebody")
    with pytest.raises(UserError, match=r"not a table of objects.*--overwrite"):
        write_table(own)
    write_table(own, overwrite=True)
    open_table(ShardSet(own))


def test_verify_names_key_and_column_of_a_wrong_table(small_set, sav_root, tmp_path, here):
    own = without_tables(Path(shutil.copytree(small_set, tmp_path / "set")))
    assert here("table", own).returncode == 0
    assert here("verify-shard", own, "--workers", 1, "--against", sav_root).returncode == 0
    right = pq.read_table(own / TABLE)
    rows = right.to_pylist()
    rows[2]["cells"][0] += 1
    replace_table(own, pa.Table.from_pylist(rows, right.schema))
    done = here("verify-shard", own, "--workers", 1, "--against", sav_root)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if "FAILED" in line]
    assert all(word in line for word in (TABLE, rows[2]["key"], " cells: "))
    replace_table(own, pa.Table.from_pylist(rows[1:], right.schema))
    done = here("verify-shard", own, "--workers", 1)
    assert f"rows of the table; met {len(rows) - 1} rows; wanted {len(rows)} objects" in done.stdout


def replace_table(folder, table):
    """Put another table into a set, as one that it lists with all of its objects."""
    pq.write_table(table, folder / TABLE)
    manifest = ShardSet(folder).manifest
    record_table(folder, manifest, TABLE, TableInfo.of_file(folder / TABLE, manifest.objects))


def test_a_run_that_fails_leaves_no_table_and_no_file(small_set, tmp_path, monkeypatch):
    own = without_tables(Path(shutil.copytree(small_set, tmp_path / "set")))
    before = files_of(own)

    def fail(shards, position, kinds):
        if position == 5:
            raise UserError("broken")
        return rows_of(shards, position, kinds)

    monkeypatch.setattr(table, "rows_of", fail)
    with pytest.raises(UserError, match="broken"):
        write_table(own, 2)
    assert files_of(own) == before
    report = Report()
    check_tables(own, report)
    assert report.ok  # there is none
    monkeypatch.undo()
    for leftover in (".objects.parquet.tmp", ".objects.parquet.lock"):  # of a killed run
        (own / leftover).write_bytes(b"half")
    write_table(own)
    assert files_of(own).keys() == before.keys() | {TABLE, LIST}


def test_the_queries_of_the_document(small_set, tmp_path, monkeypatch, capsys):
    """polars' where it is installed."""
    folder = Path(shutil.copytree(small_set, tmp_path / "shards/sav"))
    monkeypatch.chdir(tmp_path)
    rows = expected_rows(folder)
    text = (Path(__file__).parents[2] / "docs/TABLE.md").read_text("utf-8")
    small, scores = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    pandas, polars = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    limit = max(row["area"] for row in rows)
    found = duckdb.sql(small.replace("0.002", str(limit))).fetchall()
    assert [count for _, count, _ in found] == [sum(row["area"] < limit for row in rows)]
    assert duckdb.sql(scores).fetchall() == [(None, len(rows), np.mean([row["words"] for row in rows]))]
    exec(pandas, {})
    shown = {row["key"] for row in rows if sum(area > 0 for area in row["areas"]) > 1}
    assert capsys.readouterr().out == f"{len(shown)}\n"
    if find_spec("polars"):
        exec(polars, {})
        assert f"sav    ┆ {len(rows)}" in capsys.readouterr().out


def test_killed_at_any_moment_each_table_is_whole_or_not_there_and_nothing_stays(tiny_set, tmp_path, pytestconfig):
    """All of the late moments: with both tables listed, the next call has nothing to write, but files to remove."""
    chance = random.Random(17)
    expected = files_of(tiny_set)
    folder = Path(shutil.copytree(tiny_set, tmp_path / "set"))
    random_moments = [chance.randint(1, 19) for _ in range(pytestconfig.getoption("kills"))]
    left_at_the_end = set()
    for moment in (*random_moments, *range(20, 37)):
        without_tables(folder)
        killed = fork_killed_at(moment, folder, lambda: write_tables(folder))
        found = files_of(folder)
        assert all(found[name] == expected[name] for name in found if name.endswith(".parquet") and name[0] != ".")
        assert killed or moment > 20
        both_were_there = all(was_there for _, was_there in write_tables(folder).values())
        if killed and both_were_there:
            left_at_the_end |= found.keys() - expected.keys()
        assert files_of(folder) == expected
    assert {".objects.parquet.lock", ".tables.lock"} <= left_at_the_end


def test_what_another_run_holds_is_left_alone(tiny_set, tmp_path):
    """A call that has nothing to write does not wait for it either."""
    folder = Path(shutil.copytree(tiny_set, tmp_path / "set"))
    held = hold_lock(folder / ".objects.parquet.lock", exclusive=True)
    (folder / ".pictures.parquet.tmp").write_bytes(b"half")
    running = files_of(folder)
    try:
        write_tables(folder)
        assert files_of(folder) == running
    finally:
        os.close(held)
    write_tables(folder)
    assert files_of(folder) == files_of(tiny_set)
