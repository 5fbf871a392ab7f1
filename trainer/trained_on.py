"""The samples that a model was trained on, recorded with it, so that an evaluation does not take them for new ones.

A sample is known by its source and its key, a hash of its raw file's path. So it is recognised in a set that was cut,
recoded or written again with another recipe; a raw file of the same name in another folder is taken for the same. The
pictures and videos that samples show are recorded by name, too: other samples may show them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.reader import ShardSet
from shards.regular_file import read_regular
from trainer.data.choice import UInt64, hash64
from trainer.data.holdout import pictures_of

FILE = "trained_on.bin"
KEY = "trained_on"
"""The file beside a model's weights with `TrainedOn.ids`, uint64 little-endian; the key in the JSON beside it."""
_ID = np.dtype("<u8")


@dataclass(frozen=True, eq=False)
class TrainedOn:
    """The samples of all trainings of a model."""

    ids: UInt64 = field(default_factory=lambda: np.empty(0, np.uint64))
    """(S,) ids of `sample_ids` and `picture_ids`, sorted."""
    plans: tuple[str, ...] = ()
    """Plans of the sets that held the samples, see `shards.manifest.Manifest.plan`."""
    complete: bool = True
    """Whether the weights were random before; else they came from a model whose own training is not recorded."""

    def extended(self, ids: Iterable[UInt64], plans: Iterable[str]) -> TrainedOn:
        """Return the record of the model after a training on further samples."""
        every = np.unique(np.concatenate([self.ids, *ids]))
        return TrainedOn(every, tuple(sorted({*self.plans, *plans})), self.complete)

    def holds(self, shards: ShardSet) -> NDArray[np.bool_]:
        """Return which samples of a set the model was trained on: (N,) bool."""
        return np.isin(sample_ids(shards), self.ids)

    def shows(self, shards: ShardSet) -> NDArray[np.bool_]:
        """Return which samples of a set show a picture or video, by name, of a sample in the record: (N,) bool."""
        return np.isin(picture_ids(shards), self.ids)

    def to_json(self) -> dict[str, Any]:
        """Return all but the ids."""
        return {"names": len(self.ids), "plans": list(self.plans), "complete": self.complete}


def after_training(before: TrainedOn | None, ids: Iterable[UInt64], plans: Iterable[str]) -> TrainedOn:
    """Return `before` extended by further samples; where it is None, unknown, the record is not complete."""
    return (before or TrainedOn(complete=False)).extended(ids, plans)


def sample_ids(shards: ShardSet) -> UInt64:
    """Return a hash of source and key of each sample: (N,) uint64."""
    keys = np.ascontiguousarray(shards.index["key"])
    source = hashlib.sha256(shards.manifest.source.encode()).digest()[:8]
    total = np.full(len(keys), int.from_bytes(source, "little"), np.uint64)
    for column in keys.view(_ID).reshape(len(keys), keys.dtype.itemsize // 8).T:
        total = hash64(total ^ column, salt=1)
    return total


def picture_ids(shards: ShardSet) -> UInt64:
    """Return a hash of the name of the picture or video that each sample shows, in any source: (N,) uint64."""
    return hash64(pictures_of(shards), salt=2)


def read_trained_on(folder: Path, body: dict[str, Any], where: str) -> TrainedOn | None:
    """Read the record in `folder` of what a model was trained on; None where there is none.

    Args:
        folder: holds `trained_on.bin`.
        body: the JSON in `folder` with the number of names.
        where: the file of `body`, for messages.

    Raises:
        UserError: the two disagree, or are damaged.
    """
    record = body.get(KEY)
    if record is None:
        return None
    kinds = {"names": int, "plans": list, "complete": bool}
    if not isinstance(record, dict) or any(type(record.get(name)) is not kind for name, kind in kinds.items()):
        raise UserError("not what a model was trained on", where=f"{where}, {KEY}", wanted=", ".join(kinds))
    path = folder / FILE
    try:
        data = read_regular(path)
    except OSError as error:
        raise UserError("cannot be read", where=str(path), met=str(error.strerror), wanted=f"as {where} says") from None
    size = record["names"] * _ID.itemsize
    if len(data) != size:
        raise UserError(
            "not as long as it should be", where=str(path), met=f"{len(data)} bytes", wanted=f"{size} bytes"
        )
    ids = np.frombuffer(data, _ID).astype(np.uint64)
    return TrainedOn(ids, tuple(map(str, record["plans"])), record["complete"])


def ids_to_bytes(trained_on: TrainedOn) -> bytes:
    """Return the bytes that `trained_on.bin` holds."""
    return trained_on.ids.astype(_ID).tobytes()
