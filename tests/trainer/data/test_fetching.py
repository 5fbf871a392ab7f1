"""A loader that reads shards from a URL: the folder's batches, from shards that come before they are needed."""

import random
import re
import time
from itertools import islice
from pathlib import Path

import pytest
import torch

from shards.errors import UserError
from shards.reader import ShardSet
from shards.storage.cache import Cache
from tests.batches import make_loader, tensors_of
from tests.servers import FaultyServer, used
from trainer.data.batch import Batch
from trainer.data.loader import Loader
from trainer.train import main

FIELDS = ("pixel_values1", "prompt_masks1", "pixel_values2", "g_pixel_values2", "masks2")
ANY = 10**9


def loader(path: object, cache: Cache | None = None, **options) -> Loader:
    return make_loader([path], **{"fields": FIELDS, "batch_size": 2, "seed": 7, "cache": cache, **options})


def assert_equal(met: Batch, wanted: Batch) -> None:
    tensors = tensors_of(met)
    assert tensors.keys() == tensors_of(wanted).keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in tensors_of(wanted).items())
    for name in ("keys", "texts", "objects", "recipe", "meta", "frame_numbers", "turns", "copies", "position"):
        assert getattr(met, name) == getattr(wanted, name), name


def shuffle_window(monkeypatch: pytest.MonkeyPatch, shards: int) -> None:
    for module in ("order", "loader"):
        monkeypatch.setattr(f"trainer.data.{module}.SHUFFLE_WINDOW", shards)


def room(small_set: Path, tars: int) -> int:
    """Bytes that hold the index and any so many tars of the set."""
    shards = ShardSet(small_set)
    return sum(sorted(info.bytes for info in shards.manifest.shards)[-tars:]) + shards.index.nbytes


def test_batches_are_those_of_the_folder_resumed_or_not(server: FaultyServer, small_set, tmp_path):
    rng = random.Random(3)
    faults = {
        name: rng.choice(["503", "cut", "corrupt", "late"]) for name in sorted(p.name for p in small_set.iterdir())
    }
    server.faults = lambda name, n: "" if n else faults[name]
    local, far = loader(small_set), loader(f"{server.url}/sav", Cache(tmp_path, ANY))
    assert far.described == local.described
    for epoch, consumed in ((0, 0), (1, 4)):
        batches = far.epoch(epoch, consumed)
        for wanted in local.epoch(epoch, consumed):
            assert_equal(next(batches), wanted)
        assert next(batches, None) is None
    assert all(n == 1 + (faults[name] != "late") for name, n in server.gets.items() if name.endswith(".tar"))


def test_shards_are_fetched_ahead_in_the_order_of_their_use(server: FaultyServer, small_set, tmp_path):
    asked: list[str] = []
    server.faults = lambda name, n: asked.append(name) or ""
    far = loader(f"{server.url}/sav", Cache(tmp_path, ANY, fetches=1), batch_size=1, prefetch=0, threads=1)
    index, order = ShardSet(small_set).index, far.order(0)
    batches = far.epoch(0)
    next(batches)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("*/*.tar"))) < 8:  # though one batch alone was asked for
        assert time.monotonic() < until
        time.sleep(0.02)
    assert [name for name in asked if name.endswith(".tar")] == [f"sav-{index[p]['shard']:06d}.tar" for p in order]
    batches.close()


