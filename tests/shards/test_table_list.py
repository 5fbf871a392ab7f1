import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from shards.errors import UserError
from shards.manifest import Manifest
from shards.reader import ShardSet
from shards.report import Report
from shards.table import TABLE, open_table, write_table
from shards.table_list import LIST, JoinedInfo, TableInfo, check_file, check_list, read_tables, record_table
from tests.conftest import files_of, without_tables

JOINED = JoinedInfo("cap.parquet", "ab" * 32, ("key", "object"), {"score": "double", "caption": "string"}, 3, 1)


@pytest.fixture
def own(small_set, tmp_path):
    """A copy of a set, with its table."""
    folder = without_tables(Path(shutil.copytree(small_set, tmp_path / "set")))
    write_table(folder)
    return folder


def failures(folder):
    report = Report()
    check_list(folder, Manifest.read(folder), report)
    return [str(failure) for failure in report.failures]


def test_the_list_has_size_rows_and_checksum_of_each_table_in_bytes_that_follow_from_them(own):
    manifest = Manifest.read(own)
    data = (own / TABLE).read_bytes()
    expected = {"sha256": hashlib.sha256(data).hexdigest(), "rows": manifest.objects, "bytes": len(data)}
    first = (own / LIST).read_bytes()
    body = json.loads(first)
    checksum = body.pop("tables_sha256")
    assert body == {"manifest": manifest.checksum, "tables": {TABLE: expected}}
    assert checksum == hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (own / "captions.parquet").write_bytes(b"PAR1")
    info = TableInfo.of_file(own / "captions.parquet", manifest.objects, JOINED)
    record_table(own, manifest, "captions.parquet", info)
    assert read_tables(own, manifest) == {TABLE: TableInfo(**expected), "captions.parquet": info}
    assert json.loads((own / LIST).read_bytes())["tables"]["captions.parquet"]["joined"] == {
        "origin": "cap.parquet",
        "origin_sha256": "ab" * 32,
        "by": ["key", "object"],
        "columns": {"caption": "string", "score": "double"},
        "without_partner": 3,
        "unused": 1,
    }
    assert failures(own) == []
    (own / LIST).unlink()
    for name in ("captions.parquet", TABLE):  # the other way round
        record_table(own, manifest, name, info if name != TABLE else TableInfo(**expected))
    record_table(own, manifest, "captions.parquet", replace(info, rows=1))
    assert failures(own) == [f"{own / LIST}: rows of captions.parquet; met 1; wanted {manifest.objects} objects"]
    with pytest.raises(ValueError, match="not the name"):
        record_table(own, manifest, "../a.parquet", info)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body | {"manifest": "0" * 64}, "its own"),
        (lambda body: {"manifest": body["manifest"]}, "not a list of tables"),
        (lambda body: [], "not a list of tables"),
    ],
)
def test_a_damaged_list_is_one_line_and_is_written_again(own, change, message):
    before = files_of(own)
    (own / LIST).write_text(json.dumps(change(json.loads(before[LIST]))))
    with pytest.raises(UserError, match=f"{message}.*table .*set"):
        open_table(ShardSet(own))
    assert len(failures(own)) == 1
    write_table(own)
    assert files_of(own) == before


def test_a_list_of_another_state_of_the_set_is_refused_and_its_entries_are_dropped(own):
    manifest = Manifest.read(own)
    record_table(own, manifest, "captions.parquet", TableInfo("", 0, 0, JOINED))
    changed = replace(manifest, selection="others")
    (own / "manifest.json").write_bytes(changed.to_bytes())
    with pytest.raises(UserError, match=rf"another state of the set; met {manifest.checksum[:16]}"):
        read_tables(own, changed)
    write_table(own)
    assert [*read_tables(own, changed)] == [TABLE]


def test_a_table_that_the_list_does_not_name_with_its_size_is_none(own):
    shards = ShardSet(own)
    tables = read_tables(own, shards.manifest)
    with open(own / TABLE, "ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=rf"not the table that was written; met {tables[TABLE].bytes + 1} bytes"):
        open_table(shards)
    assert write_table(own) == (shards.manifest.objects, False)
    with open(own / TABLE, "r+b") as file:
        file.seek(100)
        file.write(b"x")
    assert check_file(own / TABLE, tables) == tables[TABLE]  # it is not read
    (line,) = failures(own)
    assert f"{TABLE}: SHA-256; met" in line
    assert line.endswith(tables[TABLE].sha256)
    (own / TABLE).unlink()
    assert "met No such file" in failures(own)[0]
    write_table(own)
    other = TableInfo("", 0, 0, JOINED)
    (own / LIST).unlink()
    record_table(own, shards.manifest, "captions.parquet", other)
    with pytest.raises(UserError, match=r"objects\.parquet: not a table of this set; wanted an entry of tables\.json"):
        open_table(shards)
    assert write_table(own) == (shards.manifest.objects, True)
    open_table(shards)
    with pytest.raises(UserError, match=r"captions\.parquet: .*join it again"):
        check_file(own / "captions.parquet", {"captions.parquet": other})


def test_a_table_of_an_older_release_without_a_list_is_opened_and_put_into_one(own):
    before = files_of(own)
    (own / LIST).unlink()
    assert open_table(ShardSet(own)).metadata.num_rows == ShardSet(own).manifest.objects
    assert failures(own) == []
    assert write_table(own)[1]
    assert files_of(own) == before
