"""Weights of the losses and schedule, checked before a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shards.errors import UserError
from trainer.config import Config
from trainer.doctor.findings import Finding, fail, ok, warn
from trainer.measure.trackers import check_installed
from trainer.objectives import load_objective
from trainer.objectives.losses import NOT_COMPARABLE

_HIGH_RATE = 1e-3


def check_losses(config: Config) -> Iterator[Finding]:
    """Yield for each objective whether it has something to learn from."""
    for objective, entry in config.objectives().items():
        keys = load_objective(objective).loss_weights
        weights = {key: float(getattr(config, key)) for key in keys.values() if isinstance(key, str)}
        fixed = [f"{name} {key:g}" for name, key in keys.items() if not isinstance(key, str)]
        text = f"{objective}: " + ", ".join([*(f"{key} {value:g}" for key, value in weights.items()), *fixed])
        text += f", all times {entry.weight:g}" if config.mix else ""
        if weights and not any(weights.values()):
            yield fail("losses", f"{text}: all weights are 0; give at least one")
        elif weights and not (config.lambda_mask or config.lambda_dice):
            yield warn("losses", f"{text}: no mask is learnt; set lambda_mask or lambda_dice")
        elif weights and config.importance_sample_ratio:
            yield ok("losses", f"{text}; {NOT_COMPARABLE}")
        else:
            yield ok("losses", text)


def check_trackers(config: Config) -> Iterator[Finding]:
    """Yield a finding where the package of a tracker is missing."""
    try:
        check_installed(config.trackers())
    except UserError as error:
        yield fail("tracker", str(error))


def check_schedule(config: Config, samples: Mapping[str, int], processes: int) -> Iterator[Finding]:
    """Yield findings on rate, steps and epochs.

    Args:
        samples: samples per epoch, by objective.
    """
    global_batch = config.batch_size * config.accumulation * processes
    text = f"lr {config.lr:g}, warm-up {config.warmup_steps:,} of {config.steps:,} steps of {global_batch} samples"
    for objective, count in samples.items():
        epochs = config.steps * global_batch / count
        text += f"; {objective}: {count // global_batch:,} steps per epoch, {epochs:.3g} epochs"
    is_pretrained = bool(config.model.path or config.model.internvl)
    if is_pretrained and max([config.lr, *config.rates.values()]) > _HIGH_RATE:
        yield warn("schedule", f"{text}: the rate is high for pretrained weights; 2e-5 is the recipe's")
    elif config.warmup_steps > config.steps / 2:
        yield warn("schedule", f"{text}: most of the run is warm-up; set warmup_steps lower")
    else:
        yield ok("schedule", text)
    if config.data.holdout and config.eval.every > config.steps:
        yield warn("schedule", f"eval.every {config.eval.every:,} is beyond the last step; lower it")
    if not config.data.holdout:
        yield warn("schedule", "data.holdout 0: the run is never evaluated; set it to a small share")
