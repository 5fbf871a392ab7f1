"""Files that appear whole or not at all."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.atomic import atomic_file, atomic_parquet, atomic_write

SCHEMA = pa.schema([("key", pa.string())])
TABLE = pa.table({"key": ["a", "b"]}, SCHEMA)


def write_bytes(path: Path, fails: bool) -> None:
    with atomic_file(path, path.with_name("temporary")) as file:
        file.write(b"new")
        if fails:
            raise RuntimeError


def write_parquet(path: Path, fails: bool) -> None:
    with atomic_parquet(path, SCHEMA) as writer:
        writer.write_table(TABLE)
        if fails:
            raise RuntimeError


@pytest.mark.parametrize("write", [write_bytes, write_parquet])
def test_a_file_is_replaced_whole_and_a_failure_leaves_the_old_one_alone(tmp_path, write):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError):
        write(path, True)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    write(path, False)
    assert (path.read_bytes() == b"new") if write is write_bytes else pq.read_table(path).equals(TABLE)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_making_lies_in_the_folder_that_is_given(tmp_path, monkeypatch):
    made: list[tuple[Path, Path]] = []

    def rename(source: Path, target: Path) -> None:
        made.append((source.parent, target))
        source.rename(target)

    monkeypatch.setattr("shards.atomic.os.replace", rename)
    work = tmp_path / "work"
    work.mkdir()
    atomic_write(tmp_path / "a", b"1", work)
    atomic_write(tmp_path / "b", b"2")
    assert made == [(work, tmp_path / "a"), (tmp_path, tmp_path / "b")]
