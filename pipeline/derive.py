"""The same sample once more, from the raw files: what `verify-shard --against` compares with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.boundary import read_sample
from pipeline.plan import Job, find_inputs, plan_digest
from pipeline.records import open_records
from pipeline.sources import Source, source_named
from shards.errors import UserError
from shards.manifest import Manifest
from shards.sample import Sample


@dataclass(frozen=True)
class Against:
    """The raw files of shard sets."""

    root: Path
    """Of the dataset."""
    work: Path
    """A folder for what the source finds; it outlives this object's use."""
    source: Source | None = None
    """A user's own, for sets of its name. Other sets name a registered one: nothing that a set names is imported."""

    def same_inputs(self, manifest: Manifest) -> bool:
        """Whether the raw files and annotations are those that the set was made from. To be asked before `derive`."""
        job = self._job(manifest)
        source = job.source
        choices = {name: manifest.options.get(name, default) for name, default in source.choices.items()}
        find_inputs(source, self.root, choices, job.records)
        inputs = open_records(job.records).inputs()[: manifest.options.get("limit")]
        return plan_digest(job, inputs, manifest.version) == manifest.plan

    def derive(self, meta: dict[str, Any], manifest: Manifest) -> Sample:
        """Derive the sample whose JSON is `meta` from the raw files, as `manifest` says.

        Raises `UserError` where the raw file is not there, is bad, or would lie outside the root.
        """
        path = meta.get("path")
        if not isinstance(path, str) or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise UserError("path of the raw file", where="meta.path", met=repr(path), wanted="a path inside the root")
        return read_sample(self._job(manifest), path)[0]

    def _job(self, manifest: Manifest) -> Job:
        name = hashlib.sha256(f"{manifest.source} {manifest.plan}".encode()).hexdigest()  # a manifest may say anything
        records = self.work / f"{name}.sqlite"
        own = self.source if self.source and self.source.name == manifest.source else None
        return Job(own or source_named(manifest.source), self.root, manifest.recipe, manifest.options, records)
