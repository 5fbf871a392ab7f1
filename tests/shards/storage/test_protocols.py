"""The table of protocols: every URL is accepted, a missing package is named, secrets stay out of messages."""

import io
import sys
import time
from collections.abc import Iterator
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from shards.errors import UserError
from shards.reader import ShardSet
from shards.remote import open_set
from shards.storage.cache import Cache
from shards.storage.protocols import PROTOCOLS, file_system, is_url, without_secrets
from shards.storage.store import ObjectStore, store_at
from tests.conftest import files_of


class FakeAzure(MemoryFileSystem):
    """A stand-in for adlfs with its containers in the memory of this process."""

    protocol = ("az", "abfs", "abfss")
    store: ClassVar[dict[str, io.BytesIO]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def __init__(self, connection_timeout: int, read_timeout: int, account_name: str = "", **options: object) -> None:
        assert 0 < connection_timeout <= read_timeout
        super().__init__(**options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        container, slash, rest = path.partition("://")[2].partition("/") if "://" in path else ("", "", path)
        return super()._strip_protocol(f"{container.partition('@')[0]}{slash}{rest}")


@pytest.fixture
def azure(monkeypatch) -> Iterator[None]:
    for name in FakeAzure.protocol:
        monkeypatch.setitem(_registry, name, FakeAzure)
    FakeAzure.clear_instance_cache()
    yield
    FakeAzure.store.clear()
    FakeAzure.clear_instance_cache()


def test_every_protocol_that_is_written_is_read():
    writable = {name for name, protocol in PROTOCOLS.items() if protocol.can_write}
    assert {"s3", "gs", "az"} <= writable <= PROTOCOLS.keys()
    assert {type(store_at(f"{name}://bucket/sav")) for name in writable} == {ObjectStore}
    for name in PROTOCOLS:
        assert fsspec.available_protocols().count(name) == 1 or name == "abfss"


def test_a_set_is_sharded_into_azure_and_read_from_there(azure, here, sav_root, sav_set, tmp_path):
    command = ["shard", "--source", "sav", "--root", sav_root, "--shard-size", "10MB", "--workers", "1"]
    done = here(*command, "--out", "az://container/shards")
    assert done.returncode == 0, done.stderr
    stored = {name.rpartition("/")[2]: file.getvalue() for name, file in FakeAzure.store.items()}
    assert stored == files_of(sav_set)
    local = ShardSet(sav_set)
    for url in ("az://container/shards/sav", "abfss://container@account.dfs.core.windows.net/shards/sav"):
        remote = open_set(url, Cache(tmp_path / url[:2], 10**9))
        assert [remote.sample_bytes(n) for n in range(len(local))] == [local.sample_bytes(n) for n in range(len(local))]


@pytest.mark.parametrize(
    "protocol, package", [("http", "aiohttp"), ("s3", "s3fs"), ("gs", "gcsfs"), ("az", "adlfs"), ("abfs", "adlfs")]
)
def test_a_missing_package_is_named(monkeypatch, protocol, package):
    monkeypatch.delitem(_registry, protocol, raising=False)  # where a class stays, once imported
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"fsspec.implementations.{protocol}", None)
    with pytest.raises(
        UserError, match=rf'a package is missing; met .*{package}.*; pip install "sa2va-shards\[remote\]"'
    ):
        file_system(f"{protocol}://bucket/{protocol}-{time.time_ns()}")


def test_urls_and_paths():
    assert is_url("s3://bucket/sav") and is_url("https:/host/sav")
    assert not is_url("shards/sav") and not is_url("/data/a:b/sav") and not is_url("C")


def test_secrets_are_left_out_of_messages():
    assert without_secrets("https://me:secret@host/sav?signature=secret") == "https://host/sav"
    assert without_secrets("cannot reach s3://key:secret@bucket/sav") == "cannot reach s3://bucket/sav"
    assert without_secrets("az://container@account.net/sav?secret") == "az://container@account.net/sav"
