"""Tables that sharding writes: the bytes of `cli.py table`, from parts that tasks leave."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline import set_tables
from pipeline.request import make_request
from pipeline.run import merge, run, run_task
from pipeline.task import PART
from pipeline.workspace import TaskShare
from shards import table_file
from shards.errors import UserError
from shards.format import MANIFEST, WORK
from shards.manifest import Manifest
from shards.storage.store import LocalFolder
from shards.table import write_tables
from shards.table_file import KINDS
from shards.table_list import LIST, JoinedInfo, TableInfo, record_table
from tests import mixed
from tests.conftest import files_of, sav_request, shard_sav
from tests.layouts import CASES

NAMES = {LIST, *(kind.name for kind in KINDS)}


def tables_of(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(folder).items() if name in NAMES}


def written_by_table(folder: Path, copy: Path) -> dict[str, bytes]:
    """The files that `cli.py table` writes for this set."""
    shutil.copytree(folder, copy)
    for name in NAMES:
        (copy / name).unlink()
    write_tables(copy, 2)
    return tables_of(copy)


@pytest.fixture(scope="module")
def tasks_once(sav_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks") / "sav"
    run_task(sav_request(sav_root), folder, TaskShare(0, 1), 1)
    return folder


@pytest.fixture
def tasks(tasks_once, tmp_path):
    """An unfinished set all of whose shards stand."""
    return Path(shutil.copytree(tasks_once, tmp_path / "sav"))


@pytest.mark.parametrize(("source", "shards"), [("mixed", 8), ("coco", 1), ("sav-video", 2)])
def test_the_bytes_are_those_of_cli_table(source, shards, tmp_path, monkeypatch):
    """Also where a row group ends within a sample, and a part has several batches."""
    monkeypatch.setattr(table_file, "ROW_GROUP", 3)
    monkeypatch.setattr(table_file, "_PART_ROWS", 2)
    root = tmp_path / "raw"
    root.mkdir()
    if source == "mixed":
        request = make_request(mixed.SOURCE, mixed.write_raw(root), shard_bytes=1)
    else:
        CASES[source].write(root)
        options = {"split": "manual"} if source == "sav-video" else {}
        request = make_request(source, root, shard_bytes=1, **options)
    manifest = run(request, tmp_path / "set", 1, 0.5).manifest
    assert len(manifest.shards) == shards
    assert tables_of(tmp_path / "set") == written_by_table(tmp_path / "set", tmp_path / "copy")


def test_the_bytes_do_not_depend_on_workers_tasks_or_a_kill(sav_root, sav_set, tasks, tmp_path, monkeypatch):
    """Those of two workers, of Ray and of killed runs are compared with `sav_set` where these are tested."""
    assert tables_of(sav_set) == written_by_table(sav_set, tmp_path / "copy")
    put = LocalFolder.put

    def killed(self, name, data):
        if name in (LIST, MANIFEST):
            raise KeyboardInterrupt
        put(self, name, data)

    monkeypatch.setattr(LocalFolder, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        merge(tasks, 0.05)
    assert not {LIST, MANIFEST} & {path.name for path in tasks.iterdir()}
    monkeypatch.undo()
    merge(tasks, 0.05)
    assert files_of(tasks) == files_of(sav_set)
    (tasks / WORK).mkdir()  # as a kill at the very end leaves it
    merge(tasks, 0.05)
    assert not (tasks / WORK).exists()


def forget_part(folder: Path) -> None:
    """Make the note of the second shard one of an older release."""
    note = folder / WORK / "sav-000001.json"
    body = json.loads(note.read_bytes())
    del body["parts"]
    note.write_text(json.dumps(body))


def test_shards_of_an_older_release_are_read_again(tasks, sav_set, capsys):
    forget_part(tasks)
    merge(tasks, 0.05)
    assert files_of(tasks) == files_of(sav_set)
    assert (
        f"{tasks}: an older release wrote shards of this set without rows for objects.parquet"
        in capsys.readouterr().err
    )


def test_shards_of_an_older_release_in_an_object_store_give_no_table(tasks, sav_set, capsys, monkeypatch):
    forget_part(tasks)
    (tasks / "objects.parquet").write_bytes(b"of an earlier set")
    monkeypatch.setattr(set_tables, "LocalFolder", type(None))
    merge(tasks, 0.05)
    assert "pictures.parquet: it has none" in capsys.readouterr().err
    assert not (tasks / "objects.parquet").exists()
    assert json.loads((tasks / LIST).read_bytes())["tables"] == {}
    write_tables(tasks)
    assert files_of(tasks) == files_of(sav_set)


@pytest.mark.parametrize("fault", ["damaged", "gone"])
def test_a_shard_whose_part_is_lost_is_written_again(tasks, sav_root, sav_set, fault):
    part = next((tasks / WORK).glob(f"sav-000001.*{PART}"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    if fault == "damaged":
        part.write_bytes(data)
        with pytest.raises(UserError, match=rf"{part.name}: damaged; .* command again"):
            merge(tasks, 0.05)
    else:
        part.unlink()
    with pytest.raises(UserError, match="1 of 3 missing: sav-000001"):
        merge(tasks, 0.05)
    run_task(sav_request(sav_root), tasks, TaskShare(0, 1), 1)
    merge(tasks, 0.05)
    assert files_of(tasks) == files_of(sav_set)


def test_tables_of_an_older_set_go_with_it(sav_root, sav_set, tmp_path):
    """Whatever stands under another name stays."""
    out = Path(shutil.copytree(sav_set, tmp_path / "sav"))
    for name in ("captions.parquet", "mine.parquet"):
        (out / name).write_bytes(b"PAR1")
    record_table(out, Manifest.read(out), "captions.parquet", TableInfo("", 0, 4, JoinedInfo("", "", ())))
    shard_sav(sav_root, out, overwrite=True)
    assert files_of(out) == {**files_of(sav_set), "mine.parquet": b"PAR1"}
