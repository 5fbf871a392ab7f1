"""The same sample once more, from the raw files: what `verify-shard --against` compares with."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.plan import Job, plan_digest
from pipeline.sources import source_named
from pipeline.task import read_sample
from shards.errors import UserError
from shards.manifest import Manifest
from shards.sample import Sample


def derive(root: Path, meta: dict[str, Any], manifest: Manifest) -> Sample:
    """Derive the sample whose JSON is `meta` from the files below `root`, as `manifest` says.

    Raises `UserError` where the raw file is not there, is bad, or would lie outside `root`.
    """
    path = meta.get("path")
    if not isinstance(path, str) or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise UserError("path of the raw file", where="meta.path", met=repr(path), wanted="a path inside the root")
    job = Job(source_named(manifest.source), root, manifest.recipe, manifest.options)
    return read_sample(job, path)[0]


def same_inputs(root: Path, manifest: Manifest) -> bool:
    """Whether the raw files below `root`, by name and size, are those that the set was made from."""
    source = source_named(manifest.source)
    inputs = source.find(root)[: manifest.options.get("limit")]
    return plan_digest(Job(source, root, manifest.recipe, manifest.options), inputs) == manifest.plan
