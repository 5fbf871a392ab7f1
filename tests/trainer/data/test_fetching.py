"""A loader that reads shards from a URL gives the batches of the folder, and fetches shards before they are needed."""

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
from trainer.data.batch import PairBatch
from trainer.data.loader import Loader
from trainer.train import main

FIELDS = ("pixel_values1", "prompt_masks1", "pixel_values2", "g_pixel_values2", "masks2")
ANY = 10**9


def loader(path: object, cache: Cache | None = None, **options) -> Loader:
    return make_loader([path], **{"fields": FIELDS, "batch_size": 2, "seed": 7, "cache": cache, **options})


def assert_equal(batch: PairBatch, expected: PairBatch) -> None:
    tensors = tensors_of(batch)
    assert tensors.keys() == tensors_of(expected).keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in tensors_of(expected).items())
    for name in ("keys", "texts", "objects", "recipe", "meta", "frame_numbers", "turns", "copies", "position"):
        assert getattr(batch, name) == getattr(expected, name), name


def shuffle_window(monkeypatch: pytest.MonkeyPatch, shards: int) -> None:
    for module in ("order", "loader"):
        monkeypatch.setattr(f"trainer.data.{module}.SHUFFLE_WINDOW", shards)


def room(small_set: Path, tars: int) -> int:
    """Bytes that suffice for the index and that many tars of the set."""
    shards = ShardSet(small_set)
    return sum(sorted(info.bytes for info in shards.manifest.shards)[-tars:]) + shards.index.nbytes


def test_batches_from_a_url_equal_those_of_the_folder_also_when_resumed(server: FaultyServer, small_set, tmp_path):
    rng = random.Random(3)
    faults = {
        name: rng.choice(["503", "cut", "corrupt", "late"]) for name in sorted(p.name for p in small_set.iterdir())
    }
    server.faults = lambda name, n: "" if n else faults[name]
    local = loader(small_set)
    far = loader(f"{server.url}/sav", Cache(tmp_path, ANY))
    assert far.described == local.described
    for epoch, consumed in ((0, 0), (1, 4)):
        batches = far.epoch(epoch, consumed)
        for expected in local.epoch(epoch, consumed):
            assert_equal(next(batches), expected)
        assert next(batches, None) is None
    assert all(n == 1 + (faults[name] != "late") for name, n in server.gets.items() if name.endswith(".tar"))


def test_shards_are_fetched_ahead_in_the_order_of_their_use(server: FaultyServer, small_set, tmp_path):
    asked: list[str] = []
    server.faults = lambda name, n: asked.append(name) or ""
    far = loader(f"{server.url}/sav", Cache(tmp_path, ANY, fetches=1), batch_size=1, prefetch=0, threads=1)
    index = ShardSet(small_set).index
    order = far.order(0)
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
    local = [loader(small_set, **option) for option in options]
    caches = [Cache(tmp_path, limit, fetches=1) for _ in options]
    far = [
        loader(f"{server.url}/sav", cache, **option, prefetch=prefetch)
        for cache, option in zip(caches, options, strict=True)
    ]
    kept = []
    for epoch in (0, 1):
        batches = [one.epoch(epoch) for one in far]
        for expected in zip(*(one.epoch(epoch) for one in local), strict=True):
            for iterator, batch in zip(batches, expected, strict=True):
                kept.append(next(iterator))
                assert_equal(kept[-1], batch)
            assert used(tmp_path) <= limit
        assert [next(iterator, None) for iterator in batches] == [None] * ranks
    fetched = sum(n for name, n in server.gets.items() if name.endswith(".tar"))
    assert 8 + 2 <= fetched <= 16 + 3  # each shard once per epoch, except those still in the cache
    until = time.monotonic() + 60
    while f"{tmp_path}/" in re.sub(r".*\.npy.*", "", Path("/proc/self/maps").read_text()):  # fetches in flight end
        assert time.monotonic() < until
        time.sleep(0.02)
    assert all(batch.meta for batch in kept)


def test_a_repeated_set_releases_its_shards_for_each_copy(server: FaultyServer, small_set, tmp_path, monkeypatch):
    shuffle_window(monkeypatch, 2)
    repeated = {"repeats": {"sav": 2}, "fields": ("prompt_masks1",), "batch_size": 1}
    far = loader(f"{server.url}/sav", Cache(tmp_path, room(small_set, 6), fetches=1), **repeated)
    for batch, expected in zip(far.epoch(0), loader(small_set, **repeated).epoch(0), strict=True):
        assert_equal(batch, expected)
    assert sum(batch.copies) in (0, 1)


def test_held_out_samples_are_fetched_only_as_far_as_they_are_read(server: FaultyServer, small_set, tmp_path):
    options = {"part": "holdout", "holdout": 1.0, "batch_size": 1, "prefetch": 0}
    far = loader(f"{server.url}/sav", Cache(tmp_path, ANY, fetches=2), **options)
    for batch, expected in islice(zip(far.epoch(0), loader(small_set, **options).epoch(0), strict=True), 2):
        assert_equal(batch, expected)
    time.sleep(0.3)
    assert 2 <= len(list(tmp_path.glob("*/*.tar"))) <= 6


def test_a_cache_too_small_for_two_windows_is_refused(server, small_set, tmp_path, monkeypatch):
    for window, tars in ((64, 8), (2, 6)):  # all of them; 2 * 2 and 2 to spare
        shuffle_window(monkeypatch, window)
        enough = room(small_set, tars)
        message = (
            rf"data.cache_limit: the cache is too small; met .* GB; wanted >= .* GB, so that {tars} shards fit: .*raise"
        )
        with pytest.raises(UserError, match=message):
            loader(f"{server.url}/sav", Cache(tmp_path, enough - 1, fetches=1))
        loader(f"{server.url}/sav", Cache(tmp_path, enough, fetches=1))


def test_a_broken_shard_ends_the_epoch_in_one_line(server: FaultyServer, small_set, tmp_path):
    server.faults = lambda name, n: "corrupt" if name == "sav-000004.tar" else ""
    far = loader(f"{server.url}/sav", Cache(tmp_path, ANY, attempts=2), batch_size=1, fields=("prompt_masks1",))
    local = loader(small_set, batch_size=1, fields=("prompt_masks1",))
    with pytest.raises(UserError, match=r"sav-000004.tar: not what the manifest says: SHA-256; .*tried 2 times"):
        for batch, expected in zip(far.epoch(0), local.epoch(0), strict=True):
            assert_equal(batch, expected)


def test_training_on_a_url_that_cannot_be_read_is_one_line(server: FaultyServer, tmp_path):
    server.faults = lambda name, n: "corrupt" if name == "index.npy" else ""
    arguments = [f"data.shards=[{server.url}/sav]", f"data.cache={tmp_path}/cache", "data.attempts=1"]
    message = rf"{server.url}/sav/index.npy: not what the manifest says: SHA-256; met .*; tried 1 times"
    with pytest.raises(UserError, match=message) as raised:
        main([*arguments, f"output_dir={tmp_path}/run", "mixed_precision=no", "warmup_steps=0", "steps=1"])
    assert "\n" not in str(raised.value)
