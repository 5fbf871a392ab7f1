"""A path names one set, a folder of sets, or a pattern; on this machine or at a URL."""

import json
import shutil
from pathlib import Path

import pytest
import s3fs

from shards.errors import UserError
from shards.sets import find_sets, open_sets
from shards.storage.cache import Cache
from shards.verification import verify
from tests.servers import reach


@pytest.fixture
def folder(small_set, tmp_path, monkeypatch) -> Path:
    """The folder `shards` of two sets, a hidden copy and folders that are none; it is below the current one."""
    shards = tmp_path / "shards"
    for name in ("sav", "sav-video", "._sav", "deep/below"):
        shutil.copytree(small_set, shards / name)
    (shards / "logs").mkdir()
    (shards / "logs" / "train.log").write_text("x")
    (shards / "README").write_text("x")
    monkeypatch.chdir(tmp_path)
    return shards


@pytest.mark.parametrize(
    "paths, found",
    [
        (["shards/sav"], ["shards/sav"]),
        (["shards/"], ["shards/sav", "shards/sav-video"]),
        (["shards/*"], ["shards/deep/below", "shards/sav", "shards/sav-video"]),
        (["shards/sav*"], ["shards/sav", "shards/sav-video"]),
        (["shards/sav-*", "shards"], ["shards/sav-video", "shards/sav"]),
        (["shards", "shards/sav"], ["shards/sav-video", "shards/sav"]),
        (["shards/sav", "shards/sav"], ["shards/sav", "shards/sav"]),
        (["none", "shards/logs"], ["none", "shards/logs"]),
        (["s3://bucket/shards"], ["s3://bucket/shards"]),
    ],
)
def test_what_paths_stand_for(folder, paths, found):
    assert find_sets(paths) == found


def test_a_folder_whose_name_is_a_pattern_is_a_folder(folder):
    (folder / "sav").rename(folder / "[sav]")
    assert find_sets(["shards/[sav]"]) == ["shards/[sav]"]


def test_a_pattern_that_matches_no_set_is_one_line(folder):
    with pytest.raises(UserError, match=r"shards/l\*: nothing matches"):
        find_sets(["shards/l*"])


@pytest.mark.parametrize("left", ["", ".work/plan", "refcoco-000000.tar"])
def test_a_set_that_is_not_finished_or_empty_is_one_line(folder, left):
    (folder / "refcoco").mkdir()
    if left:
        (folder / "refcoco" / left).parent.mkdir(exist_ok=True)
        (folder / "refcoco" / left).write_text("x")
    with pytest.raises(UserError, match=r"^shards/refcoco/manifest.json: no manifest: not a finished shard set"):
        open_sets(["shards"])


def test_every_verb_takes_a_folder_of_sets(folder, here):
    done = here("verify-shard", "shards/", "--workers", "1")
    assert done.returncode == 0 and "16 samples" in done.stdout, done.stderr
    done = here("stats", "shards/", "--json", "--samples", "1")
    assert [one["folder"] for one in json.loads(done.stdout)] == ["shards/sav", "shards/sav-video"]
    assert Path("runs/stats/shards.html").exists()
    done = here("preview", "shards/", "--samples", "1")
    assert done.stdout.splitlines() == [f"preview: runs/preview/{name}/index.html" for name in ("sav", "sav-video")]
    done = here("preview", "shards/", "--samples", "1", "--out", "pages")
    assert done.stdout.splitlines() == [f"preview: pages/{name}/index.html" for name in ("sav", "sav-video")]
    for verb in (["recode", "--codec", "raw"], ["split"], ["sample", "--n", "1"]):
        done = here(verb[0], "shards", "--out", "new", *verb[1:])
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert "give one of the sets in it: shards/sav, shards/sav-video" in done.stderr


def test_patterns_of_tars_and_of_sets_are_verified(folder):
    assert verify(["shards/sav/*.tar"]).samples == 8
    assert verify(["shards/sav*"]).samples == 16
    assert verify(["shards/sav/*"]).samples == 8


def test_folders_of_sets_at_urls(s3, small_set, tmp_path, monkeypatch):
    for name, value in reach(s3).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem(endpoint_url=f"http://127.0.0.1:{s3}")
    for name in ("sav", "sav-video"):
        for path in small_set.iterdir():
            store.pipe_file(f"bucket/sets/{name}/{path.name}", path.read_bytes())
    store.pipe_file("bucket/sets/logs/train.log", b"x")
    cache = Cache(tmp_path, 10**9, attempts=1)
    urls = ["s3://bucket/sets/sav", "s3://bucket/sets/sav-video"]
    assert find_sets(["s3://bucket/sets/"], cache) == find_sets(["s3://bucket/sets/s*"], cache) == urls
    assert find_sets(["s3://bucket/sets/sav"], cache) == urls[:1]
    assert [len(shards) for shards in open_sets(["s3://bucket/sets"], cache)] == [8, 8]
    store.pipe_file("bucket/sets/refcoco/refcoco-000000.tar", b"x")
    with pytest.raises(UserError, match=r"s3://bucket/sets/refcoco/manifest\.json: no such file"):
        open_sets(["s3://bucket/sets"], cache)
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_folder_of_sets_over_http_is_one_line(server, tmp_path):
    with pytest.raises(UserError, match=r"json: no such file; .*; a folder of sets cannot be listed over http"):
        open_sets([server.url], Cache(tmp_path, 10**9, attempts=1))
