"""Where a run begins: anew, or after the checkpoint of one that was interrupted and is the same run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import UserError
from trainer.checkpoints.checkpoint import STATE, State, read_random_states, read_state
from trainer.checkpoints.run_folder import CHECKPOINTS, LATEST, RunFolder
from trainer.checksums import check_checkpoint
from trainer.config import Config, flat, with_values
from trainer.data.loader import Position
from trainer.measure.journal import METRICS, read_records

_ANEW = "give it as the run had it, or another output_dir for another run"
_FREE = (
    *("steps", "output_dir", "resume", "gradient_checkpointing", "compile", "eval", "checkpoint"),
    *("data.threads", "data.prefetch", "data.normalise", "data.check"),
    *("batch_size", "accumulation"),  # what counts is their product with the number of processes
    "data.shards",  # what counts is what stands in them
    *("collective_timeout", "stall_notice"),
    *("data.cache", "data.cache_limit", "data.fetches", "data.attempts"),
)
"""Keys that may change when a run is resumed."""
_BEFORE = {"data.holdout_by": "sample", "weight_decay_on": "all"}
"""Values that runs had before a key was added. A checkpoint that does not name the key goes on with them."""


@dataclass(frozen=True)
class Beginning:
    """What a run has behind it when it begins."""

    checkpoint: Path | None = None
    state: State | None = None
    """Of the checkpoint."""
    random_states: tuple[dict[str, Any], ...] = ()
    """Of the processes that wrote it."""
    records: tuple[dict[str, Any], ...] = ()
    """Of `metrics.jsonl`, up to the checkpoint."""
    finished: bool = False
    """There is nothing left to do, the report included."""

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.state.step if self.state else 0

    @property
    def position(self) -> dict[str, Position] | None:
        """What has been consumed; None: nothing."""
        return self.state.position if self.state else None

    @property
    def evaluated(self) -> bool:
        """Whether the held-out samples were looked at after the last step."""
        return any(record["step"] == self.step and "loss" not in record for record in self.records)


def begin(config: Config, run: RunFolder, data: list[str], samples: int) -> Beginning:
    """Open the run's folder and find out where the run begins.

    Args:
        config: of the command.
        run: to be closed by the caller.
        data: `Loader.described`.
        samples: of an optimiser step, of all processes.

    Raises:
        UserError: another run is writing there, `resume` names no checkpoint or forbids to go on, or going on would
            not give the run that was begun.
    """
    run.open()
    return look(config, run, data, samples)


def look(config: Config, run: RunFolder, data: list[str], samples: int) -> Beginning:
    """What `begin` finds, without opening the folder: nothing is written."""
    own, chosen = run.latest(), _chosen(config, run)
    if not chosen:
        return Beginning()
    check_checkpoint(chosen)
    state = read_state(chosen)
    _check_same(state, config, data, samples)
    records = read_records(chosen.parent.parent / METRICS, state.step)
    written = run.report.exists() and run.report.stat().st_mtime >= (chosen / STATE).stat().st_mtime
    finished = state.step >= config.steps and chosen == own and written
    return Beginning(chosen, state, read_random_states(chosen), tuple(records), finished)


def keep_old_ways(config: Config, run: RunFolder) -> tuple[Config, list[str]]:
    """`config` with keys at their defaults set to what the run did before there was such a key; and what to say of it.

    Raises:
        UserError: as `begin` does, where it finds no checkpoint that it may go on with.
    """
    chosen = _chosen(config, run)
    if not chosen:
        return config, []
    saved, given, defaults = read_state(chosen).config, flat(config), flat(Config())
    old_ways = {k: v for k, v in _BEFORE.items() if k not in saved and given[k] == defaults[k] != v}
    what = "the checkpoint is of a release without this key, and the run goes on as it was"
    return with_values(config, old_ways), [f"{key}={value}: {what}" for key, value in old_ways.items()]


def _chosen(config: Config, run: RunFolder) -> Path | None:
    """The checkpoint to go on with."""
    own = run.latest()
    if config.resume == "never" and own:
        do = "resume=auto goes on with it; give another output_dir to start anew"
        raise UserError("a run stands here", where=str(run.folder), met=own.name, wanted="none (resume=never)", do=do)
    return own if config.resume in ("auto", "never") else _named(Path(config.resume), own, run)


def _named(path: Path, own: Path | None, run: RunFolder) -> Path:
    """The checkpoint that `resume=PATH` names: the folder itself, or the latest of a run's folder.

    Once the run has a checkpoint of its own, the same command goes on with that.
    """
    folders = (path, path / CHECKPOINTS / LATEST)
    chosen = next((folder.resolve() for folder in folders if (folder / STATE).exists()), None)
    if not chosen:
        wanted = f"auto, never, or a folder with {STATE} or {CHECKPOINTS}/{LATEST} in it"
        raise UserError("no checkpoint here", where="resume", met=str(path), wanted=wanted)
    if own and chosen.parent == run.checkpoints.resolve() and chosen != own:
        do = "give another output_dir to go on from there"
        raise UserError(
            "a later checkpoint stands here", where=str(run.folder), met=own.name, wanted=chosen.name, do=do
        )
    return own or chosen


def _check_same(state: State, config: Config, data: list[str], samples: int) -> None:
    """Raise `UserError` unless going on gives the run that was begun."""
    defaults, saved, given = flat(Config()) | _BEFORE, state.config, flat(config)
    changed = {
        key: (given.get(key, "nothing"), before)
        for key in sorted({*saved, *given})
        if not any(key == free or key.startswith(free + ".") for free in _FREE)
        and given.get(key) != (before := saved.get(key, defaults.get(key, "nothing")))
    }
    if changed:
        met, wanted = (", ".join(f"{key}={pair[i]}" for key, pair in changed.items()) for i in (0, 1))
        raise UserError("not the configuration of the run to resume", where="resume", met=met, wanted=wanted, do=_ANEW)
    if data != state.data:
        met, wanted = "; ".join(data), "; ".join(state.data)
        raise UserError("not the shards of the run to resume", where="data.shards", met=met, wanted=wanted, do=_ANEW)
    if samples != state.global_batch:
        what, wanted = "not the global batch of the run to resume", f"{state.global_batch} samples an optimiser step"
        do = "choose batch_size and accumulation so that their product with the number of processes is this"
        raise UserError(what, where="resume", met=str(samples), wanted=wanted, do=do)
