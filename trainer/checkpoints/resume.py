"""Where a run begins: anew, or after a checkpoint of the same run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import UserError
from trainer.checkpoints.checkpoint import STATE, State, read_random_states, read_state
from trainer.checkpoints.run_folder import CHECKPOINTS, LATEST, RunFolder
from trainer.checksums import check_checkpoint
from trainer.config import Config, flat, with_values
from trainer.data.batch import Position
from trainer.measure.journal import BENCHMARK, METRICS, read_records

_DO = "give it as the run had it, or another output_dir for another run"
_CHANGEABLE = (
    *("steps", "output_dir", "resume", "gradient_checkpointing", "compile", "packing", "eval", "checkpoint"),
    *("data.threads", "data.prefetch", "data.normalise", "data.check"),
    *("batch_size", "accumulation"),  # what counts is their product with the number of processes
    "data.shards",  # what counts is what they hold
    *("collective_timeout", "stall_notice", "tracker", "profile"),
    *("data.cache", "data.cache_limit", "data.fetches", "data.attempts"),
)
"""Keys that may change when a run is resumed."""
_EARLIER_DEFAULTS = {"data.holdout_by": "sample", "weight_decay_on": "all", "packing": False}
"""What runs did before a key was added. A checkpoint without the key is resumed with this value."""


@dataclass(frozen=True)
class Beginning:
    """Where a run begins, and what was done before."""

    checkpoint: Path | None = None
    state: State | None = None
    """State in the checkpoint."""
    random_states: tuple[dict[str, Any], ...] = ()
    """Random states of the processes that wrote it."""
    records: tuple[dict[str, Any], ...] = ()
    """Records of `metrics.jsonl` up to the checkpoint."""
    finished: bool = False
    """Whether nothing is left to do, the report included."""

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.state.step if self.state else 0

    @property
    def position(self) -> dict[str, Position] | None:
        """How far the data is consumed, by objective; None: not at all."""
        return self.state.position if self.state else None

    @property
    def evaluated(self) -> bool:
        """Whether the held-out samples were evaluated after `step`."""
        return any(name.startswith("held_out/") for name in self._names())

    @property
    def benchmarked(self) -> bool:
        """Whether benchmarks were measured after `step`."""
        return any(name.startswith(f"{BENCHMARK}/") for name in self._names())

    def _names(self) -> Iterator[str]:
        """Yield the names of all values that are recorded of `step`."""
        return (name for record in self.records if record["step"] == self.step for name in record)


def begin(config: Config, run: RunFolder, data: list[str], samples: int) -> Beginning:
    """Open the run's folder and find out where the run begins.

    Args:
        config: of the command.
        run: to be closed by the caller.
        data: one line per objective and shard set, as `RunData.described`.
        samples: per optimiser step, on all processes together.

    Raises:
        UserError: another run is writing there, `resume` names no checkpoint or forbids resuming, or the
            configuration or the data is not that of the run to resume.
    """
    run.open()
    return find_beginning(config, run, data, samples)


def find_beginning(config: Config, run: RunFolder, data: list[str], samples: int) -> Beginning:
    """Return what `begin` does, without opening the folder: nothing is written."""
    latest = run.latest()
    chosen = _chosen(config, run)
    if not chosen:
        return Beginning()
    check_checkpoint(chosen)
    state = read_state(chosen)
    _check_same(state, config, data, samples)
    records = read_records(chosen.parent.parent / METRICS, state.step)
    written = run.report.exists() and run.report.stat().st_mtime >= (chosen / STATE).stat().st_mtime
    finished = state.step >= config.steps and chosen == latest and written
    return Beginning(chosen, state, read_random_states(chosen), tuple(records), finished)


def keep_earlier_defaults(config: Config, run: RunFolder) -> tuple[Config, list[str]]:
    """Set keys that an earlier release did not have, and that are at their defaults, to what the run did then.

    Returns:
        The configuration, and one line to show per key that was set.

    Raises:
        UserError: `resume` names no checkpoint, or forbids resuming.
    """
    chosen = _chosen(config, run)
    if not chosen:
        return config, []
    saved = read_state(chosen).config
    values = flat(config)
    defaults = flat(Config())
    kept = {k: v for k, v in _EARLIER_DEFAULTS.items() if k not in saved and values[k] == defaults[k] != v}
    what = "the checkpoint is of a release without this key, and the run goes on as it was"
    return with_values(config, kept), [f"{key}={value}: {what}" for key, value in kept.items()]


def _chosen(config: Config, run: RunFolder) -> Path | None:
    """Return the checkpoint to resume; None where the run begins anew."""
    latest = run.latest()
    if config.resume == "never" and latest:
        do = "resume=auto goes on with it; give another output_dir to start anew"
        raise UserError(
            "a run stands here", where=str(run.folder), met=latest.name, wanted="none (resume=never)", do=do
        )
    return latest if config.resume in ("auto", "never") else _named(Path(config.resume), latest, run)


def _named(path: Path, latest: Path | None, run: RunFolder) -> Path:
    """Return the checkpoint that `resume=PATH` names: the folder itself, or the latest in a run's folder.

    Once the run has a checkpoint of its own, the same command resumes that one.
    """
    folders = (path, path / CHECKPOINTS / LATEST)
    chosen = next((folder.resolve() for folder in folders if (folder / STATE).exists()), None)
    if not chosen:
        expected = f"auto, never, or a folder with {STATE} or {CHECKPOINTS}/{LATEST} in it"
        raise UserError("no checkpoint here", where="resume", met=str(path), wanted=expected)
    if latest and chosen.parent == run.checkpoints.resolve() and chosen != latest:
        do = "give another output_dir to go on from there"
        raise UserError(
            "a later checkpoint stands here", where=str(run.folder), met=latest.name, wanted=chosen.name, do=do
        )
    return latest or chosen


def _check_same(state: State, config: Config, data: list[str], samples: int) -> None:
    """Raise `UserError` unless configuration, data and global batch are those of the run to resume."""
    defaults = flat(Config()) | _EARLIER_DEFAULTS
    saved = state.config
    values = flat(config)
    changed = {
        key: (values.get(key, "nothing"), before)
        for key in sorted({*saved, *values})
        if not any(key == name or key.startswith(name + ".") for name in _CHANGEABLE)
        and values.get(key) != (before := saved.get(key, defaults.get(key, "nothing")))
    }
    if changed:
        here, there = (", ".join(f"{key}={pair[i]}" for key, pair in changed.items()) for i in (0, 1))
        raise UserError("not the configuration of the run to resume", where="resume", met=here, wanted=there, do=_DO)
    if data != state.data:
        raise UserError(
            "not the shards of the run to resume",
            where="data.shards",
            met="; ".join(data),
            wanted="; ".join(state.data),
            do=_DO,
        )
    if samples != state.global_batch:
        raise UserError(
            "not the global batch of the run to resume",
            where="resume",
            met=str(samples),
            wanted=f"{state.global_batch} samples per optimiser step",
            do="choose batch_size and accumulation so that their product with the number of processes is this",
        )
