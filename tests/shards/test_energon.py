"""What Megatron-Energon loads a set by: complete, deterministic, and equal to what its own tool writes."""

import json
import random
import re
import shutil
import sqlite3
import tarfile
import uuid
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from shards.energon import prepare
from shards.errors import UserError
from shards.reader import ShardSet
from shards.verification import verify
from tests.conftest import files_of
from tests.killed import fork_killed_at

NAMES = {"dataset.yaml", "split.yaml", "sample_loader.py", "index.sqlite", "index.uuid", ".info.json"}


@pytest.fixture
def prepared(sav_set: Path, tmp_path: Path) -> Path:
    """A copy of `sav_set` with the last quarter of its samples as the part val."""
    folder = Path(shutil.copytree(sav_set, tmp_path / "sav"))
    prepare(folder, 0.25)
    return folder


def test_the_set_stays_valid_and_the_files_are_deterministic(prepared, sav_set, here):
    files = files_of(prepared)
    added = {name for name in files if name not in files_of(sav_set)}
    tars = [path.name for path in sorted(sav_set.glob("*.tar"))]
    assert added == {f".nv-meta/{name}" for name in NAMES} | {f"{tar}.idx" for tar in tars}
    assert verify([prepared]).ok
    done = here("energon", prepared, "--val", "0.25")
    assert done.returncode == 0 and files_of(prepared) == files
    assert f"train: {len(tars) - 1} tars; val: 1 tars" in done.stdout
    assert uuid.UUID(files[".nv-meta/index.uuid"].decode())


def test_killed_at_random_moments_it_is_complete_or_not_there(prepared, sav_set, tmp_path, pytestconfig):
    """Energon reads a folder as prepared where it has `.info.json`, which is written last."""
    chance = random.Random(17)
    expected = files_of(prepared)
    folder = Path(shutil.copytree(sav_set, tmp_path / "again"))
    kills = 0
    for _ in range(pytestconfig.getoption("kills")):
        kills += fork_killed_at(chance.randint(1, 45), folder, lambda: prepare(folder, 0.25))
        assert kills
        found = files_of(folder)
        assert ".nv-meta/.info.json" not in found or found.items() >= expected.items()
    prepare(folder, 0.25)
    assert files_of(folder) == expected


def test_places_are_those_of_the_headers_in_the_tars(prepared):
    """The expectation is made with tarfile: the first header of each sample, and the end of the last member."""
    with sqlite3.connect(prepared / ".nv-meta/index.sqlite") as database:
        stored = database.execute("SELECT * FROM samples ORDER BY rowid").fetchall()
        parts = database.execute("SELECT * FROM sample_parts ORDER BY rowid").fetchall()
    database.close()
    expected, members = [], []
    for number, tar in enumerate(sorted(prepared.glob("*.tar"))):
        with tarfile.open(tar) as opened:
            infos = opened.getmembers()
            end = opened.offset
        groups = [(key, [*group]) for key, group in groupby(infos, lambda info: info.name.partition(".")[0])]
        places = [group[0].offset for _, group in groups] + [end]
        assert np.fromfile(f"{tar}.idx", "<u8").tolist() == places
        expected += [(number, key, n, places[n], places[n + 1] - places[n]) for n, (key, _) in enumerate(groups)]
        for n, (_, group) in enumerate(groups):
            members += [(number, n, i.name.partition(".")[2], i.offset_data, i.size) for i in group]
    assert stored == expected and parts == members
    counts = json.loads((prepared / ".nv-meta/.info.json").read_text())["shard_counts"]
    assert sum(counts.values()) == len(expected) == len(ShardSet(prepared))


def test_a_set_of_one_tar_has_no_two_parts(copied, tmp_path, raw_set):
    with pytest.raises(UserError, match=r"too few tars for two parts; met \d; cut the set in two with .*split"):
        prepare(copied, 0.99)
    assert not (copied / ".nv-meta").exists()


def test_the_real_library_loads_the_arrays_of_each_part(prepared, capsys):
    """Needs megatron-energon. docs/SHARING.md's snippet is run as it is printed, with the arrays of `ShardSet`."""
    pytest.importorskip("megatron.energon")
    document = (Path(__file__).parents[2] / "docs/SHARING.md").read_text("utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", document, re.S)
    local = ShardSet(prepared)
    positions = {local.key(n): n for n in range(len(local))}
    last = local.manifest.shards[-1].samples
    for part, expected in (("train", [*positions][:-last]), ("val", [*positions][-last:])):
        code = snippet.replace('"shards/sav"', repr(str(prepared))).replace('"train"', repr(part))
        code = code.replace("for sample in", "found = []\nfor sample in") + "    found.append(sample)\n"
        names: dict = {}
        exec(compile(code, "docs/SHARING.md", "exec"), names)
        assert sorted(sample.__key__ for sample in names["found"]) == sorted(expected)
        for sample in names["found"]:
            one = local[positions[sample.__key__]]
            assert sample.meta == one.pop("meta") and one.pop("__key__")
            assert sample.arrays.keys() == one.keys()
            for name, array in one.items():
                assert sample.arrays[name].dtype == array.dtype and np.array_equal(sample.arrays[name], array), name
    assert "'masks2': (1, 1024, 1024)" in capsys.readouterr().out


def test_the_librarys_own_tool_writes_the_same_places(prepared, sav_set, tmp_path, capsys):
    pytest.importorskip("megatron.energon")
    from megatron.energon.cli.main import main as tool

    theirs = Path(shutil.copytree(sav_set, tmp_path / "theirs"))
    options = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset", "--num-workers", "1"]
    tool(["prepare", str(theirs), *options], standalone_mode=False)
    for path in theirs.glob("*.idx"):
        assert path.read_bytes() == (prepared / path.name).read_bytes()
    rows = []
    for folder in (prepared, theirs):
        with sqlite3.connect(folder / ".nv-meta/index.sqlite") as database:
            names = database.execute("SELECT type, name, tbl_name FROM sqlite_master ORDER BY name").fetchall()
            tables = [sorted(database.execute(f"SELECT * FROM {name}")) for name in ("samples", "sample_parts")]
        database.close()
        rows.append((names, tables))
    assert rows[0] == rows[1]
    counts = [json.loads((folder / ".nv-meta/.info.json").read_text())["shard_counts"] for folder in (prepared, theirs)]
    assert counts[0] == counts[1]
