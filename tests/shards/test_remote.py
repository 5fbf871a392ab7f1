"""Shard sets at URLs, read through a cache: from real servers, over a network that fails."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import BadShard, UserError
from shards.join import join_file
from shards.reader import ShardSet
from shards.remote import RemoteShardSet, open_set
from shards.storage import cache as caching
from shards.storage.cache import Cache, NoRoom
from shards.storage.remote_folder import RemoteFolder
from shards.table import write_table
from shards.table_list import LIST, OBJECTS
from shards.where import choose
from tests.servers import FaultyServer, reach, serving, used

FAULTS = ["503", "cut", "corrupt", "late"]
REPOSITORY = Path(__file__).parents[2]
ANY = 10**9
READER = """
import random, sys
from shards.storage import retry
from shards.storage.cache import Cache
from shards.reader import ShardSet
from shards.remote import open_set
retry._FIRST_PAUSE = 0.01
url, folder, cache, limit, rounds, seed = sys.argv[1:]
remote, local = open_set(url, Cache(cache, int(limit))), ShardSet(folder)
order = list(range(len(local))) * int(rounds)
random.Random(seed).shuffle(order)
for position in order:
    assert remote.sample_bytes(position) == local.sample_bytes(position)
print("equal")
"""


def remote(server: FaultyServer, folder: Path, limit: int = ANY, attempts: int = 6) -> ShardSet:
    return open_set(f"{server.url}/sav", Cache(folder, limit, attempts=attempts))


def reader(server: FaultyServer, small_set: Path, cache: Path, limit: int, rounds: int, seed: int) -> subprocess.Popen:
    arguments = [f"{server.url}/sav", str(small_set), str(cache), str(limit), str(rounds), str(seed)]
    command = [sys.executable, "-c", READER, *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def files(cache: Path, pattern: str = "*/*.tar*") -> list[str]:
    return sorted(path.name for path in cache.glob(pattern))


def room(small_set: Path, tars: int) -> int:
    """Bytes that hold the index and so many tars of the set, and no tar more."""
    shards = ShardSet(small_set)
    return sum(sorted(info.bytes for info in shards.manifest.shards)[-tars:]) + shards.index.nbytes + 4096


def assert_equal(shards: ShardSet, expected: ShardSet) -> None:
    for position in range(len(expected)):
        assert shards.sample_bytes(position) == expected.sample_bytes(position)


def test_samples_equal_those_of_the_folder_when_first_requests_fail(server, small_set, tmp_path):
    server.faults = lambda name, n: FAULTS[n] if n < 4 else ""
    shards = remote(server, tmp_path)
    local = ShardSet(small_set)
    assert isinstance(shards, RemoteShardSet)
    for position in range(len(local)):
        one = shards[position]
        two = local[position]
        assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in two)
    assert {n for name, n in server.gets.items() if name.endswith(".tar")} == {4}  # right at the fourth, and kept
    for path in tmp_path.glob("*/*.tar"):
        assert path.read_bytes() == (small_set / path.name).read_bytes()
    before = server.gets.copy()
    assert_equal(remote(server, tmp_path), local)
    assert (server.gets - before) == {"manifest.json": 1}  # all else stood in the cache


@pytest.mark.parametrize(
    "fault, message",
    [
        ("corrupt", r"sav-000000.tar: not what the manifest says: SHA-256; met [0-9a-f]{64}; wanted {sha}; tried 3"),
        ("cut", r"sav-000000.tar: cannot be read; met ClientPayloadError.*tried 3 times"),
        ("503", r"sav-000000.tar: cannot be read; met HTTP 503; tried 3 times"),
        ("403", r"sav-000000.tar: not allowed to read; set up the credentials"),
    ],
)
def test_a_lasting_fault_is_one_line_and_no_sample(server, small_set, tmp_path, fault, message):
    shards = remote(server, tmp_path, attempts=3)
    server.faults = lambda name, n: fault
    message = message.replace("{sha}", shards.manifest.shards[0].sha256)
    with pytest.raises(UserError, match=f"{server.url}/sav/{message}") as raised:
        shards[0]
    assert "\n" not in str(raised.value)
    assert server.gets["sav-000000.tar"] == (1 if fault == "403" else 3)
    assert files(tmp_path) == []


@pytest.mark.parametrize("size", [-1, 1])
def test_a_file_of_another_size_is_refused(server, small_set, tmp_path, size):
    info = ShardSet(small_set).manifest.shards[0]
    held = Cache(tmp_path, ANY, attempts=2)
    folder = RemoteFolder(f"{server.url}/sav", 2)
    with pytest.raises(UserError, match=r"not of the manifest's size; met .* bytes; wanted .* bytes; tried 2 times"):
        held.hold(folder, tmp_path / "set" / info.name, info.bytes + size, info.sha256)
    assert files(tmp_path) == []


def test_what_has_changed_in_the_cache_is_fetched_again(server, small_set, tmp_path, caplog):
    local = ShardSet(small_set)
    assert_equal(remote(server, tmp_path), local)
    tar = local.manifest.shards[0]
    index = next(tmp_path.glob("*/index.npy"))
    for path in (index.parent / tar.name, index):
        changed = bytearray(path.read_bytes())
        changed[len(changed) // 2] ^= 1
        path.unlink()  # as of an earlier run: nobody maps it
        path.write_bytes(changed)
    before = server.gets.copy()
    shards = remote(server, tmp_path)
    assert np.array_equal(shards.index, local.index)
    for position in range(len(local)):
        assert shards.open(position).meta == local.open(position).meta
    assert_equal(shards, local)
    assert (server.gets - before) == {"manifest.json": 1, "index.npy": 1, tar.name: 1}
    messages = [record.message for record in caplog.records if "it is fetched again" in record.message]
    assert len(messages) == 2 and tar.name in messages[1]


def test_a_file_that_changes_again_after_fetching_is_an_error(server, small_set, tmp_path, monkeypatch):
    shards = remote(server, tmp_path)
    shards.sample_bytes(0)
    monkeypatch.setattr("shards.reader.crc32", lambda view: 1)
    with pytest.raises(BadShard, match="CRC-32 of the sample"):
        shards.open(0)


def test_two_reads_of_a_manifest_must_be_equal(server, tmp_path):
    numbers = count()
    server.faults = lambda name, n: "corrupt" if next(numbers) % 2 else ""
    with pytest.raises(UserError, match=r"manifest.json: two reads of it differ; tried 3 times"):
        remote(server, tmp_path, attempts=3)
    server.faults = lambda name, n: "corrupt"
    with pytest.raises(UserError, match=rf"{server.url}/sav/"):
        remote(server, tmp_path, attempts=3)[0]


@pytest.mark.parametrize(
    "url, message",
    [
        ("{server}/none", "{server}/none/manifest.json: no such file"),
        ("ftp://host/sav", "ftp://host/sav: URL of an unknown kind; met ftp; wanted http or https or s3"),
        ("https://me:secret@host/sav?signature=secret", "https://host/sav: not the URL of a folder"),
        ("http://127.0.0.1:9/sav", "cannot be read; met ClientConnectorError.*tried 1 times"),
    ],
)
def test_what_is_not_a_set_is_one_line(server, tmp_path, url, message):
    with pytest.raises(UserError, match=message.replace("{server}", server.url)) as raised:
        open_set(url.replace("{server}", server.url), Cache(tmp_path, ANY, attempts=1))
    assert "secret" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_the_limit_holds_and_the_least_recently_used_goes_first(server, small_set, tmp_path):
    shards = remote(server, tmp_path, limit=room(small_set, 3))
    for shard in (0, 1, 2, 0):
        shards.fetch(shard)
        shards.release(shard)
    assert files(tmp_path) == [f"sav-{n:06d}.tar" for n in (0, 1, 2)]
    shards.fetch(3)
    assert files(tmp_path) == [f"sav-{n:06d}.tar" for n in (0, 2, 3)]
    shards.fetch(4)  # 3 is in use
    shards.fetch(5)
    assert files(tmp_path) == [f"sav-{n:06d}.tar" for n in (3, 4, 5)]
    with pytest.raises(NoRoom):
        shards.fetch(6, ahead=True)
    view = shards.sample_bytes(3)
    assert_equal(shards, ShardSet(small_set))  # what is needed now takes the place of what was used before
    assert used(tmp_path) <= room(small_set, 3)
    assert view == ShardSet(small_set).sample_bytes(3)  # though the file is gone
    with pytest.raises(UserError, match="the limit of the cache is too low"):
        remote(server, tmp_path / "other", limit=1000)


def test_a_cache_full_of_files_in_use_is_an_error_after_a_while(server, small_set, tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "_PATIENCE", 0.1)
    limit = room(small_set, 1)
    one, other = (remote(server, tmp_path, limit=limit) for _ in range(2))
    one.fetch(0)
    with pytest.raises(UserError, match=rf"no room in the cache; met {limit:,} bytes, all of them in use; raise data"):
        other.fetch(1)
    one.release(0)
    assert_equal(other, ShardSet(small_set))


def test_fetching_ahead_leaves_room_for_other_readers(server, small_set, tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "_PATIENCE", 0.1)
    one, other = (open_set(f"{server.url}/sav", Cache(tmp_path, room(small_set, 4), fetches=1)) for _ in range(2))
    with pytest.raises(NoRoom):
        for shard in range(7):
            one.fetch(shard, ahead=True)
    held = files(tmp_path)
    other.fetch(7)
    assert files(tmp_path) == [*held, "sav-000007.tar"] and 1 <= len(held) <= 2


def test_a_file_that_was_damaged_or_deleted_is_fetched_again(server, small_set, tmp_path):
    shards = remote(server, tmp_path)
    local = ShardSet(small_set)
    view = shards.sample_bytes(0)
    next(tmp_path.glob("*/sav-000000.tar")).unlink()  # by a careless user, while it is mapped
    assert view == local.sample_bytes(0)
    del view
    shards.release(0)
    shards.fetch(1)
    shards.release(1)
    os.truncate(next(tmp_path.glob("*/sav-000001.tar")), 1000)
    assert_equal(shards, local)
    assert server.gets["sav-000000.tar"] == server.gets["sav-000001.tar"] == 2


def test_an_index_that_was_damaged_in_the_cache_is_fetched_again(server, small_set, tmp_path):
    assert_equal(remote(server, tmp_path), ShardSet(small_set))
    kept = next(tmp_path.glob("*/index.npy"))
    whole = kept.read_bytes()
    for place in (20, len(whole) - 1):  # in its header, and in the counts of its last row
        kept.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        assert_equal(remote(server, tmp_path), ShardSet(small_set))
        assert kept.read_bytes() == whole
    assert server.gets["index.npy"] == 3


def test_an_index_that_is_not_the_manifests_at_the_url_either_is_one_line(server, small_set, tmp_path):
    remote(server, tmp_path)
    next(tmp_path.glob("*/index.npy")).write_bytes(b"x")
    server.faults = lambda name, n: "corrupt" if name == "index.npy" else ""
    with pytest.raises(UserError, match=r"index\.npy: not what the manifest says: SHA-256"):
        remote(server, tmp_path)


@pytest.mark.slow
def test_processes_share_a_cache_and_each_tar_is_fetched_once(server, small_set, tmp_path):
    server.faults = lambda name, n: "late"
    readers = [reader(server, small_set, tmp_path, ANY, 1, seed) for seed in range(2)]
    assert [process.communicate(timeout=100)[0] for process in readers] == ["equal\n"] * 2
    tars = {name: n for name, n in server.gets.items() if name.endswith((".tar", ".npy"))}
    assert set(tars.values()) == {1} and len(tars) == 9


@pytest.mark.slow
def test_eviction_never_breaks_a_reader_in_another_process(server, small_set, tmp_path):
    rng = random.Random(5)
    # A manifest that is broken twice alike is one that was written so.
    server.faults = lambda name, n: "" if name == "manifest.json" else rng.choice([*[""] * 9, *FAULTS])
    limit = room(small_set, 3)
    readers = [reader(server, small_set, tmp_path, limit, 4, seed) for seed in range(2)]
    most = 0
    while any(process.poll() is None for process in readers):
        most = max(most, used(tmp_path))
        time.sleep(0.005)
    outputs = [process.communicate()[0].splitlines() for process in readers]  # also of many attempts
    # A connection that a fault broke may be reported by aiohttp when the process ends, after the last line.
    assert all("equal" in lines for lines in outputs) and not any(process.returncode for process in readers)
    assert limit / 2 < most <= limit
    assert sum(server.gets.values()) > 30  # it was evicted and fetched again


def test_a_killed_download_leaves_nothing_that_is_taken_for_whole(server, small_set, tmp_path):
    server.faults = lambda name, n: "stall" if name.endswith(".tar") else ""
    process = reader(server, small_set, tmp_path, ANY, 1, 0)
    until = time.monotonic() + 100
    while not any(path.read_bytes()[:512].strip(b"\0") for path in tmp_path.glob("*/*.tar.part")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert [name[-9:] for name in files(tmp_path)] == [".tar.part"]
    server.faults = lambda name, n: ""
    assert_equal(remote(server, tmp_path), ShardSet(small_set))
    assert not list(tmp_path.glob("*/*.part"))
    for path in tmp_path.glob("*/*.tar"):
        assert path.read_bytes() == (small_set / path.name).read_bytes()


def test_a_full_disk_is_one_line(server, tmp_path, monkeypatch):
    shards = remote(server, tmp_path / "there")
    real = os.write

    def write(descriptor: int, data: memoryview) -> int:
        if real(descriptor, data[:1000]) and threading.current_thread() is threading.main_thread():
            raise OSError(28, os.strerror(28))
        return 1000

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(UserError, match=r"sav-000000.tar: cannot be written .*No space left on device; make room"):
        shards.fetch(0)
    assert files(tmp_path / "there") == []


def test_from_an_s3_server_over_a_network_that_fails(s3, small_set, tmp_path, monkeypatch, short_pauses):
    with serving(upstream=s3) as network:
        for name, value in reach(network.server_port).items():
            monkeypatch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        store = s3fs.S3FileSystem(endpoint_url=f"http://127.0.0.1:{s3}")
        for path in small_set.iterdir():
            store.pipe_file(f"bucket/shards/sav/{path.name}", path.read_bytes())
        network.faults = lambda name, n: FAULTS[n] if n < 4 and name == "sav-000000.tar" else ""
        shards = open_set("s3://bucket/shards/sav", Cache(tmp_path, ANY))
        assert_equal(shards, ShardSet(small_set))
        assert {name: n for name, n in network.gets.items() if n > 1} == {"manifest.json": 2, "sav-000000.tar": 4}
        for url in ("s3://bucket/shards/none", "s3://none/sav"):
            with pytest.raises(UserError, match=f"{url}/manifest.json: no such file"):
                open_set(url, Cache(tmp_path, ANY))
        network.faults = lambda name, n: "corrupt" if name.endswith(".tar") else ""
        with pytest.raises(UserError, match=r"s3://bucket/shards/sav/sav-000000.tar: .*tried 2 times"):
            open_set("s3://bucket/shards/sav", Cache(tmp_path / "other", ANY, attempts=2))[0]


@pytest.fixture
def tabled(small_set, tmp_path, short_pauses):
    """A copy of `small_set` with its table and a joined one, and a server of it as /sav."""
    folder = Path(shutil.copytree(small_set, tmp_path / "served" / "sav"))
    write_table(folder)
    rows = pq.read_table(folder / OBJECTS, columns=["key", "object"])
    pq.write_table(rows.append_column("score", pa.array(range(len(rows)))), tmp_path / "marks.parquet")
    join_file(folder, tmp_path / "marks.parquet")
    with serving(folder.parent) as server:
        yield folder, server


def test_conditions_over_a_set_at_a_url_choose_what_they_choose_in_a_folder(tabled, tmp_path):
    folder, server = tabled
    server.faults = lambda name, n: FAULTS[n] if n < 3 else ""
    for condition in ("area > 0.02", "marks.score % 3 = 0 and words >= 0"):
        expected = choose(ShardSet(folder), condition)
        for _ in range(2):  # fetched, then from the cache
            assert np.array_equal(choose(remote(server, tmp_path / "cache"), condition).objects, expected.objects)
    assert server.gets["objects.parquet"] == server.gets["marks.parquet"] == 4
    (cached,) = (tmp_path / "cache").glob("*/objects.parquet")
    data = bytearray(cached.read_bytes())
    data[len(data) // 2] ^= 1
    cached.unlink()
    cached.write_bytes(data)
    shards = remote(server, tmp_path / "cache")
    assert np.array_equal(choose(shards, "area > 0.02").objects, choose(ShardSet(folder), "area > 0.02").objects)
    assert server.gets["objects.parquet"] == 5


def test_a_set_at_a_url_without_its_list_of_tables_is_one_line(tabled, tmp_path):
    folder, server = tabled
    shards = remote(server, tmp_path / "cache")
    tables = (folder / LIST).read_bytes()
    (folder / LIST).unlink()
    with pytest.raises(UserError, match=rf"{shards.url}: no table of its objects; wanted tables.json; .*table PATH"):
        choose(shards, "true")
    (folder / LIST).write_bytes(tables.replace(b'"rows": 8', b'"rows": 9'))
    with pytest.raises(UserError, match=r"tables.json: not a list of tables; met another checksum than its own"):
        choose(shards, "true")
