"""Shards, checked before a run: whole, of one recipe that fits the model, and with what the objective needs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from shards.errors import BadShard, UserError
from shards.format import INDEX, Field
from shards.reader import ShardSet
from trainer.config import Config
from trainer.data import Loader, check_recipe
from trainer.findings import Finding, fail, ok, size, warn
from trainer.model.architecture import GRID, VISION_SIZE
from trainer.model.grounding import IMAGE_SIZE, MEAN, STD
from trainer.step import FIELDS

PROBED = 16
"""Samples of a set that are read."""
_VERIFY = "copy the set again; cli.py verify-shard says more"
_NEEDS_TEXT, _NEEDS_REGION = ("segment", "describe", "reverse"), ("dual", "describe")


@dataclass(frozen=True)
class Data:
    """What a run would read."""

    sets: list[ShardSet]
    """Those that can be opened."""
    faults: list[str]
    """Why others cannot, and why the run would not get samples out of all of them together."""
    train: int = 0
    """Samples an epoch."""
    held_out: int = 0
    described: list[str] = field(default_factory=list)
    """`Loader.described`."""

    @classmethod
    def open(cls, config: Config, processes: int) -> Data:
        sets, faults = [], []
        for path in config.data.shards:
            try:
                sets.append(ShardSet(path))
            except UserError as error:
                faults.append(str(error))
        if faults:
            return cls(sets, faults)
        load = partial(
            Loader,
            config.data.shards,
            fields=FIELDS[config.objective],
            batch_size=config.batch_size,
            seed=config.seed,
            world_size=processes,
            holdout=config.data.holdout,
            repeats=config.data.sources,
            objects_per_sample=config.data.objects_per_sample,
        )
        try:
            train = load(accumulation=config.accumulation)
            held_out = len(load(part="holdout").order(0)) if config.data.holdout else 0
        except UserError as error:
            return cls(sets, [str(error)])
        return cls(sets, [], len(train.order(0)), held_out, train.described)


def check_sets(config: Config, data: Data) -> Iterator[Finding]:
    """Manifests, tars, index, recipe."""
    plans: dict[str, ShardSet] = {}
    for shards in data.sets:
        manifest, faults = shards.manifest, _faults(shards)
        if twin := plans.get(manifest.plan):
            faults.append(f"the same set as {twin.folder}; name it once, and repeat it with data.sources")
        plans.setdefault(manifest.plan, shards)
        said = f"{shards.folder}: {manifest.source}, {manifest.samples:,} samples, {manifest.objects:,} objects"
        bytes_ = size(sum(info.bytes for info in manifest.shards))
        yield from (fail("data", f"{shards.folder}: {fault}") for fault in faults)
        if not faults:
            yield ok("data", f"{said}, {bytes_}, recipe {manifest.recipe.name} ({manifest.recipe.digest})")
    yield from (fail("data", fault) for fault in data.faults)
    if not data.faults:
        yield ok("data", f"{data.train:,} samples an epoch to train on, {data.held_out:,} held out")


def check_objective(config: Config, data: Data) -> Iterator[Finding]:
    """What the objective needs of objects, in some samples of each set, which are decoded for it."""
    for shards in data.sets:
        positions = np.unique(np.linspace(0, len(shards) - 1, min(PROBED, len(shards))).astype(int))
        objects = with_text = with_region = pairs = 0
        for position in map(int, positions):
            try:
                sample = shards[position]
            except BadShard as error:
                where = error.where or f"{shards.folder}: {shards.key(position)}"
                raise BadShard(error.what, where=where, met=error.met, wanted=error.wanted, do=_VERIFY) from None
            meta: Any = sample["meta"]
            name = str(Field("prompt_masks", None if len(meta["frames"]) == 1 else 1))
            objects += len(meta["objects"])
            with_text += sum(any(text.strip() for text in item.get("texts") or ()) for item in meta["objects"])
            with_region += int(sample[name].any(axis=(1, 2)).sum())
            pairs += bool(meta.get("has_paired_frame"))
        looked = f"{shards.folder}: of {len(positions)} samples with {objects} objects that were read"
        yield from _judged(config.objective, looked, objects, with_text, with_region, pairs)


def _judged(
    objective: str, looked: str, objects: int, with_text: int, with_region: int, pairs: int
) -> Iterator[Finding]:
    needs = []
    if objective in _NEEDS_TEXT:
        needs.append((with_text, "a text", "train this set with objective=dual, which needs no text"))
    if objective in _NEEDS_REGION:
        needs.append((with_region, "a prompt cell in frame 1", "shard it with the recipe default, which fills them"))
    short = [(count, what, do) for count, what, do in needs if count < objects]
    for count, what, do in short:
        said = f"{looked}, {count or 'no'} object{'s have' if count != 1 else ' has'} {what}"
        yield warn("objective", f"{said}; {do}") if count else fail("objective", f"{said}; {do}")
    if not short:
        said = " and ".join(what for _, what, _ in needs)
        frames = f"; {pairs} are pairs, for the others frame 1 serves twice" if objective == "dual" else ""
        yield ok("objective", f"{looked}, all have {said}{frames}")


def _faults(shards: ShardSet) -> list[str]:
    """What is not as the manifest says, without reading the tars."""
    manifest, faults = shards.manifest, []
    for info in manifest.shards:
        path = shards.folder / info.name
        met = path.stat().st_size if path.is_file() else None
        if met != info.bytes:
            said = "no such file" if met is None else f"met {met:,} bytes"
            faults.append(f"{info.name}: {said}; wanted {info.bytes:,} bytes; {_VERIFY}")
    with open(shards.folder / INDEX, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != manifest.index_sha256:
            faults.append(f"{INDEX} is not the one that the manifest was written with; {_VERIFY}")
    try:
        check_recipe(manifest.recipe, vision_size=VISION_SIZE, grid=GRID, sam_size=IMAGE_SIZE, mean=MEAN, std=STD)
    except UserError as error:
        faults.append(str(error))
    return faults
