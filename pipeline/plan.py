"""What a sharding run is going to write: which inputs go into which shard.

A pure function of the command and the raw files: neither workers nor interruptions can change the result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.boundary import annotation_errors, input_errors, read_sample
from pipeline.raw import RawInput
from pipeline.raw_files import forget_states, states
from pipeline.records import RecordsWriter, open_records, path_bytes
from pipeline.sources import Source
from pipeline.walk import NOT_READ
from shards.archive import encode_sample
from shards.errors import BadInput, UserError
from shards.format import FORMAT, VERSION, Codec
from shards.recipe import Recipe
from shards.strict_json import parse_json

_LIBRARIES = ("av", "numpy", "pillow", "pycocotools", "zstandard")
_PROBES = 16
_FALLBACK_BYTES = 4 << 20


def _codec(options: Mapping[str, Any]) -> Codec:
    codec: Codec = options.get("codec", "zstd")
    return codec


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know besides its part of the inputs."""

    source: Source
    root: Path
    recipe: Recipe
    options: dict[str, Any]
    records: Path
    """What the source found, see `pipeline.records`."""

    @property
    def codec(self) -> Codec:
        """Of the pictures."""
        return _codec(self.options)


@dataclass(frozen=True)
class Outline:
    """A plan without its inputs: what stands in an unfinished set, and all that finishing it takes."""

    source: str
    recipe: Recipe
    options: dict[str, Any]
    digest: str
    """Hash of the inputs with their sizes, the recipe, the options and the size of shards."""
    inputs: int
    per_shard: int
    """Inputs a shard; the last one may have fewer."""
    sample_bytes: int
    """Of a sample in a shard, as the probe found it."""
    libraries: dict[str, str]
    """Versions of what the bytes depend on."""
    tasks: int = 1
    """Among which the shards were shared."""
    version: int = 1
    """Version of the format. Plans of version 1 do not hold it."""

    @property
    def shards(self) -> range:
        return range(-(-self.inputs // self.per_shard))

    def name(self, shard: int) -> str:
        return f"{self.source}-{shard:06d}"

    @property
    def codec(self) -> Codec:
        """Of the pictures."""
        return _codec(self.options)

    def allowed(self, max_bad: float) -> int:
        """Bad inputs that the set may have, where a share `max_bad` of all may be bad: at least one unless it is 0."""
        return max(1, int(max_bad * self.inputs)) if max_bad else 0

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Outline:
        """Raises `UserError` where `data`, which stands at `where`, is not what this version writes."""
        try:
            body = parse_json(data)
            outline = cls(**{**body, "recipe": Recipe.from_json(body["recipe"], where)})
            for name in ("inputs", "per_shard", "sample_bytes", "tasks", "version"):
                if type(count := getattr(outline, name)) is not int or count < 1:
                    raise ValueError(f"{name}: {str(count)[:60]}")
            return outline
        except (ValueError, TypeError, KeyError) as error:
            do = "go on with the release that began this set, or delete it"
            raise UserError("not a plan of this version", where=where, met=str(error), do=do) from None


@dataclass(frozen=True)
class Plan:
    job: Job
    inputs: tuple[RawInput, ...]
    outline: Outline

    @property
    def digest(self) -> str:
        return self.outline.digest

    @property
    def per_shard(self) -> int:
        return self.outline.per_shard

    @property
    def sample_bytes(self) -> int:
        return self.outline.sample_bytes

    @property
    def shards(self) -> range:
        return self.outline.shards

    def name(self, shard: int) -> str:
        return self.outline.name(shard)

    def part(self, shard: int) -> tuple[RawInput, ...]:
        return self.inputs[shard * self.per_shard : (shard + 1) * self.per_shard]


def make_plan(
    source: Source,
    root: Path,
    recipe: Recipe,
    shard_bytes: int,
    records: Path,
    choices: Mapping[str, Any],
    limit: int | None = None,
    known: Callable[[str], tuple[int, int] | None] = lambda digest: None,
    codec: Codec = "zstd",
) -> Plan:
    """Find the inputs below `root` and spread them over shards of about `shard_bytes`.

    Args:
        records: a file that is written with what the source finds.
        choices: of the source.
        limit: take the first so many inputs only.
        known: given the plan's digest, its (per_shard, sample_bytes) from an earlier start, so that the probe of
            encoded sizes is not repeated.
        codec: of the pictures.
    """
    if not root.is_dir():
        do = f"give --root, or put the data into data/{source.name}"
        raise UserError("no such folder", where=str(root), do=do)
    found = find_inputs(source, root, choices, records)
    inputs = open_records(records).inputs()[:limit]
    if not inputs:
        do = "see docs/datasets/ for the layout"
        raise UserError(f"no {source.name} files found", where=str(root), met=found_text(found), do=do)
    probe = [inputs[i * len(inputs) // _PROBES] for i in range(min(_PROBES, len(inputs)))]
    with annotation_errors(root):
        own = source.options(root, probe)
    options = {**choices, **own, "limit": limit, "shard_size": shard_bytes}
    if found:
        options["found"] = found
    if codec != "zstd":
        options["codec"] = codec
    job = Job(source, root, recipe, options, records)
    digest = plan_digest(job, inputs)
    per_shard, sample_bytes = known(digest) or _probe(job, probe, shard_bytes)
    outline = Outline(
        source.name,
        recipe,
        options,
        digest,
        len(inputs),
        per_shard,
        sample_bytes,
        libraries=library_versions(),
        version=VERSION,
    )
    return Plan(job, tuple(inputs), outline)


def found_text(found: Mapping[str, int]) -> str:
    """Write on one line what was counted while the inputs were found. Counts of 0 are left out."""
    return ", ".join(f"{count:,} {name}" for name, count in found.items() if count)


def library_versions() -> dict[str, str]:
    """Of the libraries that decode, resize and compress: a set is to be made with one version of each."""
    return {name: version(name) for name in _LIBRARIES}


def check_libraries(wanted: Mapping[str, str], where: str) -> None:
    """Raise `UserError` unless the versions at hand are the `wanted` ones: the bytes of a set depend on them."""
    here = library_versions()
    if differ := [name for name in here if wanted.get(name) != here[name]]:
        met, told = (", ".join(f"{name} {one.get(name)}" for name in differ) for one in (here, wanted))
        do = "install these, or delete the set and begin again"
        raise UserError("a set is made with one version of each library", where=where, met=met, wanted=told, do=do)


def find_inputs(source: Source, root: Path, choices: Mapping[str, Any], records: Path) -> dict[str, int]:
    """Write `records`; what was counted on the way."""
    open_records.cache_clear()
    forget_states()
    with RecordsWriter(records) as writer, annotation_errors(root):
        return source.find(root, choices, writer)


def plan_digest(job: Job, inputs: Sequence[RawInput], version: int = VERSION) -> str:
    """Hash of all that a set of this version of the format is made from.

    Files have the size in it (-1 where there is none); annotations that `find` put down stand in it word for word.
    """
    head = [FORMAT, version, job.source.name, job.recipe.to_json(), _deciding(job.options)]
    total = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    records = open_records(job.records)
    for item in inputs:
        total.update(f"{item.path}\0{item.bytes}\n".encode("utf-8", "surrogateescape"))
        for body in records.bodies(item.path):
            total.update(body.encode())
        if version > 1:
            for name, (size, *_) in states(job, item.path):
                total.update(path_bytes(f"{name}\0{size}\n"))
    return total.hexdigest()[:32]


def _deciding(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without the counts of files that are not read, which decide nothing."""
    found = {name: count for name, count in options.get("found", {}).items() if not name.startswith(NOT_READ)}
    rest = {name: value for name, value in options.items() if name != "found"}
    return {**rest, "found": found} if found else rest


def _probe(job: Job, probe: Sequence[RawInput], shard_bytes: int) -> tuple[int, int]:
    """(inputs a shard, bytes a sample), from encoding a few inputs spread over the set."""
    sizes = []
    for item in probe:
        try:
            sample, _ = read_sample(job, item.path)
            with input_errors(job.root, item.path):
                members = encode_sample(sample, job.codec)
        except BadInput:
            continue  # it goes to the ledger when its turn comes
        sizes.append(sum(len(blob) + 1024 for _, blob in members))  # a header and the padding each
    if not sizes:
        return max(1, shard_bytes // _FALLBACK_BYTES), _FALLBACK_BYTES
    return max(1, shard_bytes // max(sizes)), sum(sizes) // len(sizes)  # by the largest: a tar stays below its size
