"""Evaluate a model on shards: every object of every sample once, on any number of processes.

Returns a table; writes nothing but the JSON file. A run that trains meanwhile is not disturbed: its checkpoint is read
once.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray
from tqdm import tqdm

from evaluation.conversations import AskedSample, ConversationReader
from evaluation.items import DecodedSample, SampleRef, Selections, group_samples, make_batches, read_groups
from evaluation.new_samples import count_trained, explain_samples, new_parts, trained_on
from evaluation.predicted import PredictedFile
from evaluation.scores import ALL, Tally, table
from inference.loading import load
from inference.pictures import write_json
from inference.recipes import explain_shards
from shards.errors import UserError
from shards.groups import Group
from shards.printable import printable
from shards.reader import ShardSet
from shards.sets import open_sets
from shards.storage.cache import Cache
from trainer.config import Config, with_values
from trainer.conversations.kinds import KINDS
from trainer.conversations.options import NoTarget
from trainer.data.batch import Batch, ConversationBatch
from trainer.data.holdout import held_out_parts
from trainer.data.loader import check_recipe
from trainer.data.order import usable_samples
from trainer.data.selection import OF_SOURCE, lines_of, select
from trainer.model.architecture import GRID, VISION_SIZE
from trainer.model.grounding import IMAGE_SIZE, MEAN, STD
from trainer.model.sa2va import Sa2VA
from trainer.objectives import OBJECTIVES, load_objective
from trainer.objectives.judging import Judged
from trainer.objectives.passes import Passes
from trainer.processes import missing_processes, start
from trainer.released.loaded import LoadedModel
from trainer.released.training import recipe_to_json

_PATIENCE = timedelta(days=7)
"""How long a process waits for the slowest one at the end. Their numbers of items differ, so minutes are too short."""


def evaluate(
    model: str,
    shards: Sequence[str],
    *,
    objective: str | None = None,
    split: str | None = None,
    where: str | None = None,
    texts: Sequence[str] = OF_SOURCE,
    holdout: float | None = None,
    holdout_by: Group = "picture",
    limit: int | None = None,
    batch_size: int = 8,
    max_caption_tokens: int = 64,
    kind: str | None = None,
    frames: int = 5,
    no_target: NoTarget = "refusal",
    device: str | None = None,
    dtype: str | None = None,
    json_file: Path | None = None,
    predictions: Path | None = None,
    cache: Cache | None = None,
) -> str | None:
    """Evaluate a model on shard sets.

    Args:
        model: a released or int8 folder, OWNER/NAME on the hub, the folder of a run, or a checkpoint.
        shards: folders of shard sets, or their URLs, of one recipe.
        objective: a name in `trainer.objectives.OBJECTIVES`; None takes segment if objects have texts, else dual.
        split: take only the sets that were made from this split.
        where: ask only about the objects for which this condition over the table of each set is true; sets without
            objects are taken whole.
        texts: names of the texts that objects have, "source" and TABLE.COLUMN, as of `data.texts`.
        holdout: take only the samples that a training with this `data.holdout` leaves out; 0 takes all; None takes
            those that the model was not trained on, if its folder says so (see `evaluation.new_samples`).
        holdout_by: `data.holdout_by` of that training.
        limit: take only the first `limit` samples of each set.
        batch_size: items per batch, and samples per group (see `evaluation.items`).
        max_caption_tokens: most tokens of a caption (dual) or an answer (conversations) that the model writes.
        kind: a key of `KINDS` (converse); None: the kind that fits each sample.
        frames: frames of a video in a row (converse).
        no_target: the true answer to an expression of no object (converse); see `trainer.conversations.options`.
        device: as in `inference.loading.load`; each of several processes has its own.
        dtype: as in `inference.loading.load`.
        json_file: file for the numbers.
        predictions: file for the predicted masks, a line for each; one that is there is replaced.
        cache: the cache for sets at URLs.

    Returns:
        The numbers as a table; None on all processes but the first.

    Raises:
        UserError: an unknown objective; sets that do not fit the model or one another, or hold nothing to evaluate;
            what `load` and `trainer.data.selection.select` raise.
    """
    _check_file(json_file, "--json")
    _check_file(predictions, "--predictions")
    sets = _open(shards, split, cache)
    texts = tuple(dict.fromkeys(texts))
    selections = {opened: found for opened in sets if (found := select(opened, where, texts)) is not None}
    chosen = objective or _default_objective(sets, {} if texts == OF_SOURCE else selections)
    _check_kind(kind, chosen)
    if processes := missing_processes():
        start(processes)
        return None
    record = trained_on(model)
    parts = new_parts(sets, record) if holdout is None else _held_out(sets, holdout, holdout_by)
    parts = [part & usable_samples(s.index, None, selections.get(s)) for s, part in zip(sets, parts, strict=True)]
    samples_of_set = [_sample_refs(opened, part, limit) for opened, part in zip(sets, parts, strict=True)]
    groups = [group for samples in samples_of_set for group in group_samples(samples, batch_size)]
    samples = [sample for samples in samples_of_set for sample in samples]
    if not groups:
        raise UserError("nothing to evaluate", where=", ".join(shards), met="no sample in this part of the shards")
    state = process_state(device)
    loaded = load(model, str(state.device) if state.num_processes > 1 else device, dtype)
    notes = [explain_shards(loaded, sets[0].recipe), explain_samples(sets, samples, record)]
    notes += lines_of(sets, [selections.get(opened) for opened in sets], where)
    if state.is_main_process:  # warnings come before hours of work
        print(*map(printable, notes), sep="\n", file=sys.stderr)
    loaded.model.eval().grounding_encoder.float()  # as in prediction: autocast alone makes SAM 2 bfloat16

    how = _How(batch_size, max_caption_tokens, kind, frames, no_target)
    if predictions is not None and state.is_main_process:
        predictions.unlink(missing_ok=True)
    state.wait_for_everyone()
    written = None if predictions is None else PredictedFile(predictions, chosen)
    gathered: list[_Tallies] = gather_object([_tally(loaded.model, groups, chosen, how, state, selections, written)])
    state.wait_for_everyone()
    text = None
    if state.is_main_process:
        merged, *others = gathered
        for other in others:
            merged.merge(other)
        by_source, by_kind = merged.results(len(samples), chosen)
        trained = count_trained(samples, record)
        for source, values in by_source.items():
            values["trained_on"] = None if trained is None else trained.total() if source == ALL else trained[source]
        if json_file is not None:
            settings = {
                "holdout": holdout,
                "holdout_by": holdout_by if holdout else None,
                "limit": limit,
                "split": split,
                "where": where,
                "texts": list(texts),
                **_settings(chosen, how),
            }
            write_json(json_file, _result(model, loaded, chosen, settings, sets, notes, by_source, by_kind))
        title = f"{chosen}: {model}" + (f", split {split}" if split else "")
        text = "\n".join([table(title, by_source, by_kind), *notes])
    state.destroy_process_group()
    return text


def _result(
    model: str,
    loaded: LoadedModel,
    objective: str,
    settings: Mapping[str, Any],
    sets: Sequence[ShardSet],
    notes: Sequence[str],
    by_source: Mapping[str, Any],
    by_kind: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the content of the JSON file: what was evaluated, how, and the metrics by source and by kind."""
    recipe = loaded.info.recipe
    return {
        "model": model,
        "dtype": str(loaded.model.embedding.weight.dtype).removeprefix("torch."),
        "objective": objective,
        **settings,
        **recipe_to_json(sets[0].recipe),
        "model_recipe": None if recipe is None else recipe_to_json(recipe),
        "notes": notes,
        "shards": [{"folder": str(s.folder), "source": s.manifest.source, "plan": s.manifest.plan} for s in sets],
        "sources": {name: values for name, values in by_source.items() if name != ALL},
        **({"kinds": by_kind} if by_kind else {}),
        ALL: by_source[ALL],
    }


