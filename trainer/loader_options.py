"""What the loaders of a run read, as its configuration asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.config import Config
from trainer.data.loader import LoaderOptions
from trainer.model.prompts import Prompts
from trainer.objectives import load_objective
from trainer.trained import base_prompts


def prompts_of(config: Config) -> Prompts | None:
    """Load the prompts of the run's model where an objective reads conversations."""
    return base_prompts(config.model) if any(map(_reads_conversations, config.objectives())) else None


def training_options(config: Config, objective: str, prompts: Prompts | None, **more: Any) -> LoaderOptions:
    """Return what an objective trains on; `more` replaces values.

    Args:
        prompts: what `prompts_of` returns; may be None where nothing is read.
    """
    given: dict[str, Any] = {
        "fields": load_objective(objective).training_fields,
        "accumulation": config.accumulation,
        "objects_per_sample": config.data.objects_per_sample,
        "conversations": config.conversation_options() if _reads_conversations(objective) else None,
    }
    return LoaderOptions(**{**_common(config, objective, prompts), **given, **more})


def judging_options(config: Config, objective: str, prompts: Prompts | None, **more: Any) -> LoaderOptions:
    """Return the held-out samples that an objective is judged on; arguments as of `training_options`."""
    chosen = max(2, config.data.objects_per_sample)  # two objects per picture, so that captions can be swapped
    given: dict[str, Any] = {
        "fields": load_objective(objective).panel_fields(),
        "part": "holdout",
        "limit": config.eval.samples,
        "objects_per_sample": chosen,
        "conversations": config.judging_options(chosen) if _reads_conversations(objective) else None,
    }
    return LoaderOptions(**{**_common(config, objective, prompts), **given, **more})


def _common(config: Config, objective: str, prompts: Prompts | None) -> Mapping[str, Any]:
    data = config.data
    return {
        "batch_size": config.batch_size,
        "seed": config.seed,
        "holdout": data.holdout,
        "holdout_by": data.holdout_by,
        "purpose": config.key_of(objective),
        "sources": config.objectives()[objective].sources,
        "repeats": data.sources,
        "where": data.where,
        "texts": data.texts,
        "need": load_objective(objective).needs,
        "kind": load_objective(objective).conversation_kind,
        "prompts": prompts,
        "group_by_length": data.group_by_length,
        "threads": data.threads,
        "prefetch": data.prefetch,
        "cache": data.open_cache(),
        "check": data.check,
    }


def _reads_conversations(objective: str) -> bool:
    return load_objective(objective).reads_conversations
