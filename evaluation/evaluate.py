"""How good a model is on shards: every object of every sample once, on one process or several, a table and a JSON.

Nothing but the JSON is written. A run that trains meanwhile is not disturbed: its checkpoint is read once.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray
from tqdm import tqdm

from evaluation.items import Place, batches, cut, read
from evaluation.new_samples import count_trained, explain_samples, new_parts, trained_on
from evaluation.scores import ALL, Tally, table
from inference.loading import load
from inference.pictures import write_file
from inference.recipes import explain_shards
from shards.errors import UserError
from shards.groups import Group
from shards.printable import printable
from shards.reader import ShardSet
from shards.sets import open_sets
from shards.storage.cache import Cache
from trainer.config import Config, with_values
from trainer.data.holdout import held_out_parts
from trainer.data.loader import check_recipe
from trainer.model.architecture import GRID, VISION_SIZE
from trainer.model.grounding import IMAGE_SIZE, MEAN, STD
from trainer.model.sa2va import Sa2VA
from trainer.objectives import OBJECTIVES, load_objective
from trainer.objectives.passes import Passes
from trainer.processes import missing_processes, start
from trainer.released.training import recipe_to_json

_PATIENCE = timedelta(days=7)
"""How long a process waits for the slowest one at the end: shares of the data differ, minutes would be too short."""


def evaluate(
    model: str,
    shards: Sequence[str],
    *,
    objective: str | None = None,
    split: str | None = None,
    holdout: float | None = None,
    holdout_by: Group = "picture",
    limit: int | None = None,
    batch_size: int = 8,
    max_caption_tokens: int = 64,
    device: str | None = None,
    dtype: str | None = None,
    json_file: Path | None = None,
    cache: Cache | None = None,
) -> str | None:
    """Evaluate a model on shard sets.

    Args:
        model: a released folder, an int8 one, OWNER/NAME on the hub, a run's folder or a checkpoint.
        shards: folders of shard sets, or their URLs, of one recipe.
        objective: a name in `trainer.objectives.OBJECTIVES`; where None, segment if the objects have texts, else dual.
        split: keep the sets that were made of this split.
        holdout: keep the samples that a training with this `data.holdout` leaves out; 0 keeps all; None those that the
            model was not trained on, as far as its folder says (see `evaluation.new_samples`).
        holdout_by: `data.holdout_by` of that training.
        limit: keep the first so many samples of each set.
        batch_size: items a batch; samples a group (see `evaluation.items`).
        max_caption_tokens: of the captions that the model writes itself (dual).
        device: as in `inference.loading.load`; several processes have their own.
        dtype: as in `inference.loading.load`.
        json_file: gets the numbers.
        cache: where sets at URLs are read through.

    Returns:
        The numbers as a table; None on a process that has nothing to say.

    Raises:
        UserError: an unknown objective; sets that do not fit the model or one another, or hold nothing to evaluate;
            what `load` raises.
    """
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise UserError("no such folder", where=str(json_file), do="make it, or give another --json")
    if json_file is not None and json_file.is_dir():
        raise UserError("a folder, not a file", where=str(json_file), do="give the name of a file in it as --json")
    sets = _open(shards, split, cache)
    chosen = objective or _objective(sets)
    swaps_captions = load_objective(chosen).swaps_captions
    if processes := missing_processes():
        start(processes)
        return None
    record = trained_on(model)
    parts = new_parts(sets, record) if holdout is None else _held_out(sets, holdout, holdout_by)
    places = [_places(own, part, limit) for own, part in zip(sets, parts, strict=True)]
    groups = [group for own in places for group in cut(own, batch_size)]
    every = [place for own in places for place in own]
    if not groups:
        raise UserError("nothing to evaluate", where=", ".join(shards), met="no sample in this part of the shards")
    state = PartialState(cpu=device == "cpu" or not torch.accelerator.is_available(), timeout=_PATIENCE)
    if state.num_processes > 1 and device not in (None, "cpu"):
        met = f"{device} for {state.num_processes} processes"
        raise UserError("one device for all", where="--device", met=met, do="leave it out: each takes its own")
    loaded = load(model, str(state.device) if state.num_processes > 1 else device, dtype)
    notes = [explain_shards(loaded, sets[0].recipe), explain_samples(sets, every, record)]
    if state.is_main_process:  # what is wrong is said before hours go into it
        print(*map(printable, notes), sep="\n", file=sys.stderr)
    loaded.model.eval().grounding_encoder.float()  # as in prediction: bfloat16 for SAM 2 is left to autocast

    tallies = _tally(loaded.model, groups, chosen, batch_size, max_caption_tokens, state)
    gathered = gather_object([tallies])
    state.wait_for_everyone()
    shown = None
    if state.is_main_process:
        of_source = _together(gathered, len(every), chosen)
        trained = count_trained(every, record)
        for source, values in of_source.items():
            values["trained_on"] = None if trained is None else trained.total() if source == ALL else trained[source]
        title = f"{chosen}: {model}" + (f", split {split}" if split else "")
        settings = {"holdout": holdout, "holdout_by": holdout_by if holdout else None, "limit": limit, "split": split}
        settings["batch_size"] = batch_size
        settings["max_caption_tokens"] = max_caption_tokens if swaps_captions else None
        said = {
            "model": model,
            "dtype": str(loaded.model.embedding.weight.dtype).removeprefix("torch."),
            "objective": chosen,
            **settings,
            **recipe_to_json(sets[0].recipe),
            "model_recipe": None if loaded.info.recipe is None else recipe_to_json(loaded.info.recipe),
            "notes": notes,
            "shards": [{"folder": str(s.folder), "source": s.manifest.source, "plan": s.manifest.plan} for s in sets],
            "sources": {name: values for name, values in of_source.items() if name != ALL},
            ALL: of_source[ALL],
        }
        if json_file is not None:
            write_file(
                json_file, (json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
            )
        shown = "\n".join([table(title, of_source), *notes])
    state.destroy_process_group()
    return shown


@torch.no_grad()
def _tally(
    model: Sa2VA,
    groups: Sequence[Sequence[Place]],
    objective: str,
    size: int,
    max_caption_tokens: int,
    state: PartialState,
) -> dict[str, Tally]:
    """This process's share, by source."""
    judged = load_objective(objective)(Passes(model, with_values(Config(), {"max_caption_tokens": max_caption_tokens})))
    half = torch.autocast(model.device.type, torch.bfloat16, enabled=model.embedding.weight.dtype == torch.bfloat16)
    tallies: dict[str, Tally] = defaultdict(Tally)
    own, others = groups[state.process_index :: state.num_processes], state.num_processes - 1
    desc = f"evaluate (process 1 of {others + 1})" if others else "evaluate"
    total = sum(map(len, own))
    with tqdm(total=total, desc=desc, unit="sample", mininterval=0.5, disable=not state.is_main_process) as bar, half:
        for group in read(own, objective):
            for sample in group:
                tally = tallies[sample.shards.manifest.source]
                tally.samples += 1
                tally.left_out += sample.left_out
            for batch, sources in batches(group, objective, size):
                values = judged.judge(batch.to(model.device), side=IMAGE_SIZE).values
                values = {name: value.cpu() for name, value in values.items()}
                for source in dict.fromkeys(sources):
                    rows = torch.tensor([other == source for other in sources])
                    tallies[source].add({name: value[rows] for name, value in values.items()})
            bar.update(len(group))
    return dict(tallies)


