import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import where
from shards.errors import UserError
from shards.join import join_file
from shards.reader import ShardSet
from shards.table import TABLE, write_table
from shards.where import check_condition, choose


@pytest.fixture(scope="module")
def tabled(small_set, tmp_path_factory):
    """A copy of `small_set` with its table. Not to be changed."""
    folder = Path(shutil.copytree(small_set, tmp_path_factory.mktemp("where") / "sav"))
    write_table(folder, 2)
    return folder


@pytest.fixture(scope="module")
def mixed_tabled(mixed_set, tmp_path_factory):
    folder = Path(shutil.copytree(mixed_set, tmp_path_factory.mktemp("where") / "mixed"))
    write_table(folder, 2)
    return folder


CONDITIONS = {
    "area > 0.02 and frames = 2": lambda row: row["area"] > 0.02 and row["frames"] == 2,
    "position % 2 = 0 or key like 'a%'": lambda row: row["position"] % 2 == 0 or row["key"].startswith("a"),
    "list_max(cells) between 5 and 60": lambda row: 5 <= max(row["cells"]) <= 60,
    "len(list_filter(areas, lambda x: x > 0.03)) = 2": lambda row: sum(x > 0.03 for x in row["areas"]) == 2,
    "nullif(words, 0) is null and if(area_min > 0.02, true, false)": lambda row: (
        not row["words"] and row["area_min"] > 0.02
    ),
    "AREA_MAX > 0.02 -- the largest": lambda row: row["area_max"] > 0.02,
    "not (category = 'a') or position + 1 > 4": lambda row: row["position"] > 3,  # a null is not "a", nor another
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_condition_chooses_what_python_chooses(tabled, condition, monkeypatch):
    read = where.read_batches
    monkeypatch.setattr(where, "read_batches", lambda file, path, columns: read(file, path, columns, 3))
    rows = pq.read_table(tabled / TABLE).to_pylist()
    expected = [bool(CONDITIONS[condition](row)) for row in rows]
    assert any(expected) and not all(expected)
    chosen = choose(ShardSet(tabled), condition)
    assert chosen.objects.tolist() == expected
    by_sample = [[] for _ in ShardSet(tabled).index]
    for row, one in zip(rows, expected, strict=True):
        by_sample[row["position"]] += [row["object"]] * one
    assert [chosen.of(i) for i in range(len(by_sample))] == by_sample
    assert chosen.counts.tolist() == [len(one) for one in by_sample]


def test_samples_without_objects_have_none_to_choose(mixed_tabled):
    chosen = choose(ShardSet(mixed_tabled), "list_contains(texts, 'the rocket')")
    assert np.flatnonzero(chosen.counts).tolist() == [4] and chosen.starts[-1] == len(chosen.objects) == 2
    assert str(chosen) == (
        "where list_contains(texts, 'the rocket'): 1 of 2 objects, in 1 of 8 samples; the others are left out"
    )
    with pytest.raises(UserError, match="no object is chosen; met where words > 99"):
        choose(ShardSet(mixed_tabled), "words > 99")


REFUSED = {
    "area_mx > 0.1": r"no such column; met area_mx; wanted area_max",
    "area": "not a condition; met a value of type DOUBLE",
    "area >": "not a condition; met syntax error",
    "": "not a condition",
    "area > 1; DROP TABLE objects": "not a condition",
    "true); DROP TABLE objects; SELECT (true": "not a condition",
    "true); ATTACH 'x.db'; SELECT (true": "not a condition",
    "true); COPY objects TO 'x.csv'; SELECT (true": "not a condition",
    "true); SET threads = 4; SELECT (true": "not a condition",
    "true), (true": "not one expression",
    "true) FROM objects WHERE (true": "not one expression",
    "true) UNION SELECT (true": "not one expression",
    "true) LIMIT (1": "not one expression",
    "(SELECT count(*) FROM 'PATH') > 0": "not allowed in a condition; met a subquery",
    "exists(FROM read_csv('PATH'))": "not allowed in a condition; met a subquery",
    "area > (SELECT avg(area) FROM objects)": "not allowed in a condition; met a subquery",
    "read_csv('PATH') is null": "no such function in a condition; met read_csv",
    "read_text('PATH') = ''": "no such function in a condition; met read_text",
    "area > avg(area)": "no such function in a condition; met avg",
    "row_number() over () = 1": "met a function over several rows",
    "random() > 0.5": "no such function in a condition; met random",
    "now() > '2020-01-01'::timestamp": "no such function in a condition; met now",
    "current_setting('threads') = '1'": "no such function in a condition; met current_setting",
    "getenv('HOME') = ''": "no such function in a condition; met getenv",
    "COLUMNS(*) is null": r"not allowed in a condition; met \*",
    "area > $1": "not allowed in a condition; met a parameter",
    "key::integer = 1": "cannot be evaluated",
}


@pytest.mark.parametrize("condition", REFUSED)
def test_what_is_no_condition_is_one_line(tabled, condition):
    with pytest.raises(UserError, match=REFUSED[condition]) as caught:
        choose(ShardSet(tabled), condition.replace("PATH", str(tabled / TABLE)))
    assert "\n" not in str(caught.value)


def test_the_connection_itself_has_no_files_and_no_settings(tabled):
    import duckdb

    with duckdb.connect(":memory:", config=dict(where._LOCKED)) as connection:
        connection.execute("SET lock_configuration = true")
        for statement in (
            f"FROM read_parquet('{tabled / TABLE}')",
            f"FROM '{tabled / TABLE}'",
            "COPY (SELECT 1) TO 'x.csv'",
            "ATTACH 'x.db'",
            "INSTALL httpfs",
            "LOAD httpfs",
            "SET memory_limit = '100GB'",
            "SET enable_external_access = true",
            "FROM tabled",
        ):
            with pytest.raises(duckdb.Error):
                connection.execute(statement).fetchall()


def test_a_condition_that_takes_too_long_is_one_line(tabled, monkeypatch):
    monkeypatch.setattr(where, "_SECONDS", 0.05)
    with pytest.raises(UserError, match=r"takes too long; met more than 0\.05 s"):
        choose(ShardSet(tabled), f"levenshtein(key || '{4000 * 'x'}', '{4000 * 'y'}') > 0")


@pytest.mark.parametrize("name", ["repeat", "lpad", "range", "generate_series", "list_resize", "list_reduce"])
def test_functions_that_make_values_of_any_length_are_refused(name):
    with pytest.raises(UserError, match=f"no such function in a condition; met {name};"):
        check_condition(f"{name}(cells, 1000000000, 1) is null")


def test_a_condition_can_be_checked_without_a_set():
    check_condition("area > 0.002 and words between 2 and 20")
    with pytest.raises(UserError, match=r"no such column; met word; wanted words"):
        check_condition("word > 2")


CHOICE = "area > 0.02"


def chosen_by_python(folder):
    """(Positions of samples, numbers of their objects, areas of these) whose table has an area above 0.02."""
    rows = [row for row in pq.read_table(folder / TABLE).to_pylist() if row["area"] > 0.02]
    return sorted({row["position"] for row in rows}), rows


def test_stats_measure_and_preview_draws_the_chosen_objects_alone(tabled, tmp_path, here):
    positions, rows = chosen_by_python(tabled)
    total = len(pq.read_table(tabled / TABLE))
    assert 0 < len(rows) < total
    done = here("stats", tabled, "--json", "--where", CHOICE, "--out", tmp_path / "page.html")
    (found,) = json.loads(done.stdout)
    assert found["measured"] == len(positions)
    assert found["quantities"]["objects per sample"]["count"] == len(positions)
    assert found["quantities"]["objects per sample"]["mean"] * len(positions) == pytest.approx(len(rows))
    areas = [100 * area for row in rows for area in row["areas"] if area]
    measured = found["quantities"]["area of a region, % of the picture"]
    assert (measured["count"], measured["mean"]) == (len(areas), pytest.approx(np.mean(areas)))
    said = f"where {CHOICE}: {len(rows)} of {total} objects, in {len(positions)} of 8 samples; the others are left out"
    assert found["where"] == said
    here("preview", tabled, "--where", CHOICE, "--out", tmp_path / "pages", "--samples", 100)
    page = (tmp_path / "pages" / "index.html").read_text()
    keys = {row["key"] for row in rows}
    assert {key for key in map(ShardSet(tabled).key, range(8)) if f"<h2>{key}</h2>" in page} == keys
    assert said.replace(">", "&gt;") in page
    assert page.count("object ") >= sum(row["frames"] for row in rows)


def test_split_and_sample_take_samples_whole(tabled, tmp_path, here):
    positions, rows = chosen_by_python(tabled)
    keys = {row["key"] for row in rows}
    done = here("split", tabled, "--out", tmp_path, "--share", 0.5, "--by", "sample", "--where", CHOICE)
    assert done.returncode == 0, done.stderr
    assert f"{len(rows)} of " in done.stderr and "the others are left out" in done.stderr
    parts = [ShardSet(tmp_path / f"sav-{name}") for name in ("train", "val")]
    assert {part.key(i) for part in parts for i in range(len(part))} == keys
    assert all(f", where {CHOICE}; of 8 samples" in part.manifest.selection for part in parts)
    done = here("sample", tabled, "--out", tmp_path / "few", "--n", len(keys), "--where", CHOICE)
    assert done.returncode == 0, done.stderr
    few = ShardSet(tmp_path / "few")
    source = ShardSet(tabled)
    assert [few.key(i) for i in range(len(few))] == [source.key(i) for i in positions]
    assert [few.meta(i) for i in range(len(few))] == [source.meta(i) for i in positions]
    done = here("sample", tabled, "--out", tmp_path / "more", "--n", len(keys) + 1, "--where", CHOICE)
    assert f"too few samples; met {len(keys)} samples, where {CHOICE}" in done.stderr


@pytest.fixture(scope="module")
def joined(tabled, tmp_path_factory):
    """A copy of `tabled` with the tables `captions` and `other`, and their rows. Not to be changed."""
    root = tmp_path_factory.mktemp("joined")
    folder = Path(shutil.copytree(tabled, root / "sav"))
    objects = pq.read_table(folder / TABLE, columns=["key", "object"]).to_pylist()
    rows = [
        {**row, "caption": f"a {n}", "cycle_iou": n / len(objects), 'Odd "name"': n, "tags": ["x"] * (n % 3)}
        for n, row in enumerate(objects)
    ][1:]
    others = [{**{n: row[n] for n in ("key", "object")}, "cycle_iou": 1.0 - row["cycle_iou"], "z": 7} for row in rows]
    for name, made in {"captions": rows, "other": others}.items():
        pq.write_table(pa.Table.from_pylist(made), root / f"{name}.parquet")
        join_file(folder, root / f"{name}.parquet")
    return folder, [{}, *rows]


JOINED = {
    "captions.cycle_iou > 0.4": lambda row: row["cycle_iou"] > 0.4,
    "CAPTION = 'a 3' or Captions.Caption = 'a 4'": lambda row: row["caption"] in ("a 3", "a 4"),
    '"odd ""name""" between 2 and 5 and z = 7': lambda row: 2 <= row['Odd "name"'] <= 5,
    "captions.cycle_iou < other.cycle_iou and frames = 2": lambda row: row["cycle_iou"] < 0.5,
    "len(list_filter(tags, lambda z: z = 'x')) = 2": lambda row: len(row["tags"]) == 2,
    'position > 3 and captions."Odd ""name""" % 2 = 0': lambda row: row["position"] > 3 and row["n"] % 2 == 0,
}


@pytest.mark.parametrize("condition", JOINED)
def test_a_condition_sees_joined_columns(joined, condition, monkeypatch):
    """The rows are zipped whatever the batches' sizes are; an object without a partner is not chosen."""
    folder, rows = joined
    sizes = iter([3, 2, 5])  # of the table of objects, then of each joined table
    read = where.read_batches
    monkeypatch.setattr(where, "read_batches", lambda file, path, columns: read(file, path, columns, next(sizes)))
    objects = pq.read_table(folder / TABLE).to_pylist()
    pairs = zip(objects[1:], rows[1:], strict=True)
    expected = [False, *(JOINED[condition](own | row | {"n": row['Odd "name"']}) for own, row in pairs)]
    assert any(expected)
    chosen = choose(ShardSet(folder), condition)
    assert chosen.objects.tolist() == expected
    named = ["captions.parquet", *["other.parquet"] * ("other" in condition or "z" in condition)]
    assert chosen.tables == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in named}


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ("cycle_iou > 0.5", "a column of several tables; met cycle_iou; wanted captions.cycle_iou or other.cycle_iou"),
        ("captions.cycle_io > 0.5", "no such column; met captions.cycle_io; wanted captions.cycle_iou"),
        ("captio = 'a'", "no such column; met captio; wanted caption"),
        ("captions is not null", "no such column; met captions;"),
        ("objects.captions.cycle_iou > 0", "no such column; met objects.captions.cycle_iou; wanted captions.cycle_iou"),
        ('captions."x""; DROP" > 0', "no such column; met captions"),
        ("captions.caption > (SELECT 1)", "not allowed in a condition; met a subquery"),
    ],
)
def test_what_is_no_joined_column_is_one_line(joined, condition, wanted):
    with pytest.raises(UserError, match=wanted):
        choose(ShardSet(joined[0]), condition)


def test_names_of_joined_columns_cannot_be_statements():
    """Whoever wrote the list of tables decides its columns: they are quoted, and types are looked up."""
    name = 'x" INTEGER); DROP TABLE objects; CREATE TABLE y ("z'
    check_condition(f"captions.{where._quoted(name)} > 0", {"captions": {name: "double"}})
    with pytest.raises(UserError, match="a type of a joined column; met INTEGER"):
        check_condition("captions.x > 0", {"captions": {"x": "INTEGER); DROP TABLE objects; --"}})


def test_a_joined_table_that_is_cut_or_gone_is_one_line(joined, tmp_path):
    folder = Path(shutil.copytree(joined[0], tmp_path / "sav"))
    data = (folder / "captions.parquet").read_bytes()
    (folder / "captions.parquet").write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"not the table that was written; .*; join it again"):
        choose(ShardSet(folder), "caption = 'a 3'")
    (folder / "captions.parquet").unlink()
    with pytest.raises(UserError, match="not the table that was written; met No such file"):
        choose(ShardSet(folder), "caption = 'a 3'")
    assert choose(ShardSet(folder), "z = 7").counts.sum() == len(joined[1]) - 1