def _settings(objective: str, how: _How) -> dict[str, Any]:
    """Return the options of `how` by name; None for those that the objective does not read."""
    chosen = load_objective(objective)
    generates = chosen.swaps_captions or chosen.reads_conversations
    of_any_kind = chosen.reads_conversations and not chosen.conversation_kind
    read = {"max_caption_tokens": generates, "kind": of_any_kind, "frames": of_any_kind, "no_target": of_any_kind}
    return {name: value if read.get(name, True) else None for name, value in vars(how).items()}


def _check_file(file: Path | None, option: str) -> None:
    """Check that the file of an option can be written before hours of work."""
    if file is None:
        return
    if not file.absolute().parent.is_dir():
        raise UserError("no such folder", where=str(file), do=f"make it, or give another {option}")
    if file.is_dir():
        raise UserError("a folder, not a file", where=str(file), do=f"give the name of a file in it as {option}")


def _check_kind(kind: str | None, objective: str) -> None:
    """Check that there is such a kind, and that the objective reads conversations of it."""
    chosen = load_objective(objective)
    if kind is None:
        return
    if kind not in KINDS:
        raise UserError("no such kind of conversation", where="--kind", met=kind, wanted=" or ".join(KINDS))
    if not chosen.reads_conversations or chosen.conversation_kind:
        do = "give --objective converse"
        raise UserError("an objective without a choice of kinds", where="--kind", met=objective, do=do)


