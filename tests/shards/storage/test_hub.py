"""The Hugging Face hub: read through the library's file system, with the real client and a server on this machine."""

import hashlib
from pathlib import Path

import pytest

from shards.errors import UserError
from shards.reader import ShardSet
from shards.remote import open_set
from shards.sets import find_sets
from shards.storage.cache import Cache
from shards.storage.store import store_at
from tests.servers_hub import READ, HubServer, Repository

SET = "hf://datasets/someone/sav"


def put(hub: HubServer, folder: Path, name: str = "someone/sav", below: str = "", private: bool = False) -> None:
    """Put the files of a set into a repository, without the client."""
    files = hub.repositories.setdefault(name, Repository(private)).branches["main"]
    for path in folder.iterdir():
        data = path.read_bytes()
        files[below + path.name] = data, path.suffix in (".tar", ".npy")
        hub.objects[hashlib.sha256(data).hexdigest()] = data


def assert_equal(url: str, folder: Path, cache: Path) -> None:
    remote = open_set(url, Cache(cache, 10**9))
    local = ShardSet(folder)
    assert [remote.sample_bytes(n) for n in range(len(local))] == [local.sample_bytes(n) for n in range(len(local))]


def test_a_set_is_read_where_first_requests_fail(hub, small_set, tmp_path):
    put(hub, small_set)
    hub.faults = lambda method, path, n: ("cut", "503", "500", "")[n] if n < 3 and path.endswith(".tar") else ""
    assert_equal(SET, small_set, tmp_path)
    assert {n for path, n in counts(hub).items() if path.endswith(".tar")} == {4}


def counts(hub: HubServer) -> dict[str, int]:
    gets = [path for method, path in hub.requests if method == "GET"]
    return {path: gets.count(path) for path in gets}


def test_sets_in_folders_of_a_dataset_are_found_and_read(hub, small_set, raw_set, tmp_path, monkeypatch):
    put(hub, small_set, below="a/", private=True)
    put(hub, raw_set, below="b/")
    monkeypatch.setenv("HF_TOKEN", READ)
    cache = Cache(tmp_path, 10**9)
    assert find_sets([SET], cache) == [f"{SET}/a", f"{SET}/b"]
    assert find_sets([f"{SET}@main/b*"], cache) == [f"{SET}@main/b"]
    assert_equal(f"{SET}@main/a", small_set, tmp_path / "cache")


@pytest.mark.parametrize(
    "url, token, message",
    [
        ("hf://datasets/someone/none", READ, "no such dataset on the hub, or a private one; mend the URL, or log in"),
        (SET, "", "no such dataset on the hub, or a private one; mend the URL, or log in with `hf auth login` or HF_T"),
        (SET, "hf_wrong", "not allowed to read; log in with `hf auth login` or HF_TOKEN"),
        (f"{SET}@v2", READ, "no such revision of the dataset"),
        (f"{SET}/folder", READ, "no such file; finish or copy the set there, or mend the URL"),
        ("hf://someone/model", READ, "not a dataset of the hub; wanted hf://datasets/OWNER/NAME"),
        ("hf://datasets/name", READ, "not a dataset of the hub; wanted hf://datasets/OWNER/NAME"),
    ],
)
def test_what_cannot_be_read_is_one_line(hub, small_set, tmp_path, monkeypatch, url, token, message):
    put(hub, small_set, private=True)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError) as raised:
        open_set(url, Cache(tmp_path, 10**9))
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert max([0, *counts(hub).values()]) <= 3  # pages of a listing: it is not tried again


def test_a_hub_that_is_switched_off_is_one_line(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"manifest\.json: the hub is switched off; met HF_HUB_OFFLINE; unset it"):
        open_set(SET, Cache(tmp_path, 10**9))
    assert not hub.requests


def test_a_hub_that_cannot_be_reached_is_one_line(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read; met ConnectError.*tried 2 times"):
        open_set(SET, Cache(tmp_path, 10**9, attempts=2))


def test_a_set_is_not_sharded_straight_into_the_hub():
    with pytest.raises(
        UserError, match=r"not written straight to the hub; write it to a folder, then .* publish FOLDER"
    ):
        store_at(SET)
