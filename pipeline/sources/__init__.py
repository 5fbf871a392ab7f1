"""The sources: one file per family of datasets, and one line in `SOURCES` per source. `Source` is their interface."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.raw import RawInput, RawSample
from pipeline.records import RecordsWriter
from shards.errors import UserError

SOURCES: Mapping[str, str] = {
    "sav": "pipeline.sources.sav:Sav",
    "sa1b": "pipeline.sources.sa1b:Sa1b",
    "openimages": "pipeline.sources.openimages:OpenImages",
    "coco": "pipeline.sources.coco:COCO",
    "lvis": "pipeline.sources.coco:LVIS",
    "refcoco": "pipeline.sources.refer:REFCOCO",
    "refcoco+": "pipeline.sources.refer:REFCOCO_PLUS",
    "refcocog": "pipeline.sources.refer:REFCOCOG",
    "grefcoco": "pipeline.sources.grefer:Grefer",
    "reasonseg": "pipeline.sources.reasonseg:ReasonSeg",
    "osprey": "pipeline.sources.osprey:Osprey",
    "osprey-conversation": "pipeline.sources.osprey:OSPREY_CONVERSATION",
    "osprey-description": "pipeline.sources.osprey:OSPREY_DESCRIPTION",
    "dam": "pipeline.sources.dam:Dam",
    "gcg": "pipeline.sources.gcg:Gcg",
    "gcg-grandf": "pipeline.sources.gcg:GCG_GRANDF",
    "gcg-openpsg": "pipeline.sources.gcg:GCG_OPENPSG",
    "gcg-refcocog": "pipeline.sources.gcg:GCG_REFCOCOG",
    "gcg-flickr30k": "pipeline.sources.gcg:GCG_FLICKR30K",
    "llava": "pipeline.sources.llava:Llava",
    "videoqa": "pipeline.sources.videoqa:VideoQa",
    "text": "pipeline.sources.text:Text",
    "folder": "pipeline.sources.folder:FolderSource",
    "ref-youtube-vos": "pipeline.sources.refvos_layouts:REF_YOUTUBE_VOS",
    "mevis": "pipeline.sources.refvos_layouts:MEVIS",
    "revos": "pipeline.sources.refvos_layouts:REVOS",
    "ref-davis": "pipeline.sources.refvos_layouts:REF_DAVIS",
    "sav-video": "pipeline.sources.sav_video:SavVideo",
    "ref-sav": "pipeline.sources.ref_sav:RefSav",
}
"""Name of a source -> "module:class", or "module:instance" where a class reads several datasets. Imported when needed.
"""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+_-]*")


class Source(ABC):
    """Reads one dataset, in two steps: `find` lists its inputs, then `load` reads each of them, in any process.

    An input is the unit of work: it becomes one sample, or one line of the ledger. Its path is its name: text, relative
    to the dataset's folder, with forward slashes. As a rule it is a file's; `VIDEO.mp4#3` is possible too. Instances
    are pickled, and sent to worker processes. All methods must be deterministic: a set's bytes follow from the files.
    """

    name: str
    """Names the source in commands, and the files of its sets: letters, digits, `+`, `-` and `_`."""
    choices: Mapping[str, Any] = {}
    """Options that a user may set, with their defaults: any of `split`, `split_by`, `frames`, `void`, `mask_slack`."""

    @abstractmethod
    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        """Add every input below `root`, and attach to it what annotation files state about it.

        No picture is decoded here: there may be millions.

        Args:
            root: the dataset's folder.
            choices: `choices` of the source, as the user set them.
            records: `records.add(path, size)` adds an input of `size` bytes; `records.attach(path, part)` attaches JSON
                to it. What is known to be bad is added by `pipeline.refused.refuse`.

        Returns:
            Counts that the run prints and the manifest keeps, such as {"images without a mask": 3}.

        Raises:
            UserError: the layout is not the dataset's, or an annotation file is broken.
        """

    def options(self, root: Path, probe: Sequence[RawInput]) -> dict[str, Any]:
        """Return properties of the whole dataset that no single input shows; they are added to the options of the set.

        Args:
            probe: up to 16 inputs, spread over the dataset.
        """
        return {}

    def files(self, path: str, parts: Iterator[Any]) -> Iterable[str]:
        """Return the paths, below the root, of the files that decide an input's sample; by default its own path.

        Their sizes are part of the plan, and where one of them changes the sample is made again. Annotation files that
        `find` read are not among them.

        Args:
            path: of the input.
            parts: what `find` attached to it, read one by one as they are asked for.
        """
        return [path]

    @abstractmethod
    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        """Read one input: F frames (H, W, 3) uint8, and N objects with a mask (H, W) bool per frame each.

        All sizes are the original ones: nothing is resized here. N is 0 where there is nothing to segment, F too where
        there is no picture; such a sample needs a text (`turns`, `captions`, `expressions`).

        Args:
            root: the dataset's folder.
            path: of the input.
            options: `choices`, and what `options` returned.
            parts: what `find` attached to the input, in that order.

        Raises:
            DroppedInput: a sound input that is no sample, such as a picture without an object.
            BadInput: it cannot become a sample. Any other exception is taken for a fault of the data, too.
        """


@cache
def source_named(name: str) -> Source:
    """Return the source that is registered under `name`; raises `UserError` where there is none."""
    if name not in SOURCES:
        raise UserError(
            "unknown source",
            met=name,
            wanted=" or ".join(SOURCES),
            do="see docs/datasets/; name a source of your own with --source MODULE:CLASS",
        )
    module, _, attribute = SOURCES[name].partition(":")
    found = getattr(importlib.import_module(module), attribute)
    source: Source = found() if isinstance(found, type) else found
    return source


def chosen_source(text: str) -> Source:
    """Return the source that a user named: a registered name, or `MODULE:CLASS`, a source of their own.

    The module is imported, which runs it: pass only what the user typed, and no text from a file. Modules are found on
    Python's path, then in the current folder.

    Raises:
        UserError: there is no such source, or the class is no `Source` with a unique name.
    """
    if ":" not in text:
        return source_named(text)
    module, _, attribute = text.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(
            "no such source", where=text, met=str(error), wanted="MODULE:CLASS, such as examples.your_own_source:Boxes"
        ) from None
    is_class = isinstance(found, type) and issubclass(found, Source)
    source = found() if is_class and not inspect.isabstract(found) else found
    if not isinstance(source, Source):
        missing = ", ".join(sorted(found.__abstractmethods__)) if is_class else ""
        raise UserError(
            "not a source",
            where=text,
            met=f"no method {missing}" if missing else repr(found)[:80],
            wanted="a subclass of Source with find and load",
        )
    name = getattr(source, "name", "")
    if name in SOURCES or not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            "name of a source",
            where=text,
            met=repr(name),
            wanted="a name that no other source has, of letters, digits, +, - and _",
        )
    return source


def choices_of(source: Source, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the choices of a source with those `given` (None: the default); raises `UserError` for unknown ones."""
    chosen = {name: value for name, value in options.items() if value is not None}
    for name in chosen:
        if name not in source.choices:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                "not an option of this source",
                where=source.name,
                met=flag,
                wanted=", ".join("--" + choice.replace("_", "-") for choice in source.choices) or "no such option",
            )
    return {**source.choices, **chosen}
