"""Tables of sets that hold samples of another one: the bytes of `cli.py table`."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from shards import table_copy
from shards.errors import UserError
from shards.format import MANIFEST
from shards.manifest import Manifest
from shards.reader import ShardSet
from shards.recode import recode
from shards.select import sample, split
from shards.table import write_tables
from shards.table_copy import write_copied_tables
from shards.table_file import KINDS
from shards.table_list import LIST, JoinedInfo, TableInfo, record_table
from tests.conftest import files_of

NAMES = {LIST, *(kind.name for kind in KINDS)}
WRITE = {
    "split": lambda folder, out: split(folder, out, 0.5, "sample", 1),
    "sample": lambda folder, out: sample(folder, out / "set", 3, 1, 10**9),
    "raw": lambda folder, out: recode(folder, out / "set", "raw"),
    "jpeg": lambda folder, out: recode(folder, out / "set", "jpeg"),
}


def tables_of(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(folder).items() if name in NAMES}


@pytest.fixture
def without(mixed_set, tmp_path):
    """A set of an older release."""
    folder = Path(shutil.copytree(mixed_set, tmp_path / "old"))
    for name in NAMES:
        (folder / name).unlink()
    return folder


@pytest.mark.parametrize("has_tables", [True, False])
@pytest.mark.parametrize("verb", WRITE)
def test_rows_come_from_the_source_or_from_the_samples(verb, has_tables, mixed_set, without, tmp_path, monkeypatch):
    read = []
    batches = table_copy.sample_batches

    def recorded(shards, kinds, *more):
        read.append([kind.name for kind in kinds])
        return batches(shards, kinds, *more)

    monkeypatch.setattr(table_copy, "sample_batches", recorded)
    WRITE[verb](mixed_set if has_tables else without, tmp_path / "new")
    sets = sorted(path.parent for path in (tmp_path / "new").rglob(MANIFEST))
    assert len(sets) == (2 if verb == "split" else 1)
    made = [kind.name for kind in KINDS if not has_tables or (kind.of_pictures and verb == "jpeg")]
    assert read == [made] * len(sets) * bool(made)
    for folder in sets:
        found = tables_of(folder)
        write_tables(folder, 2, overwrite=True)
        assert found == tables_of(folder)


def test_a_run_that_is_killed_before_its_manifest_goes_on(sav_set, tmp_path, monkeypatch):
    sample(sav_set, tmp_path / "whole", 5, 0, 3_000_000)
    write = table_copy.atomic_write

    def killed(path, *more, **options):
        if path.name == LIST:
            raise KeyboardInterrupt
        write(path, *more, **options)

    monkeypatch.setattr(table_copy, "atomic_write", killed)
    with pytest.raises(KeyboardInterrupt):
        sample(sav_set, tmp_path / "set", 5, 0, 3_000_000)
    assert not {LIST, MANIFEST} & {path.name for path in (tmp_path / "set").iterdir()}
    monkeypatch.undo()
    sample(sav_set, tmp_path / "set", 5, 0, 3_000_000)
    assert files_of(tmp_path / "set") == files_of(tmp_path / "whole")


def test_joined_tables_are_left_out_and_named(sav_set, tmp_path, capsys):
    own = Path(shutil.copytree(sav_set, tmp_path / "sav"))
    (own / "captions.parquet").write_bytes(b"PAR1")
    info = TableInfo("", 0, 4, JoinedInfo("cap.parquet", "", ("key",)))
    record_table(own, Manifest.read(own), "captions.parquet", info)
    sample(own, tmp_path / "set", 2, 0, 10**9)
    assert not (tmp_path / "set/captions.parquet").exists()
    expected = (
        f"{tmp_path}/set: tables that were joined are left out: captions.parquet (of cap.parquet); join them again:"
    )
    assert expected in capsys.readouterr().err


def test_rows_in_another_order_are_made_of_the_samples(sav_set, tmp_path, monkeypatch):
    """A set whose samples were taken in another order than that of the source."""
    own = Path(shutil.copytree(sav_set, tmp_path / "sav"))
    shards = ShardSet(own)
    before = tables_of(own)
    (tmp_path / "work").mkdir()
    write_copied_tables(shards, shards, np.arange(len(shards))[::-1], tmp_path / "work", True)
    assert tables_of(own) == before


def test_a_damaged_table_of_the_source_is_one_line(sav_set, tmp_path):
    own = Path(shutil.copytree(sav_set, tmp_path / "sav"))
    path = own / KINDS[0].name
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"{path}: a damaged table; .*table {own} --overwrite"):
        sample(own, tmp_path / "set", 2, 0, 10**9)
    write_tables(own, overwrite=True)
    sample(own, tmp_path / "set", 2, 0, 10**9)
    sample(sav_set, tmp_path / "other", 2, 0, 10**9)
    assert files_of(tmp_path / "set") == files_of(tmp_path / "other")
