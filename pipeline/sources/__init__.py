"""One module a family of datasets. `SOURCES` is what `--source` chooses from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.raw import RawInput, RawSample
from pipeline.records import RecordsWriter
from pipeline.sources.coco import Coco
from pipeline.sources.dam import Dam
from pipeline.sources.folder import Folder
from pipeline.sources.gcg import Gcg
from pipeline.sources.openimages import OpenImages
from pipeline.sources.osprey import Osprey
from pipeline.sources.ref_sav import RefSav
from pipeline.sources.refer import Refer
from pipeline.sources.refvos import RefVos
from pipeline.sources.refvos_layouts import davis, mevis, revos, youtube_vos
from pipeline.sources.sa1b import Sa1b
from pipeline.sources.sav import Sav
from pipeline.sources.sav_video import SavVideo
from shards.errors import UserError


class Source(Protocol):
    name: str
    choices: Mapping[str, Any]
    """What a user may choose (`--split`, `--frames`, ...), with defaults."""

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        """Put down all inputs below `root`, and what annotation files say of each; what was counted on the way.

        Raises `UserError` where the layout is not the dataset's.
        """
        ...

    def options(self, root: Path, probe: Sequence[RawInput]) -> dict[str, Any]:
        """What holds for the dataset as a whole and a single file cannot tell, found from some of its files."""
        ...

    def files(self, path: str, parts: Iterator[Any]) -> Iterable[str]:
        """The files below the root that decide the sample of an input, annotations that `find` put down aside.

        Args:
            path: of the input.
            parts: what `find` attached to it, read one by one as they are asked for.
        """
        ...

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        """Read one input; raises `BadInput` where it cannot become a sample.

        Args:
            root: the dataset's folder.
            path: of the input, as `find` put it down.
            options: `choices`, and what `options` returned.
            parts: what `find` attached to the input.
        """
        ...


_ALL: tuple[Source, ...] = (
    Sav(),
    Sa1b(),
    OpenImages(),
    Coco("coco", "instances_{split}*.json"),
    Coco("lvis", "lvis_v1_{split}*.json"),
    Refer("refcoco", "unc"),
    Refer("refcoco+", "unc"),
    Refer("refcocog", "umd"),
    Osprey(),
    Dam(),
    Gcg(),
    Folder(),
    RefVos("ref-youtube-vos", youtube_vos, "obj_id"),
    RefVos("mevis", mevis, "anno_id"),
    RefVos("revos", revos, "anno_id"),
    RefVos("ref-davis", davis, "obj_id"),
    SavVideo(),
    RefSav(),
)
SOURCES = {source.name: source for source in _ALL}


def source_named(name: str) -> Source:
    """Raise `UserError` where there is no such source."""
    if name not in SOURCES:
        raise UserError("unknown source", met=name, wanted=" or ".join(SOURCES), do="see docs/datasets/")
    return SOURCES[name]


def choices_of(source: Source, given: Mapping[str, Any]) -> dict[str, Any]:
    """The source's choices with what was given (None: not given); raises `UserError` for one that it does not have."""
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in chosen:
        if name not in source.choices:
            flag = "--" + name.replace("_", "-")
            has = ", ".join("--" + own.replace("_", "-") for own in source.choices) or "no such option"
            raise UserError("not an option of this source", where=source.name, met=flag, wanted=has)
    return {**source.choices, **chosen}