@pytest.mark.parametrize("ranks, prefetch", [(1, 2), (2, 1)])
def test_a_cache_that_holds_two_windows_is_enough(server, small_set, tmp_path, monkeypatch, ranks, prefetch):
    shuffle_window(monkeypatch, 2)
    limit = room(small_set, 6)  # and two to spare
    options = [{"rank": rank, "world_size": ranks, "batch_size": 2 // ranks} for rank in range(ranks)]
    local = [loader(small_set, **own) for own in options]
    caches = [Cache(tmp_path, limit, fetches=1) for _ in options]
    far = [
        loader(f"{server.url}/sav", cache, **own, prefetch=prefetch) for cache, own in zip(caches, options, strict=True)
    ]
    kept = []
    for epoch in (0, 1):
        batches = [one.epoch(epoch) for one in far]
        for wanted in zip(*(one.epoch(epoch) for one in local), strict=True):
            for own, batch in zip(batches, wanted, strict=True):
                kept.append(next(own))
                assert_equal(kept[-1], batch)
            assert used(tmp_path) <= limit
        assert [next(own, None) for own in batches] == [None] * ranks
    fetched = sum(n for name, n in server.gets.items() if name.endswith(".tar"))
    assert 8 + 2 <= fetched <= 16 + 3  # each shard once an epoch, but for what stood there still
    until = time.monotonic() + 60
    while f"{tmp_path}/" in re.sub(
        r".*\.npy.*", "", Path("/proc/self/maps").read_text()
    ):  # what is on its way still comes
        assert time.monotonic() < until
        time.sleep(0.02)
    assert all(batch.meta for batch in kept)


def test_a_set_that_counts_twice_releases_each_copy_in_its_time(server: FaultyServer, small_set, tmp_path, monkeypatch):
    shuffle_window(monkeypatch, 2)
    repeated = {"repeats": {"sav": 2}, "fields": ("prompt_masks1",), "batch_size": 1}
    far = loader(f"{server.url}/sav", Cache(tmp_path, room(small_set, 6), fetches=1), **repeated)
    for met, wanted in zip(far.epoch(0), loader(small_set, **repeated).epoch(0), strict=True):
        assert_equal(met, wanted)
    assert sum(met.copies) in (0, 1)


def test_held_out_samples_are_fetched_as_far_as_they_are_read(server: FaultyServer, small_set, tmp_path):
    options = {"part": "holdout", "holdout": 1.0, "batch_size": 1, "prefetch": 0}
    far = loader(f"{server.url}/sav", Cache(tmp_path, ANY, fetches=2), **options)
    for met, wanted in islice(zip(far.epoch(0), loader(small_set, **options).epoch(0), strict=True), 2):
        assert_equal(met, wanted)
    time.sleep(0.3)
    assert 2 <= len(list(tmp_path.glob("*/*.tar"))) <= 6


def test_a_cache_too_small_for_two_windows_is_refused(server, small_set, tmp_path, monkeypatch):
    for window, tars in ((64, 8), (2, 6)):  # all of them; 2 * 2 and 2 to spare
        shuffle_window(monkeypatch, window)
        enough = room(small_set, tars)
        said = (
            rf"data.cache_limit: the cache is too small; met .* GB; wanted >= .* GB, so that {tars} shards fit: .*raise"
        )
        with pytest.raises(UserError, match=said):
            loader(f"{server.url}/sav", Cache(tmp_path, enough - 1, fetches=1))
        loader(f"{server.url}/sav", Cache(tmp_path, enough, fetches=1))


def test_a_broken_shard_ends_the_epoch_in_one_line(server: FaultyServer, small_set, tmp_path):
    server.faults = lambda name, n: "corrupt" if name == "sav-000004.tar" else ""
    far = loader(f"{server.url}/sav", Cache(tmp_path, ANY, attempts=2), batch_size=1, fields=("prompt_masks1",))
    local = loader(small_set, batch_size=1, fields=("prompt_masks1",))
    with pytest.raises(UserError, match=r"sav-000004.tar: not what the manifest says: SHA-256; .*tried 2 times"):
        for met, wanted in zip(far.epoch(0), local.epoch(0), strict=True):
            assert_equal(met, wanted)


def test_training_on_what_cannot_be_had_is_one_line(server: FaultyServer, tmp_path):
    server.faults = lambda name, n: "corrupt" if name == "index.npy" else ""
    given = [f"data.shards=[{server.url}/sav]", f"data.cache={tmp_path}/cache", "data.attempts=1"]
    said = rf"{server.url}/sav/index.npy: not what the manifest says: SHA-256; met .*; tried 1 times"
    with pytest.raises(UserError, match=said) as raised:
        main([*given, f"output_dir={tmp_path}/run", "mixed_precision=no", "warmup_steps=0", "steps=1"])
    assert "\n" not in str(raised.value)
