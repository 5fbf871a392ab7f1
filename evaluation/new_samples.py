"""Find the samples that a model was not trained on, which are evaluated by default, and count the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.items import SampleRef
from shards.reader import ShardSet
from trainer.export import CHECKPOINT
from trainer.released.files import resolve
from trainer.released.training import read_training
from trainer.trained import ORIGIN, read_origin
from trainer.trained_on import TrainedOn

Mask = NDArray[np.bool_]


def trained_on(model: str) -> TrainedOn | None:
    """Read the record of what a model was trained on; None if the model has none.

    Args:
        model: folder of a run or of an exported model, or OWNER/NAME on the hub.

    Raises:
        UserError: no such model, or a damaged record.
    """
    path = Path(model)
    for folder in (path, path / CHECKPOINT):
        if (folder / ORIGIN).exists():
            return read_origin(folder / ORIGIN).trained_on
    return read_training(resolve(model))[1]


def new_parts(sets: Sequence[ShardSet], record: TrainedOn | None) -> list[Mask]:
    """Return the samples of each set that a model was not trained on; all if that is unknown or there are none."""
    if record is not None:
        new = [~record.holds(shards) for shards in sets]
        if any(part.any() for part in new):
            return new
    return [np.ones(len(shards), np.bool_) for shards in sets]


def count_trained(samples: Sequence[SampleRef], record: TrainedOn | None) -> Counter[str] | None:
    """Count, by source, `samples` that the model was trained on; None if that is unknown."""
    if record is None:
        return None
    held = {id(shards): record.holds(shards) for shards, _ in samples}
    return Counter(shards.manifest.source for shards, position in samples if held[id(shards)][position])


def explain_samples(sets: Sequence[ShardSet], samples: Sequence[SampleRef], record: TrainedOn | None) -> str:
    """Return one line for the user: how many of `samples` in `sets` the model was trained on."""
    counts = count_trained(samples, record)
    if record is None or counts is None:
        return "what the model was trained on is unknown: samples of its training may be in these numbers"
    same_pictures = {id(shards): record.shows(shards) & ~record.holds(shards) for shards in sets}
    trained = counts.total()
    note = f"{len(samples):,} of {sum(map(len, sets)):,} samples, none of which the model was trained on"
    if trained:
        note = f"warning: the model was trained on {trained:,} of these {len(samples):,} samples"
        if trained == len(samples):
            note += ": the numbers tell how well it remembers them, not how good it is on new ones"
    twins = sum(1 for shards, position in samples if same_pictures[id(shards)][position])
    if twins:
        note += f"; {twins:,} others show a picture or video, by its name, that samples of its training show"
    other = [shards for shards in sets if shards.manifest.plan not in record.plans and record.holds(shards).any()]
    if other:
        names = ", ".join(str(shards.folder) for shards in other)
        note += f"; in {names} samples are recognised by source and name alone: other raw files, recipe or options"
    if not record.complete:
        note += "; what the model that its training started from was trained on is unknown"
    return note