def process_state(device: str | None) -> PartialState:
    """Join the other processes, if there are any; raises `UserError` for one device for all of them."""
    state = PartialState(cpu=device == "cpu" or not torch.accelerator.is_available(), timeout=_PATIENCE)
    if state.num_processes > 1 and device not in (None, "cpu"):
        raise UserError(
            "one device for all",
            where="--device",
            met=f"{device} for {state.num_processes} processes",
            do="leave it out: each takes its own",
        )
    return state


@dataclass(frozen=True)
class _How:
    """Options of `evaluate` that say how is asked."""

    batch_size: int
    max_caption_tokens: int
    kind: str | None
    frames: int
    no_target: NoTarget


@dataclass
class _Tallies:
    """Sums by source, and by kind of conversation."""

    sources: dict[str, Tally] = field(default_factory=partial(defaultdict, Tally))
    kinds: dict[str, Tally] = field(default_factory=partial(defaultdict, Tally))

    def count(self, group: Sequence[DecodedSample | AskedSample]) -> None:
        """Count samples and what was left out of them."""
        for sample in group:
            tally = self.sources[sample.shards.manifest.source]
            tally.samples += 1
            tally.left_out += sample.left_out

    def add(self, batch: Batch, sources: Sequence[str], judged: Judged) -> None:
        """Count in the items of a batch, which are of these sources."""
        values = {name: value.cpu() for name, value in judged.values.items()}
        every = torch.arange(len(sources))
        item_of = {name: judged.rows[name].cpu() if judged.rows else every for name in values}
        groups = [(self.sources, sources)]
        if isinstance(batch, ConversationBatch):
            groups.append((self.kinds, [talk.kind for talk in batch.conversations]))
        for tallies, names in groups:
            for name in dict.fromkeys(names):
                own = torch.tensor([other == name for other in names])
                tallies[name].add({k: value[own[item_of[k]]] for k, value in values.items()}, int(own.sum()))

    def merge(self, other: _Tallies) -> None:
        """Add the sums of another process."""
        for own, others in ((self.sources, other.sources), (self.kinds, other.kinds)):
            for name, tally in others.items():
                own[name].merge(tally)

    def results(self, samples: int, objective: str) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """Return the metrics by source, and of all; and by kind.

        Raises:
            UserError: there are no items.
        """
        total = Tally()
        for tally in self.sources.values():
            total.merge(tally)
        assert total.samples == samples, (total.samples, samples)  # each sample once, on whichever process
        if not total.items:
            reasons = ", ".join(f"{count} {reason}" for reason, count in total.left_out.items()) or "no object"
            raise UserError("nothing to evaluate", met=reasons, do="choose another --objective: dual needs no text")
        by_source, by_kind = (
            {name: found[name].to_json(objective) for name in sorted(found)} for found in (self.sources, self.kinds)
        )
        for values in by_kind.values():
            del values["samples"], values["left_out"]
        return by_source | {ALL: total.to_json(objective)}, by_kind


