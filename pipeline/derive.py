"""The same sample once more, from the raw files: what `verify-shard --against` compares with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.boundary import read_sample
from pipeline.dataset import Job, RawDataset, find_inputs
from pipeline.records import Records
from pipeline.sources import Source, source_named
from pipeline.without import OPTION, held_numbers, numbers_of
from shards.errors import UserError
from shards.format import UNSTATED_CODEC
from shards.manifest import Manifest, read_ledger
from shards.reader import ShardSet
from shards.sample import Sample


@dataclass(frozen=True)
class Deriver:
    """Raw data that shard sets are compared with."""

    root: Path
    """Folder of the dataset."""
    work: Path
    """Folder for what the source finds. It is needed as long as this object."""
    source: Source | None = None
    """A user's own, for sets of its name. Other sets name a registered one: nothing that a set names is imported."""

    def same_inputs(self, manifest: Manifest, folder: Path) -> bool:
        """Whether the raw files and annotations are those that the set was made from. To be called before `derive`.

        Of a set that was made without the inputs of other sets, only its own are compared: they are named by its index
        and its ledger. Of a part of such a set they are not known, and True is returned.

        Args:
            folder: of the set.
        """
        job = self._job(manifest)
        choices = {name: manifest.options.get(name, default) for name, default in job.source.choices.items()}
        find_inputs(job.source, self.root, choices, job.records.file)
        inputs = job.records.inputs()
        if OPTION in manifest.options:
            if manifest.selection:
                return True
            ledger = numbers_of(line.path for line in read_ledger(folder))
            own = np.concatenate([held_numbers(ShardSet(folder)), ledger])
            kept = np.isin(numbers_of(item.path for item in inputs), own)
            inputs = [item for item, is_own in zip(inputs, kept.tolist(), strict=True) if is_own]
        inputs = inputs[: manifest.options.get("limit")]
        return RawDataset(job, tuple(inputs)).digest_of(manifest.version) == manifest.plan

    def derive(self, meta: dict[str, Any], manifest: Manifest) -> Sample:
        """Make the sample again whose JSON is `meta`, as `manifest` says.

        Raises:
            UserError: the raw file is missing, is bad, or would lie outside the root.
        """
        path = meta.get("path")
        if not isinstance(path, str) or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise UserError("path of the raw file", where="meta.path", met=repr(path), wanted="a path inside the root")
        return read_sample(self._job(manifest), path)[0]

    def _job(self, manifest: Manifest) -> Job:
        name = hashlib.sha256(f"{manifest.source} {manifest.plan}".encode()).hexdigest()  # a manifest may say anything
        options = dict(manifest.options)
        source = self.source if self.source and self.source.name == manifest.source else None
        return Job(
            source=source or source_named(manifest.source),
            root=self.root,
            recipe=manifest.recipe,
            codec=options.pop("codec", UNSTATED_CODEC),
            options=options,
            records=Records(self.work / f"{name}.sqlite"),
        )
