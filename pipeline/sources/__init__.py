"""One module a family of datasets. `SOURCES` is what `--source` chooses from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.raw import RawInput, RawSample
from pipeline.sources.sav import Sav
from shards.errors import UserError


class Source(Protocol):
    name: str

    def find(self, root: Path) -> list[RawInput]:
        """All inputs below `root`, in an order that depends on their paths alone."""
        ...

    def options(self, root: Path, probe: Sequence[RawInput]) -> dict[str, Any]:
        """What holds for the dataset as a whole and a single file cannot tell, found from some of its files."""
        ...

    def load(self, root: Path, path: str, options: dict[str, Any]) -> RawSample:
        """Read one input; raises `BadInput` where it cannot become a sample."""
        ...


SOURCES: dict[str, Source] = {source.name: source for source in (Sav(),)}


def source_named(name: str) -> Source:
    if name not in SOURCES:
        raise UserError("unknown source", met=name, wanted=" or ".join(SOURCES), do="see docs/datasets/")
    return SOURCES[name]
