"""Stores: a folder and an object store behave alike, and a file appears whole or not at all."""

import errno
import os
import pickle
from pathlib import Path

import pytest
import s3fs

from shards.errors import UserError
from shards.storage.store import LocalFolder, ObjectStore, Store, store_at
from tests.servers import objects, reach, serving


@pytest.fixture
def go_by(monkeypatch):
    def set_environment(port: int) -> None:
        for name, value in reach(port).items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()

    yield set_environment
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(params=["folder", "bucket"])
def store(request, s3, go_by, tmp_path) -> Store:
    if request.param == "bucket":
        go_by(s3)
        return ObjectStore("s3://bucket/words/")
    (tmp_path / "set/.work").mkdir(parents=True)
    return LocalFolder(tmp_path / "set")


def test_files_that_are_put_are_read(store, tmp_path):
    store = pickle.loads(pickle.dumps(store))
    store.put("a.tar", b"first")
    store.put("a.tar", b"second")
    for i in range(3):
        store.put(f".work/{i}.json", b"note %d" % i)
    file = tmp_path / "b"
    if isinstance(store, LocalFolder):
        file = store.work / "b"
    file.write_bytes(b"b" * 1000)
    store.put_file(file, "b.tar")
    assert store.read("a.tar") == b"second"
    assert store.sizes() == {"a.tar": 6, "b.tar": 1000}
    assert store.sizes(".work") == {f"{i}.json": 6 for i in range(3)}
    assert [*store.read_all([f".work/{i}.json" for i in (2, 0, 1)])] == [b"note 2", b"note 0", b"note 1"]
    store.remove(["a.tar", ".work/0.json"])
    assert store.sizes() == {"b.tar": 1000} and sorted(store.sizes(".work")) == ["1.json", "2.json"]
    store.remove(["b.tar", ".work/1.json", ".work/2.json"])
    assert store.sizes() == store.sizes("nowhere") == {}
    with pytest.raises(FileNotFoundError):
        store.read("a.tar")


def test_a_large_object_goes_up_in_parts_and_appears_whole_or_not_at_all(s3, go_by, tmp_path, short_pauses):
    file = tmp_path / "large"
    file.touch()
    os.truncate(file, 101 << 20)  # from 100 MiB on
    with serving(upstream=s3) as way:
        way.fail("large.tar", sound=1, cut=True)
        go_by(way.server_port)
        with pytest.raises(OSError) as failed:
            ObjectStore("s3://bucket/large", attempts=2).put_file(file, "large.tar")
    assert failed.value.filename == "s3://bucket/large/large.tar"
    assert objects(s3, "large") == {}


def test_an_error_names_the_object(s3, go_by):
    go_by(s3)
    with pytest.raises(OSError, match="bucket does not exist") as failed:
        ObjectStore("s3://no-such-bucket/set").put("a.tar", b"")
    assert failed.value.errno == errno.ENOENT and failed.value.filename == "s3://no-such-bucket/set/a.tar"


@pytest.mark.parametrize("url", ["http://host/set", "ftp://host/set", "memory://set", "file:///set"])
def test_stores_that_show_half_written_files_are_refused(url):
    with pytest.raises(UserError, match="s3://"):
        store_at(url)


def test_a_path_is_a_folder(tmp_path):
    store = store_at(tmp_path / "a:b")
    assert isinstance(store, LocalFolder) and str(store) == str(tmp_path / "a:b")
    assert isinstance(store_at(Path("relative")), LocalFolder)
