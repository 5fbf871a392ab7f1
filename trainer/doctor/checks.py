"""What people check by hand before a run: each check is green, or says what to do.

Nothing trains, no weights are loaded, nothing is written.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.text import Text

from shards.errors import UserError
from shards.printable import printable
from trainer.checkpoints.resume import keep_old_ways, look
from trainer.checkpoints.run_folder import RunFolder
from trainer.config import Config, load_config
from trainer.doctor.data import PROBED, Data, check_objective, check_samples, check_sets
from trainer.doctor.findings import Finding, fail, ok, size, warn
from trainer.doctor.machine import check_device, check_versions
from trainer.doctor.outline import Outline, outline
from trainer.objectives import load_objective
from trainer.objectives.losses import NOT_COMPARABLE

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_LITTLE = 0.8
"""Share of the memory above which weights and their states leave little for activations."""
_MARGIN = 10**9
"""Bytes on the disk for reports, logs and others."""
_HIGH_RATE = 1e-3


def doctor(arguments: Sequence[str]) -> bool:
    """Check the run that `trainer/train.py` would start with these arguments, and print what is found.

    Returns:
        Whether nothing failed; warnings do not count.
    """
    logging.getLogger("trainer").addHandler(logging.NullHandler())  # loaders would warn of what is said here
    console, sound = Console(highlight=False, soft_wrap=True, markup=False, emoji=False), True
    for finding in examine(arguments, _announce):
        line = Text(f"{finding.level:5}", style=_COLOURS[finding.level])
        said = f"{finding.check:14}{printable(finding.said)}"
        console.print(line.append(said, style="default"))
        console.file.flush()  # into a pipe too, line by line
        sound = sound and finding.level != "fail"
    console.print(
        Text("ready to train", style="green") if sound else Text("not ready: mend what failed first", style="red")
    )
    return sound


def examine(arguments: Sequence[str], begin: Callable[[str], object] = lambda what: None) -> Iterator[Finding]:
    """All findings, in the order of the checks. `begin` is told what is done next, where that may take a while."""
    yield from check_versions()
    try:
        config = load_config(arguments)
    except UserError as error:
        yield fail("configuration", str(error))
        return
    kept: list[str] = []
    with suppress(UserError):  # `check_output` says it
        config, kept = keep_old_ways(config, RunFolder(Path(config.output_dir), config.checkpoint.keep))
    processes = max(1, torch.cuda.device_count())
    yield ok("configuration", f"{', '.join(config.objectives())}; as for {processes} process(es), one a GPU")
    yield from (ok("configuration", line) for line in kept)
    yield from check_device(config)
    begin(f"opening {len(config.data.shards)} shard set(s), and dividing their samples")
    data = Data.open(config, processes)
    begin("checking manifests, indexes and the sizes of tars")
    yield from _guarded("data", lambda: check_sets(config, data))
    begin(f"decoding up to {PROBED} samples of each set")
    yield from _guarded("samples", lambda: check_samples(data))
    yield from check_objective(config, data)
    yield from check_losses(config)
    yield from check_schedule(config, data, processes)
    begin("building the model without memory, and reading the headers of its weights")
    try:
        model = outline(config)
    except UserError as error:
        yield fail("model", str(error))
    else:
        yield from check_model(config, model)
        yield from check_memory(config, model, processes)
        yield from check_disk(config, model)
    yield from _guarded("output_dir", lambda: check_output(config, data, processes))


def _announce(what: str) -> None:
    print(f"...  {what}", file=sys.stderr, flush=True)


def _guarded(check: str, findings: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from findings()
    except UserError as error:
        yield fail(check, str(error))


def check_losses(config: Config) -> Iterator[Finding]:
    """Whether each objective has something to learn from."""
    for objective, share in config.objectives().items():
        keys = load_objective(objective).loss_weights
        weights = {key: float(getattr(config, key)) for key in keys.values() if isinstance(key, str)}
        fixed = [f"{name} {key:g}" for name, key in keys.items() if not isinstance(key, str)]
        said = ", ".join([*(f"{key} {value:g}" for key, value in weights.items()), *fixed])
        said = f"{objective}: {said}" + (f", all times {share.weight:g}" if config.mix else "")
        if weights and not any(weights.values()):
            yield fail("losses", f"{said}: all weights are 0; give at least one")
        elif weights and not (config.lambda_mask or config.lambda_dice):
            yield warn("losses", f"{said}: no mask is learnt; set lambda_mask or lambda_dice")
        elif weights and config.importance_sample_ratio:
            yield ok("losses", f"{said}; {NOT_COMPARABLE}")
        else:
            yield ok("losses", said)


def check_schedule(config: Config, data: Data, processes: int) -> Iterator[Finding]:
    """Rate, steps and epochs."""
    together = config.batch_size * config.accumulation * processes
    said = f"lr {config.lr:g}, warm-up {config.warmup_steps:,} of {config.steps:,} steps of {together} samples"
    for objective, samples in data.train.items():
        said += f"; {objective}: {samples // together:,} steps an epoch, {config.steps * together / samples:.3g} epochs"
    pretrained = bool(config.model.path or config.model.internvl)
    if pretrained and max([config.lr, *config.rates.values()]) > _HIGH_RATE:
        yield warn("schedule", f"{said}: the rate is high for pretrained weights; 2e-5 is the recipe's")
    elif config.warmup_steps > config.steps / 2:
        yield warn("schedule", f"{said}: most of the run is warm-up; set warmup_steps lower")
    else:
        yield ok("schedule", said)
    if config.data.holdout and config.eval.every > config.steps:
        yield warn("schedule", f"eval.every {config.eval.every:,} is beyond the last step; lower it")
    if not config.data.holdout:
        yield warn("schedule", "data.holdout 0: the run is never evaluated; set it to a small share")


def check_model(config: Config, model: Outline) -> Iterator[Finding]:
    """Parameters, and those that train, by part."""
    given = config.model
    source = given.path or (f"{given.internvl} and {given.sam2}" if given.internvl else f"preset {given.preset}")
    yield ok("model", f"{source}: {model.parameters:,} parameters")
    trains = sum(model.trainable.values())
    parts = ", ".join(f"{part} {count:,}" for part, count in model.trainable.items())
    yield ok("trainable", f"{parts}; {trains / model.parameters:.1%} of all")
    names = [*config.objectives()]
    unreached = [load_objective(name).unreached_parts for name in names]
    if lost := [part for part in config.trainable if all(part in parts for parts in unreached)]:
        said = f"no loss of {', '.join(names)} reaches {', '.join(lost)}: weight decay alone would move them"
        yield warn("trainable", f"{said}; leave them out of trainable")
    if given.internvl and not {"token_embeddings", "language_model"} & {*config.trainable}:
        yield warn("trainable", "[SEG] is new to this model; add token_embeddings to trainable, or it is hardly said")


def check_memory(config: Config, model: Outline, processes: int) -> Iterator[Finding]:
    """What a process needs beside activations, against what there is."""
    parts = model.memory(processes, config.project, config.optimizer)
    needed = sum(parts.values())
    purposes = ", ".join(f"{purpose} {size(count)}" for purpose, count in parts.items())
    said = f"{size(needed)} a process, activations not included ({purposes})"
    if torch.cuda.is_available():
        there, place = min(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())), "free on a GPU"
    else:
        there, place = psutil.virtual_memory().available // processes, "of memory free"
    said = f"{said}; {size(there)} {place}"
    do = "train fewer parts or a lower lora.r, set model.dtype=bfloat16, or take a smaller model"
    if needed > there:
        yield fail("memory", f"{said}; {do}")
    elif needed > _LITTLE * there:
        yield warn("memory", f"{said}: little is left for activations; {do}")
    else:
        yield ok("memory", said)


def check_disk(config: Config, model: Outline) -> Iterator[Finding]:
    """Whether the checkpoints fit: those that stay, the best one, and the one that is being written."""
    count = config.checkpoint.keep + 2
    needed = count * model.checkpoint_bytes + _MARGIN
    free = shutil.disk_usage(_existing(Path(config.output_dir))).free
    said = f"{count} checkpoints of {size(model.checkpoint_bytes)} and a margin: {size(needed)}; {size(free)} free"
    if needed > free:
        yield fail("disk", f"{said}; make room, lower checkpoint.keep, or give an output_dir on another disk")
    else:
        yield ok("disk", said)


def check_output(config: Config, data: Data, processes: int) -> Iterator[Finding]:
    """Whether the run can write, and what would become of one that stands there."""
    folder = Path(config.output_dir)
    there = _existing(folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "no folder can be made here" if there.is_dir() else f"{there} is not a folder"
        yield fail("output_dir", f"{folder}: {what}; give another output_dir")
        return
    run = RunFolder(folder, config.checkpoint.keep)
    if _is_locked(run.checkpoints / ".lock"):
        yield fail("output_dir", f"{folder}: another run is writing here; wait for it, or give another output_dir")
        return
    run.check()
    if data.faults:
        what = "what would become of the run here is known" if run.latest() else "a run would begin anew"
        yield warn("output_dir", f"{folder}: {what} once the shards can be read")
        return
    begun = look(config, run, data.described, config.batch_size * config.accumulation * processes)
    if begun.finished:
        said = f"{folder}: a finished run, {begun.step:,} steps; nothing would be done"
        yield warn("output_dir", f"{said}. More steps=N go on, another output_dir starts anew")
    elif begun.checkpoint:
        yield ok("output_dir", f"{folder}: would go on after step {begun.step:,}, {begun.checkpoint}")
    else:
        yield ok("output_dir", f"{folder}: would begin anew")


def _existing(path: Path) -> Path:
    """`path`, or the closest folder above it that there is."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _is_locked(path: Path) -> bool:
    """Whether a run holds the lock file at `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
