"""The Hugging Face hub, read and published at: with its real client, and a server on this machine."""

import hashlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shards.errors import UserError
from shards.publish import publish
from shards.reader import ShardSet
from shards.remote import open_set
from shards.sets import find_sets
from shards.storage.cache import Cache
from shards.storage.store import store_at
from tests.batches import make_loader, tensors_of
from tests.cards import snippets
from tests.conftest import files_of
from tests.servers import running
from tests.servers_hub import READ, WRITE, Fault, HubServer, Repository

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


def test_sets_in_folders_of_a_dataset_are_found_and_read(hub, tiny_set, small_set, tmp_path, monkeypatch):
    put(hub, tiny_set, below="a/", private=True)
    put(hub, small_set, below="b/")
    monkeypatch.setenv("HF_TOKEN", READ)
    cache = Cache(tmp_path, 10**9)
    assert find_sets([SET], cache) == [f"{SET}/a", f"{SET}/b"]
    assert find_sets([f"{SET}@main/b*"], cache) == [f"{SET}@main/b"]
    assert_equal(f"{SET}@main/a", tiny_set, tmp_path / "cache")


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
def test_what_cannot_be_read_is_one_line(hub, tiny_set, tmp_path, monkeypatch, url, token, message):
    put(hub, tiny_set, private=True)
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


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


CARD = ["README.md", "contact-sheet.jpg"]


def test_a_set_is_published_and_trained_on(hub, small_set, tmp_path, here):
    done = here("publish", small_set, "--to", SET, "--private")
    assert done.returncode == 0, done.stderr
    total = len(names(small_set)) + len(CARD)
    assert f"{total} files sent" in done.stdout and "0 stood there already; compared: the hub" in done.stdout
    repository = hub.repositories["someone/sav"]
    assert repository.private and sorted(hub.files("someone/sav")) == sorted([*names(small_set), *CARD])
    assert all(hub.files("someone/sav")[path.name] == path.read_bytes() for path in small_set.iterdir())
    assert repository.commits[-1] == ["manifest.json"] and "manifest.json" not in repository.commits[0]
    assert not any("xet" in path for _, path in hub.requests)
    options = {"fields": ("pixel_values1", "prompt_masks1", "g_pixel_values2", "masks2"), "batch_size": 2, "seed": 7}
    local = make_loader([small_set], **options)
    batches = make_loader([SET], cache=Cache(tmp_path, 10**9), **options).epoch(0)  # as a training reads them
    for expected in local.epoch(0):
        tensors = tensors_of(batch := next(batches))
        assert batch.keys == expected.keys and tensors.keys() == tensors_of(expected).keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in tensors_of(expected).items())
    assert next(batches, None) is None
    before = len(hub.received)
    again = here("publish", small_set, "--to", SET)
    assert f"0 files sent (0.00 GB), {total} stood there already" in again.stdout and len(hub.received) == before


def test_a_branch_and_a_folder_hold_a_set_of_their_own(hub, tiny_set, tmp_path):
    publish(tiny_set, f"{SET}@v1/sets/small")
    assert hub.files("someone/sav") == {} and all(
        path.startswith("sets/small/") for path in hub.files("someone/sav", "v1")
    )
    card = hub.files("someone/sav", "v1")["sets/small/README.md"].decode()
    assert 'revision="v1", allow_patterns="sets/small/*"' in card
    assert_equal(f"{SET}@v1/sets/small", tiny_set, tmp_path)


def test_uploads_that_are_cut_go_on_and_answers_that_are_lost_are_noticed(hub, tiny_set, tmp_path):
    """Parts of large files, too: these go up in parts of a megabyte."""
    hub.part_bytes = 1 << 20

    def fault(method: str, path: str, n: int) -> Fault:
        if n == 0 and path.startswith(("/part/", "/complete/")):
            return "cut" if path.endswith("/2") else "503" if path.startswith("/complete/") else ""
        return "lost" if n == 0 and "/commit/" in path else ""

    hub.faults = fault
    done = publish(tiny_set, SET)
    assert done.sent == len(names(tiny_set)) + len(CARD) and sum("/commit/" in path for _, path in hub.requests) == 2
    assert hub.repositories["someone/sav"].commits[-1] == ["manifest.json"]
    assert sorted(hub.files("someone/sav")) == sorted([*names(tiny_set), *CARD])
    assert len(hub.received) == len(set(hub.received))  # no file was taken twice
    assert_equal(SET, tiny_set, tmp_path)


