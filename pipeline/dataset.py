"""A raw dataset as its source found it: the inputs in order, and the hash of all that a set of them is made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.boundary import annotation_errors
from pipeline.file_states import FileStates
from pipeline.raw import RawInput
from pipeline.records import Records, RecordsWriter, path_bytes
from pipeline.request import Request
from pipeline.sources import Source
from pipeline.walk import NOT_READ
from pipeline.without import OPTION, Remaining, leave_out_held
from shards.errors import UserError
from shards.format import DEFAULT_CODEC, FORMAT, UNSTATED_CODEC, VERSION, Codec
from shards.recipe import Recipe

_PROBES = 16


@dataclass(frozen=True)
class Job:
    """The settings that a worker needs to make encoded samples of inputs. Picklable."""

    source: Source
    root: Path
    recipe: Recipe
    codec: Codec
    """How pictures are stored."""
    options: dict[str, Any]
    """Options of the source: the user's choices, what the source found out, limit and size of shards."""
    records: Records
    """The inputs that the source found."""

    @property
    def stated_options(self) -> dict[str, Any]:
        """The options as plans and manifests state them: with the codec, unless it is `UNSTATED_CODEC`."""
        return self.options if self.codec == UNSTATED_CODEC else {**self.options, "codec": self.codec}


@dataclass(frozen=True)
class RawDataset:
    """The inputs of a request."""

    job: Job
    inputs: tuple[RawInput, ...]
    remarks: tuple[str, ...] = ()
    """What a user should know of the inputs that are left out because other sets hold them."""

    @cached_property
    def states(self) -> FileStates:
        """Sizes and times of the raw files."""
        return FileStates(self.job)

    @cached_property
    def digest(self) -> str:
        """Hash of all that the set is made from, see `digest_of`."""
        return self.digest_of(VERSION)

    def digest_of(self, version: int) -> str:
        """Return the hash of all that a set of this version of the format is made from.

        It is the same for all versions from `VERSION` on: which of them a set gets is known when its samples are made.
        The hash is of the recipe, the options, the inputs' sizes, what `find` attached to them, word for word, and the
        sizes of all raw files (-1 where there is none).
        """
        job = self.job
        head = [FORMAT, min(version, VERSION), job.source.name, job.recipe.to_json(), _deciding(job.stated_options)]
        total = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        for item in self.inputs:
            total.update(f"{item.path}\0{item.bytes}\n".encode("utf-8", "surrogateescape"))
            for body in job.records.bodies(item.path):
                total.update(body.encode())
            if version > 1:
                for name, state in self.states.of_input(item.path):
                    total.update(path_bytes(f"{name}\0{state.bytes}\n"))
        return total.hexdigest()[:32]


def _deciding(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options without the counts of files that are not read, which decide nothing."""
    found = {name: count for name, count in options.get("found", {}).items() if not name.startswith(NOT_READ)}
    rest = {name: value for name, value in options.items() if name != "found"}
    return {**rest, "found": found} if found else rest


def find_dataset(request: Request, records: Path) -> RawDataset:
    """Find the inputs of a request.

    Args:
        records: file that is written with what the source finds.

    Raises:
        UserError: no such folder, no inputs in it, or annotations that cannot be understood.
    """
    source = request.source
    root = request.root
    if not root.is_dir():
        do = f"give --root, or put the data into data/{source.name}"
        raise UserError("no such folder", where=str(root), do=do)
    found = find_inputs(source, root, request.choices, records)
    opened = Records(records)
    all_inputs = opened.inputs()
    if not all_inputs:
        do = "see docs/datasets/ for the layout"
        raise UserError(f"no {source.name} files found", where=str(root), met=found_text(found), do=do)
    remaining = _without_held(request, opened, all_inputs)
    inputs = tuple(remaining.inputs[: request.limit])
    with annotation_errors(root):
        observed = source.options(root, probed_inputs(inputs))
    options = {**request.choices, **observed, "limit": request.limit, "shard_size": request.shard_bytes}
    if found:
        options["found"] = found
    if request.without:
        options[OPTION] = remaining.option
    job = Job(source, root, request.recipe, request.codec or DEFAULT_CODEC, options, opened)
    return RawDataset(job, inputs, remaining.remarks)


def _without_held(request: Request, records: Records, inputs: list[RawInput]) -> Remaining:
    """Return the inputs that the sets of `request.without` do not hold."""
    if not request.without:
        return Remaining(inputs, {}, ())
    states = FileStates(Job(request.source, request.root, request.recipe, request.codec or DEFAULT_CODEC, {}, records))

    def newest(path: str) -> float:
        return max((state.newest for _, state in states.of_input(path)), default=0.0)

    return leave_out_held(inputs, request.source.name, request.without, newest)


def find_inputs(source: Source, root: Path, choices: Mapping[str, Any], records: Path) -> dict[str, int]:
    """Write the file `records` with the inputs below `root`. Return what was counted on the way."""
    with RecordsWriter(records) as writer, annotation_errors(root):
        return source.find(root, choices, writer)


def found_text(found: Mapping[str, int]) -> str:
    """Write on one line what was counted while the inputs were found. Counts of 0 are left out."""
    return ", ".join(f"{count:,} {name}" for name, count in found.items() if count)


def probed_inputs(inputs: Sequence[RawInput]) -> list[RawInput]:
    """Return the up to 16 inputs that the source's options and the size of samples are probed with."""
    # Of fewer than 16 inputs some are taken twice. Another choice would be another plan for the same data.
    return [inputs[i * len(inputs) // _PROBES] for i in range(min(_PROBES, len(inputs)))]


def spread_inputs(inputs: Sequence[RawInput], most: int) -> list[RawInput]:
    """Return at most `most` of the inputs, at equal distances, from the first one on."""
    count = min(most, len(inputs))
    return [inputs[i * len(inputs) // count] for i in range(count)]
