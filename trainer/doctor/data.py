"""Shards, checked before a run: complete, of one recipe that fits the model, with what the objectives need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import BadShard, UserError
from shards.program import copy_again
from shards.reader import ShardSet
from shards.remote import RemoteShardSet, open_set
from shards.sets import find_sets
from trainer.config import Config
from trainer.data.decoding import Need
from trainer.data.holdout import holdout_notes
from trainer.data.loader import Loader, check_recipe
from trainer.data.near_twins import near_twins
from trainer.data.order import usable_samples
from trainer.data.selection import Selection
from trainer.doctor.findings import Finding, fail, ok, size, warn
from trainer.loader_options import training_options
from trainer.model.architecture import GRID, VISION_SIZE
from trainer.model.grounding import IMAGE_SIZE, MEAN, STD
from trainer.objectives import load_objective

PROBED = 16
"""Samples of a set that are read."""
_NEEDED: dict[Need, tuple[str, str]] = {
    "texts": ("an object with a text", "train this set with the objective dual, which needs none"),
    "regions": ("an object with a prompt cell", "shard it with the recipe default, which fills small regions"),
    "letters": ("a text", "train this set with the objective dual, which needs none"),
}


@dataclass(frozen=True)
class Data:
    """What a run would read."""

    sets: list[ShardSet]
    """Sets that can be opened."""
    faults: list[str] = field(default_factory=list)
    """Why other sets cannot be opened, and why the run would not get samples out of all of them together."""
    train: dict[str, int] = field(default_factory=dict)
    """Training samples per epoch, by objective."""
    held_out: dict[str, int] = field(default_factory=dict)
    """Held-out samples, by objective."""
    described: list[str] = field(default_factory=list)
    """The lines with which a checkpoint identifies the data."""
    selections: dict[Path, Selection] = field(default_factory=dict)
    """What `data.where` chooses, by the folder of the set; without sets that are taken whole."""
    selected: list[str] = field(default_factory=list)
    """The same in words, one line per set."""

    @classmethod
    def open(cls, config: Config, processes: int) -> Data:
        """Open all sets that can be opened, and make the loaders that the run would make."""
        data = cls([])
        cache = config.data.open_cache()
        try:
            paths = find_sets(config.data.shards, cache)
        except UserError as error:
            data.faults.append(str(error))
            return data
        for path in paths:
            try:
                data.sets.append(open_set(path, cache))
            except UserError as error:
                data.faults.append(str(error))
        if not data.faults:
            try:
                for name in config.objectives():
                    data._load(config, processes, name)
            except UserError as error:
                data.faults.append(str(error))
        return data

    def _load(self, config: Config, processes: int, objective: str) -> None:
        """Make the loaders that the run would make."""
        options = training_options(config, objective, None, world_size=processes)
        train = Loader(config.data.shards, options)
        self.train[objective] = len(train.order(0))
        held_out = Loader(config.data.shards, replace(options, part="holdout")) if config.data.holdout else None
        self.held_out[objective] = len(held_out.order(0)) if held_out else 0
        self.described.extend(f"{objective}: {line}" for line in train.described)
        self.selections.update(train.selections)
        self.selected.extend(line for line in train.selected if line not in self.selected)


def check_sets(config: Config, data: Data) -> Iterator[Finding]:
    """Yield findings on manifests, tars, indexes, recipes and the held-out part."""
    plans: dict[str, list[ShardSet]] = {}
    for shards in data.sets:
        manifest = shards.manifest
        faults = _faults(shards)
        if twin := _twin(shards, plans.setdefault(manifest.plan, [])):
            faults.append(f"the same set as {twin.folder}; name it once, and repeat it with data.sources")
        plans[manifest.plan].append(shards)
        text = f"{shards.folder}: {manifest.source}, {manifest.samples:,} samples, {manifest.objects:,} objects"
        nbytes = sum(info.bytes for info in manifest.shards)
        yield from (fail("data", f"{shards.folder}: {fault}") for fault in faults)
        if not faults:
            yield ok("data", f"{text}, {size(nbytes)}, recipe {manifest.recipe}")
        if manifest.psnr:
            yield warn("data", f"{shards.folder}: pictures are not bit-equal to the recipe: {manifest.pictures}")
    yield from (fail("data", fault) for fault in data.faults)
    if not data.faults:
        counts = [
            f"{name}: {count:,} samples per epoch, {data.held_out[name]:,} held out by {config.data.holdout_by}"
            for name, count in data.train.items()
        ]
        yield from (ok("data", line) for line in data.selected)
        yield ok("data", "; ".join(counts))
        held_out_by = config.data.holdout, config.data.holdout_by, config.sources()
        twins = near_twins(data.sets, *held_out_by)
        yield from (warn("data", note) for note in (*holdout_notes(data.sets, *held_out_by), *twins.found))
        yield from (ok("data", note) for note in twins.unknown)


def check_objective(config: Config, data: Data) -> Iterator[Finding]:
    """Yield for each set, from its index, how many samples have what its objectives need of an object."""
    for objective, entry in config.objectives().items():
        need = load_objective(objective).needs
        if need is None:
            continue
        sets = [s for s in data.sets if not entry.sources or s.manifest.source in entry.sources]
        chosen = [data.selections.get(s.folder) for s in sets]
        usable = [int(usable_samples(s.index, need, one).sum()) for s, one in zip(sets, chosen, strict=True)]
        what, advice = _NEEDED[need]
        for shards, selection, count in zip(sets, chosen, usable, strict=True):
            do = advice if shards.manifest.objects else "train its texts with the objective converse"
            samples = int(usable_samples(shards.index, None, selection).sum())
            of = "samples" if selection is None or selection.chosen is None else "samples that data.where chooses"
            text = f"{objective}, {shards.folder}: {count:,} of {samples:,} {of} have {what}"
            if count == samples:
                yield ok("objective", text)
            elif any(usable):
                yield warn("objective", f"{text}, the others are left out; {do}")
            else:
                yield fail("objective", f"{text}; {do}")


def check_samples(config: Config, data: Data) -> Iterator[Finding]:
    """Decode up to `PROBED` samples of each set, and yield how many are pairs where an objective takes pairs.

    Raises:
        BadShard: a sample that cannot be decoded.
    """
    for shards in data.sets:
        count = len(shards)
        if isinstance(shards, RemoteShardSet):  # samples of one tar, because each tar has to be fetched
            count = int((shards.index["shard"] == shards.index["shard"][0]).sum())
        positions = np.unique(np.linspace(0, count - 1, min(PROBED, count)).astype(int))
        pairs = 0
        for position in map(int, positions):
            try:
                meta: Any = shards[position]["meta"]
            except BadShard as error:
                where = error.where or f"{shards.folder}: {shards.key(position)}"
                raise BadShard(error.what, where=where, met=error.met, wanted=error.wanted, do=copy_again()) from None
            pairs += bool(meta.get("has_paired_frame"))
        text = f"{shards.folder}: {len(positions)} samples decoded"
        if _takes_pairs(config, shards.manifest.source):
            text += f"; {pairs} are pairs" + (
                ", for the others one frame serves twice" if pairs < len(positions) else ""
            )
        yield ok("samples", text)


def _takes_pairs(config: Config, source: str) -> bool:
    """Whether an objective reads pairs of frames of this source."""
    return any(
        not load_objective(name).reads_conversations and (not entry.sources or source in entry.sources)
        for name, entry in config.objectives().items()
    )


def _twin(shards: ShardSet, others: Sequence[ShardSet]) -> ShardSet | None:
    """Return one of `others`, of the same plan, that holds some of the same samples; parts of a set hold none."""
    return next((other for other in others if np.isin(shards.index["key"], other.index["key"]).any()), None)


def _faults(shards: ShardSet) -> list[str]:
    """Return what is not as the manifest says, without reading the tars; a tar from a URL is checked when fetched."""
    manifest = shards.manifest
    faults = []
    for info in () if isinstance(shards, RemoteShardSet) else manifest.shards:
        path = shards.folder / info.name
        nbytes = path.stat().st_size if path.is_file() else None
        if nbytes != info.bytes:
            text = "no such file" if nbytes is None else f"met {nbytes:,} bytes"
            faults.append(f"{info.name}: {text}; wanted {info.bytes:,} bytes; {copy_again()}")
    try:
        check_recipe(manifest.recipe, vision_size=VISION_SIZE, grid=GRID, sam_size=IMAGE_SIZE, mean=MEAN, std=STD)
    except UserError as error:
        faults.append(str(error))
    return faults