@pytest.mark.parametrize(
    "path, status, message",
    [
        ("/api/repos/create", "401", "refused by the hub; met HTTP 401: refused with 401; log in with `hf auth login`"),
        ("/preupload/", "403", "refused by the hub; met HTTP 403: refused with 403; use a token that may write there"),
        ("/commit/", "409", "refused by the hub; met HTTP 409: refused with 409; somebody else changes the dataset"),
        ("/upload/", "413", "refused by the hub; met HTTP 413: refused with 413; make room there"),
        ("/upload/", "402", "refused by the hub; met HTTP 402"),
        ("/commit/", "500", "the hub cannot be reached or fails; met HTTP 500 refused with 500; tried 8 times"),
        ("full", "", "refused by the hub; met Private storage limit reached; make room there"),
        (
            "altered",
            "",
            "not there as it was sent; met sav-000000.tar and .* more files; wanted the hub",
        ),
    ],
)
def test_a_refused_upload_is_one_line_and_no_manifest(hub, tiny_set, path, status, message, monkeypatch):
    hub.faults = lambda method, asked, n: status if path in asked else ""
    hub.full = path == "full"
    if path == "altered":  # it takes a file and stores another one
        monkeypatch.setattr("tests.servers_hub._entries", lambda files: [])
    with pytest.raises(UserError, match=message) as raised:
        publish(tiny_set, SET)
    assert "\n" not in str(raised.value) and "signature" not in str(raised.value)
    assert "someone/sav" not in hub.repositories or "manifest.json" not in hub.files("someone/sav")
    hub.faults = lambda method, asked, n: ""
    hub.full = False
    monkeypatch.undo()


def test_who_may_only_read_is_told_so(hub, tiny_set, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", READ)
    with pytest.raises(UserError, match=r"refused by the hub; met HTTP 403: You don't have the rights.*; use a token"):
        publish(tiny_set, SET)


def test_another_set_is_replaced_only_where_that_is_asked_for(hub, tiny_set, small_set, tmp_path):
    put(hub, tiny_set)
    with pytest.raises(UserError, match=rf"{SET}: another set stands there; met manifest\.json; .* --overwrite"):
        publish(small_set, SET)
    publish(small_set, SET, overwrite=True)
    assert hub.repositories["someone/sav"].commits[0] == ["-manifest.json"]
    assert sorted(hub.files("someone/sav")) == sorted([*names(small_set), *CARD])
    assert_equal(SET, small_set, tmp_path)


KILLED = """
import sys
from pathlib import Path
from shards.publish import publish
print(publish(Path(sys.argv[1]), sys.argv[2]).sent)
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on(small_set, tmp_path, pytestconfig):
    """By kill -9, while the hub has a request. What has arrived is not sent again; no manifest before the end."""
    chance = random.Random(18)
    server = HubServer()
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_TOKEN": WRITE, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", KILLED, str(small_set), SET]
    kills = 0
    with running(server):
        for _ in range(pytestconfig.getoption("kills")):
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            last = len(server.requests) + chance.randrange(4, 16)

            def fault(method: str, path: str, n: int, process=process, last=last) -> Fault:
                if len(server.requests) >= last:
                    process.kill()
                return ""

            server.faults = fault
            kills += process.wait() == -signal.SIGKILL
            found = server.repositories.get("someone/sav")
            assert found is None or "manifest.json" not in server.files("someone/sav")
        assert kills
        server.faults = lambda method, path, n: ""
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert server.files("someone/sav").items() >= files_of(small_set).items()
    assert len(server.received) == len(set(server.received))


@pytest.mark.slow
def test_the_cards_snippets_load_samples_of_all_kinds_from_the_hub(hub, mixed_set, tmp_path):
    """With objects, pictures alone, text alone; in a process of its own, which finds the hub by its environment."""
    publish(mixed_set, SET, i_may=True)
    parts = snippets(hub.files("someone/sav")["README.md"].decode())
    code = "\n".join(parts[name] for name in ("webdataset", "datasets"))
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": READ, "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    samples = ShardSet(mixed_set)
    lines = [f"{samples.key(n)} {[item['id'] for item in samples.meta(n)['objects']]}" for n in range(len(samples))]
    assert done.stdout.splitlines() == lines * 2
