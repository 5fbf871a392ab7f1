"""A plan: how many inputs go into each shard. A pure function of the request and the raw files.

Neither workers nor interruptions can change it. It is kept in an unfinished set, and is all that finishing it takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.boundary import input_errors, read_sample
from pipeline.dataset import Job, RawDataset, find_dataset, probed_inputs
from pipeline.raw import RawInput
from pipeline.request import Request
from shards.archive import encode_sample
from shards.codec import ZSTD_VERSION
from shards.errors import BadInput, UserError
from shards.format import CODECS, UNSTATED_CODEC, VERSION, Codec
from shards.recipe import Recipe
from shards.strict_json import parse_json

_LIBRARIES = ("av", "numpy", "pillow", "pycocotools")
_FALLBACK_BYTES = 4 << 20  # of a sample, where none could be encoded
_MEMBER_BYTES = 1024  # of a member's header and padding in a tar, about


@dataclass(frozen=True)
class Plan:
    """The layout of a shard set that is being written."""

    source: str
    recipe: Recipe
    options: dict[str, Any]
    """As the manifest will state them."""
    digest: str
    """Hash of the inputs with their sizes, the recipe, the options and the size of shards."""
    inputs: int
    """Number of inputs."""
    per_shard: int
    """Number of inputs per shard; the last one may have fewer."""
    sample_bytes: int
    """Mean size of a sample in a shard, as the probe found it."""
    libraries: dict[str, str]
    """Versions of the libraries that the bytes depend on."""
    tasks: int = 1
    """Number of tasks that share the shards."""
    version: int = 1
    """Version of the format. Plans of version 1 do not hold it."""
    codec: Codec = UNSTATED_CODEC
    """How pictures are stored. In the saved plan it is one of the options."""

    @property
    def shards(self) -> range:
        return range(-(-self.inputs // self.per_shard))

    def span(self, shard: int) -> slice:
        """Return which of the dataset's inputs belong to a shard."""
        return slice(shard * self.per_shard, min((shard + 1) * self.per_shard, self.inputs))

    def count(self, shards: Sequence[int]) -> int:
        """Return the number of inputs of these shards."""
        return sum(self.span(shard).stop - self.span(shard).start for shard in shards)

    def shard_name(self, shard: int) -> str:
        return f"{self.source}-{shard:06d}"

    def most_bad(self, max_bad: float) -> int:
        """Return how many inputs may be bad, where a share `max_bad` of all may: at least one unless it is 0."""
        return max(1, int(max_bad * self.inputs)) if max_bad else 0

    def to_bytes(self) -> bytes:
        body = asdict(self)
        del body["codec"]
        return json.dumps(body).encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Plan:
        """Parse a saved plan.

        Args:
            where: its place, for an error.

        Raises:
            UserError: it is not what this version writes.
        """
        try:
            body = parse_json(data)
            codec = body["options"].get("codec", UNSTATED_CODEC)
            plan = cls(**{**body, "recipe": Recipe.from_json(body["recipe"], where), "codec": codec})
            for name in ("inputs", "per_shard", "sample_bytes", "tasks", "version"):
                if type(count := getattr(plan, name)) is not int or count < 1:
                    raise ValueError(f"{name}: {str(count)[:60]}")
            if codec not in CODECS:
                raise ValueError(f"codec: {str(codec)[:60]}")
            return plan
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            do = "go on with the release that began this set, or delete it"
            raise UserError("not a plan of this version", where=where, met=str(error), do=do) from None


def make_plan(request: Request, dataset: RawDataset, saved: Plan | None = None) -> Plan:
    """Spread the inputs of a request over shards of about `request.shard_bytes`.

    Args:
        dataset: of the request.
        saved: plan of the unfinished set that is to be gone on with; where it is of the same data, the sizes of samples
            are taken from it and not probed again.
    """
    if saved and saved.digest == dataset.digest:
        per_shard = saved.per_shard
        sample_bytes = saved.sample_bytes
    else:
        per_shard, sample_bytes = _probe_sizes(dataset.job, probed_inputs(dataset.inputs), request.shard_bytes)
    return Plan(
        source=request.source.name,
        recipe=request.recipe,
        options=dataset.job.stated_options,
        digest=dataset.digest,
        inputs=len(dataset.inputs),
        per_shard=per_shard,
        sample_bytes=sample_bytes,
        libraries=library_versions(),
        version=VERSION,
        codec=dataset.job.codec,
    )


@contextmanager
def trial_plan(request: Request) -> Iterator[tuple[RawDataset, Plan]]:
    """Find and plan what a request asks for, and write no set: nothing is left when the `with` statement ends."""
    with TemporaryDirectory(prefix="sa2va-shards-") as folder:
        dataset = find_dataset(request, Path(folder, "records"))
        yield dataset, make_plan(request, dataset)


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that decode, resize and compress."""
    return {name: version(name) for name in _LIBRARIES} | {"zstd": ZSTD_VERSION}


def check_libraries(expected: Mapping[str, str], where: str) -> None:
    """Raise `UserError` unless the libraries here have the versions expected: the bytes of a set depend on them.

    Libraries that a plan of an older release does not name are not compared.
    """
    here = library_versions()
    if differ := [name for name in here if expected.get(name, here[name]) != here[name]]:
        raise UserError(
            "a set is made with one version of each library",
            where=where,
            met=", ".join(f"{name} {here[name]}" for name in differ),
            wanted=", ".join(f"{name} {expected[name]}" for name in differ),
            do="install these, or delete the set and begin again",
        )


def encoded_bytes(job: Job, path: str) -> int:
    """Make and encode the sample of an input and return its size in a tar; raises `BadInput` where it has none."""
    sample, _ = read_sample(job, path)
    with input_errors(job.root, path):
        members = encode_sample(sample, job.codec)
    return sum(len(blob) + _MEMBER_BYTES for _, blob in members)


def _probe_sizes(job: Job, probe: Sequence[RawInput], shard_bytes: int) -> tuple[int, int]:
    """Return (inputs per shard, mean size of a sample), from encoding a few inputs."""
    sizes = []
    for item in probe:
        try:
            sizes.append(encoded_bytes(job, item.path))
        except BadInput:
            continue  # it goes to the ledger when its turn comes
    if not sizes:
        return max(1, shard_bytes // _FALLBACK_BYTES), _FALLBACK_BYTES
    return max(1, shard_bytes // max(sizes)), sum(sizes) // len(sizes)  # by the largest: a tar stays below its size
