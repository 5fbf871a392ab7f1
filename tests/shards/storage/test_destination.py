"""Places where sets are published: what stands there is compared, by listed checksums or by reading it back."""

from collections import Counter
from pathlib import Path

import pytest
import s3fs

from shards.errors import UserError
from shards.publish import publish
from shards.reader import ShardSet
from shards.remote import open_set
from shards.storage import destination
from shards.storage.cache import Cache
from shards.storage.destination import Bucket, Folder, Item
from tests.conftest import files_of
from tests.servers import FaultyServer, objects, reach, serving


@pytest.fixture
def way(s3, monkeypatch, short_pauses):
    """The way to an S3-compatible server, which fails on request."""
    with serving(upstream=s3) as server:
        for name, value in reach(server.server_port).items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield server
    s3fs.S3FileSystem.clear_instance_cache()


def reads(way: FaultyServer, ending: str = ".tar") -> Counter[str]:
    return Counter({name: n for name, n in way.gets.items() if name.endswith(ending)})


def test_a_set_goes_into_a_bucket_and_nothing_is_read_back_where_its_md5_is_listed(s3, way, tiny_set, tmp_path):
    url = "s3://bucket/published/sav"
    way.fail(".tar", sound=1, status=403)
    with pytest.raises(
        UserError, match=r"s3://bucket/published/sav/.*\.tar: cannot be written; met .*the same command"
    ):
        publish(tiny_set, url)
    before = objects(s3, "published/sav")
    assert "manifest.json" not in before and sum(name.endswith(".tar") for name in before) == 1
    way.heal()
    done = publish(tiny_set, url)
    assert done.stood == len(before) and not reads(way)
    stored = objects(s3, "published/sav")
    assert stored.items() >= files_of(tiny_set).items() and stored.keys() - files_of(tiny_set).keys() == {
        "README.md",
        "contact-sheet.jpg",
    }
    remote = open_set(url, Cache(tmp_path, 10**9))
    assert remote.sample_bytes(0) == ShardSet(tiny_set).sample_bytes(0)


def test_an_object_without_a_listed_md5_is_read_back(s3, way, tmp_path):
    """One that went up in parts of another size; and one of the right size with other bytes."""
    file = tmp_path / "a.tar"
    file.write_bytes(bytes(range(256)) * 43008)  # 10.5 MiB
    item = Item(file.name, file.stat().st_size, destination.hashlib.sha256(file.read_bytes()).hexdigest(), file)
    files = s3fs.S3FileSystem()
    files.put_file(str(file), "bucket/parts/a.tar", chunksize=5 << 20)
    bucket = Bucket("s3://bucket/parts")
    assert bucket.right([item]) == {"a.tar"} and reads(way)["a.tar"] > 0
    files.pipe_file("bucket/parts/a.tar", file.read_bytes()[:-1] + b"x")
    assert bucket.right([item]) == set()
    files.rm("bucket/parts/a.tar")
    assert bucket.right([item]) == set()


def test_the_md5_of_an_object_in_parts_is_known(s3, way, tmp_path, monkeypatch):
    monkeypatch.setattr(destination, "_S3_PART", 5 << 20)
    file = tmp_path / "a.tar"
    file.write_bytes(bytes(range(256)) * 43008)
    item = Item(file.name, file.stat().st_size, "not needed", file)
    s3fs.S3FileSystem().put_file(str(file), "bucket/known/a.tar", chunksize=5 << 20)
    assert Bucket("s3://bucket/known").right([item]) == {"a.tar"} and not reads(way)


@pytest.mark.parametrize(
    "details", [{"ETag": '"900150983cd24fb0d6963f7d28e17f72"'}, {"md5Hash": "kAFQmDzST7DWlj99KOF/cg=="}]
)
def test_listed_md5s(details):
    """Of "abc": RFC 1321's example, as S3 and as Google list it."""
    assert destination._listed_md5(details) & destination._md5s(Item.of_bytes("abc", b"abc"))
    assert not destination._listed_md5({"etag": "CJ=", "md5Hash": "?"})


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a file, not a folder"):
        Folder(Path(tmp_path / "file")).prepare()