def _together(gathered: Sequence[dict[str, Tally]], samples: int, objective: str) -> dict[str, dict[str, Any]]:
    """The results by source, and of all; raises `UserError` where there is none."""
    of_source, total = defaultdict[str, Tally](Tally), Tally()
    for tallies in gathered:
        for source, tally in tallies.items():
            of_source[source].merge(tally)
            total.merge(tally)
    assert total.samples == samples, (total.samples, samples)  # each sample once, whoever counted it
    if not total.items:
        met = ", ".join(f"{count} {reason}" for reason, count in total.left_out.items()) or "no object"
        raise UserError("nothing to evaluate", met=met, do="choose another --objective: dual needs no text")
    return {name: of_source[name].to_json(objective) for name in sorted(of_source)} | {ALL: total.to_json(objective)}


def _open(paths: Sequence[str], split: str | None, cache: Cache | None) -> list[ShardSet]:
    """The sets in `paths` that are of `split`, checked against the model's sizes and one another."""
    sets = open_sets(paths, cache)
    if split is not None:
        met = ", ".join(f"{s.folder}: {s.manifest.options.get('split', 'none')}" for s in sets)
        sets = [s for s in sets if s.manifest.options.get("split") == split]
        if not sets:
            do = "give the shards that were made with this --split"
            raise UserError("no shards of this split", where="--split", met=met, wanted=split, do=do)
    for other in sets:
        if other.recipe.digest != sets[0].recipe.digest:
            met, wanted = map(str, (other.recipe, sets[0].recipe))
            raise UserError("shards of different recipes", where=str(other.folder), met=met, wanted=wanted)
    check_recipe(sets[0].recipe, vision_size=VISION_SIZE, grid=GRID, sam_size=IMAGE_SIZE, mean=MEAN, std=STD)
    return sets


def _held_out(sets: Sequence[ShardSet], share: float, by: Group) -> list[NDArray[np.bool_]]:
    return held_out_parts(sets, share, by) if share else [np.ones(len(shards), np.bool_) for shards in sets]


def _places(shards: ShardSet, kept: NDArray[np.bool_], limit: int | None) -> list[Place]:
    return [(shards, int(position)) for position in np.flatnonzero(kept)[:limit]]


def _objective(sets: Sequence[ShardSet]) -> str:
    """segment where the objects of all sets have texts, dual where none have."""
    with_texts = [bool((shards.index["texts"] > 0).any()) for shards in sets]
    if all(with_texts):
        return "segment"
    if not any(with_texts):
        return "dual"
    met = ", ".join(f"{s.folder} {'with' if has else 'without'}" for s, has in zip(sets, with_texts, strict=True))
    texts = [name for name in OBJECTIVES if load_objective(name).needs == "texts"]
    wanted = f"{', '.join(texts)} (they need texts) or dual"
    raise UserError("some shards have texts and some have none", where="--objective", met=met, wanted=wanted)
