"""Shard sets written again with a fault and right checksums: only checks of the data can find it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.request import make_request
from pipeline.run import run
from shards.archive import ShardWriter
from shards.format import INDEX, LEDGER, MANIFEST
from shards.manifest import Manifest, ShardInfo, pack_index, sha256
from shards.reader import ShardSet
from shards.recode import decoded_sample
from shards.sample import Sample
from shards.select import sample
from tests import mixed
from tests.conftest import without_tables

Change = Callable[[list[Sample]], list[Sample]]


def stored_samples(folder: Path) -> list[Sample]:
    """Every sample of a set, as it was handed to the writer."""
    shards = ShardSet(folder)
    return [decoded_sample(shards, i) for i in range(len(shards))]


def write_set(folder: Path, manifest: Manifest, samples: list[Sample]) -> None:
    """A set of one tar with a right index and manifest."""
    folder.mkdir()
    with open(folder / "sav-000000.tar", "wb") as file:
        writer = ShardWriter(file)
        for sample in samples:
            writer.write(sample)
        digest = writer.close()
    index = pack_index([writer.entries])
    info = ShardInfo("sav-000000.tar", len(samples), writer.size, digest)
    objects = sum(len(sample.meta["objects"]) for sample in samples)
    changed = replace(manifest, shards=(info,), samples=len(samples), inputs=len(samples), objects=objects)
    changed = replace(changed, index_sha256=sha256(index), ledger_sha256=sha256(b""), left_out={})
    (folder / INDEX).write_bytes(index)
    (folder / LEDGER).write_bytes(b"")
    (folder / MANIFEST).write_bytes(changed.to_bytes())


def change_frame(sample: Sample, number: int, **values: object) -> Sample:
    """`sample` with other tensors in frame `number` (from 1)."""
    frames = list(sample.frames)
    frames[number - 1] = replace(frames[number - 1], **values)  # type: ignore[arg-type]
    return replace(sample, frames=tuple(frames))


@pytest.fixture(scope="session")
def six(sav_set: Path) -> list[Sample]:
    """The first samples of `sav_set`. Not to be changed."""
    shards = ShardSet(sav_set)
    return [decoded_sample(shards, i) for i in range(6)]


@pytest.fixture(scope="session")
def mixed_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw data of `mixed.RECORDS`. Not to be changed."""
    return mixed.write_raw(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="session")
def mixed_set(mixed_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of samples with objects, with pictures alone and with text alone, in several tars. Not to be changed."""
    folder = tmp_path_factory.mktemp("shards") / "mixed"
    run(make_request(mixed.SOURCE, mixed_root, shard_bytes=600_000), folder, 1, 0)
    return folder


@pytest.fixture(scope="session")
def tiny_set(sav_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 samples of `sav_set`, a tar each. Not to be changed."""
    folder = tmp_path_factory.mktemp("tiny") / "sav"
    sample(sav_set, folder, 2, 0, 1)
    return folder


@pytest.fixture
def faulty(sav_set: Path, six: list[Sample], tmp_path: Path) -> Callable[[Change], Path]:
    """Return a function that writes the first six samples of `sav_set` again, changed by `change`."""

    def write(change: Change) -> Path:
        samples = [replace(sample, meta=deepcopy(sample.meta)) for sample in six]
        write_set(tmp_path / "faulty", Manifest.read(sav_set), change(samples))
        return tmp_path / "faulty"

    return write


@pytest.fixture
def copied(sav_set: Path, tmp_path: Path) -> Path:
    """A copy of `sav_set` to damage, without tables."""
    return without_tables(Path(shutil.copytree(sav_set, tmp_path / "copied")))
