"""The model, and the memory and disk that it needs, checked before a run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from trainer.config import Config
from trainer.doctor.findings import Finding, fail, ok, size, warn
from trainer.doctor.footprint import Footprint
from trainer.doctor.output import existing_parent
from trainer.objectives import load_objective
from trainer.released.files import resolve
from trainer.released.training import read_training

_LITTLE_LEFT = 0.8
"""Share of the memory above which weights and their states leave little for activations."""
_MARGIN = 10**9
"""Bytes on the disk for reports, logs and others."""


def check_model(config: Config, footprint: Footprint) -> Iterator[Finding]:
    """Yield the number of parameters, and of those that train, by part."""
    model = config.model
    source = model.path or (f"{model.internvl} and {model.sam2}" if model.internvl else f"preset {model.preset}")
    yield ok("model", f"{source}: {footprint.parameters:,} parameters")
    count = sum(footprint.trainable.values())
    parts = ", ".join(f"{part} {count:,}" for part, count in footprint.trainable.items())
    yield ok("trainable", f"{parts}; {count / footprint.parameters:.1%} of all")
    names = [*config.objectives()]
    unreached = [load_objective(name).unreached_parts for name in names]
    if lost := [part for part in config.trainable if all(part in parts for parts in unreached)]:
        text = f"no loss of {', '.join(names)} reaches {', '.join(lost)}: weight decay alone would move them"
        yield warn("trainable", f"{text}; leave them out of trainable")
    if model.path and read_training(resolve(model.path, weights=False))[0] is None:
        text = "Sa2VA's own training cut pictures into up to 12 tiles of 448 x 448 and a thumbnail; shards hold the one"
        do = "ask the tuned model with one view, too (predict --tiles 1)"
        yield warn("model", f"{text} view of the whole at 448 x 448, in which small objects are coarser; {do}")
    if model.internvl and not {"token_embeddings", "language_model"} & {*config.trainable}:
        yield warn("trainable", "[SEG] is new to this model; add token_embeddings to trainable, or it is hardly said")


def check_memory(config: Config, footprint: Footprint, processes: int) -> Iterator[Finding]:
    """Yield whether what a process needs, activations left out, fits into what is free."""
    parts = footprint.memory(processes, config.project, config.optimizer)
    copied = footprint.checkpoint_bytes if config.checkpoint.background else 0
    if copied and not torch.cuda.is_available():
        parts["the main process's copy while a checkpoint is written"] = copied // processes
    needed = sum(parts.values())
    purposes = ", ".join(f"{purpose} {size(count)}" for purpose, count in parts.items())
    text = f"{size(needed)} per process, activations not included ({purposes})"
    if torch.cuda.is_available():
        free = min(torch.cuda.mem_get_info(device)[0] for device in range(torch.cuda.device_count()))
        place = "free on a GPU"
    else:
        free = psutil.virtual_memory().available // processes
        place = "of memory free"
    text = f"{text}; {size(free)} {place}"
    do = "train fewer parts or a lower lora.r, set model.dtype=bfloat16, or take a smaller model"
    if needed > free:
        yield fail("memory", f"{text}; {do}")
    elif needed > _LITTLE_LEFT * free:
        yield warn("memory", f"{text}: little is left for activations; {do}")
    else:
        yield ok("memory", text)
    if copied and torch.cuda.is_available():
        yield from _check_host_memory(copied)


def _check_host_memory(copied: int) -> Iterator[Finding]:
    """Yield whether the copy of a checkpoint that is being written fits into the host's memory."""
    free = psutil.virtual_memory().available
    text = f"{size(copied)} of the host's while a checkpoint is written (checkpoint.background); {size(free)} free"
    if copied > _LITTLE_LEFT * free:
        yield warn("memory", f"{text}: set checkpoint.background=false")
    else:
        yield ok("memory", text)


def check_disk(config: Config, footprint: Footprint) -> Iterator[Finding]:
    """Yield whether the checkpoints fit: those that stay, the best one, and the one that is being written."""
    count = config.checkpoint.keep + 2
    needed = count * footprint.checkpoint_bytes + _MARGIN
    free = shutil.disk_usage(existing_parent(Path(config.output_dir))).free
    text = f"{count} checkpoints of {size(footprint.checkpoint_bytes)} and a margin: {size(needed)}; {size(free)} free"
    if needed > free:
        yield fail("disk", f"{text}; make room, lower checkpoint.keep, or give an output_dir on another disk")
    else:
        yield ok("disk", text)