@torch.no_grad()
def _tally(
    model: Sa2VA,
    groups: Sequence[Sequence[SampleRef]],
    objective: str,
    how: _How,
    state: PartialState,
    selections: Selections,
    written: PredictedFile | None = None,
) -> _Tallies:
    """Evaluate this process's share of the groups; return the sums. What is predicted goes into `written`."""
    config = with_values(
        Config(), {"max_caption_tokens": how.max_caption_tokens, "eval.answer_tokens": how.max_caption_tokens}
    )
    judged = load_objective(objective)(Passes(model, config))
    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=model.embedding.weight.dtype == torch.bfloat16)
    tallies = _Tallies()
    own_groups = groups[state.process_index :: state.num_processes]
    several = state.num_processes > 1
    desc = f"evaluate (process 1 of {state.num_processes})" if several else "evaluate"
    total = sum(map(len, own_groups))
    with (
        tqdm(total=total, desc=desc, unit="sample", mininterval=0.5, disable=not state.is_main_process) as bar,
        autocast,
    ):
        for group, batches in _batches(model, own_groups, objective, how, selections):
            tallies.count(group)
            for batch, sources in batches:
                found = judged.judge(batch.to(model.device), side=IMAGE_SIZE)
                tallies.add(batch, sources, found)
                if written is not None:
                    written.add(group[0].shards, batch, found)
            bar.update(len(group))
    return tallies


def _batches(
    model: Sa2VA, groups: Sequence[Sequence[SampleRef]], objective: str, how: _How, selections: Selections
) -> Iterator[tuple[Sequence[DecodedSample | AskedSample], Iterator[tuple[Batch, list[str]]]]]:
    """Yield the samples of each group, and their batches with the source of each item."""
    chosen = load_objective(objective)
    if not chosen.reads_conversations:
        decoded = read_groups(groups, objective, selections)
        yield from ((group, make_batches(group, objective, how.batch_size)) for group in decoded)
    elif groups:
        (shards, _), *_ = groups[0]
        kind = chosen.conversation_kind or how.kind
        asked = how.batch_size, how.frames, how.no_target
        reader = ConversationReader(shards, kind, model.prompts, *asked, selections)
        yield from reader.read(groups)


def _open(paths: Sequence[str], split: str | None, cache: Cache | None) -> list[ShardSet]:
    """Open the sets in `paths` that are of `split`; check them against the model's sizes and one another."""
    sets = open_sets(paths, cache)
    if split is not None:
        found = ", ".join(f"{s.folder}: {s.manifest.options.get('split', 'none')}" for s in sets)
        sets = [s for s in sets if s.manifest.options.get("split") == split]
        if not sets:
            do = "give the shards that were made with this --split"
            raise UserError("no shards of this split", where="--split", met=found, wanted=split, do=do)
    for other in sets:
        if other.recipe.digest != sets[0].recipe.digest:
            raise UserError(
                "shards of different recipes",
                where=str(other.folder),
                met=str(other.recipe),
                wanted=str(sets[0].recipe),
            )
    check_recipe(sets[0].recipe, vision_size=VISION_SIZE, grid=GRID, sam_size=IMAGE_SIZE, mean=MEAN, std=STD)
    return sets


def _held_out(sets: Sequence[ShardSet], share: float, by: Group) -> list[NDArray[np.bool_]]:
    return held_out_parts(sets, share, by) if share else [np.ones(len(shards), np.bool_) for shards in sets]


def _sample_refs(shards: ShardSet, kept: NDArray[np.bool_], limit: int | None) -> list[SampleRef]:
    return [(shards, int(position)) for position in np.flatnonzero(kept)[:limit]]


def _default_objective(sets: Sequence[ShardSet], selections: Selections) -> str:
    """Return converse if a sample has texts and no region; else segment if all sets have texts, and dual if none has.

    Args:
        selections: of the sets whose objects have other texts than the source's.

    Raises:
        UserError: some sets have texts and some have none.
    """
    for shards in sets:
        index = shards.index
        if "letters" in (index.dtype.names or ()) and ((index["letters"] > 0) & (index["regions"] == 0)).any():
            return "converse"
    counts = [selections[s].counts("texts") if s in selections else s.index["texts"] for s in sets]
    with_texts = [bool((of_set > 0).any()) for of_set in counts]
    if all(with_texts):
        return "segment"
    if not any(with_texts):
        return "dual"
    found = ", ".join(f"{s.folder} {'with' if has else 'without'}" for s, has in zip(sets, with_texts, strict=True))
    texts = [name for name in OBJECTIVES if load_objective(name).needs == "texts"]
    raise UserError(
        "some shards have texts and some have none",
        where="--objective",
        met=found,
        wanted=f"{', '.join(texts)} (they need texts) or dual",
    )
