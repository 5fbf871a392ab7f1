"""Describe Anything's training data: captions of regions, pictures in tars. `docs/datasets/dam.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.annotations import read_pairs
from pipeline.archives import Member, member_path, read_member, tar_members
from pipeline.finder import Finder, below, inside
from pipeline.raw import RawSample
from pipeline.records import RecordsWriter
from pipeline.refused import raise_refused
from pipeline.regions import Regions, picture_for, rle_size
from pipeline.sources import Source
from pipeline.walk import HIDDEN, NOT_READ, count_other, matching
from shards.errors import BadInput, UserError
from shards.hidden import is_hidden_path

_ANNOTATIONS = "annotations.json"
_PICTURES = {".jpg", ".jpeg", ".png", ".webp"}
NO_CAPTION = "regions without a caption"


class Dam(Source):
    name = "dam"
    choices: Mapping[str, Any] = {}

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        """Add every picture that a region names: `SUBSET/images/TAR/MEMBER`, or a file where tars were unpacked.

        A region with an unsafe name becomes an input that `load` refuses.
        """
        files = sorted(file for pattern in (_ANNOTATIONS, f"*/{_ANNOTATIONS}") for file in matching(root, pattern))
        if not files:
            raise UserError("no annotations of Describe Anything", where=str(root), wanted=f"SUBSET/{_ANNOTATIONS}")
        found = Counter(dict.fromkeys(("regions", "regions without a picture", "regions of another shape"), 0))
        for file in files:
            folder = file.parent.relative_to(root).as_posix()
            subset = _Subset(root, folder, found)
            named = set[str]()
            for region in _regions(file):
                image, tar = (region.get("image"), region.get("tar_file")) if isinstance(region, dict) else (None, None)
                if not isinstance(image, str) or not isinstance(tar, str | None):
                    found["regions of another shape"] += 1
                    continue
                path, size, where = subset.place(image, tar)
                found["regions without a picture"] += size == 0
                named.add(path)
                records.add(path, size)
                records.attach(path, {"subset": file.parent.name, "region": region, **where})
                found["regions"] += 1
            found[f"pictures of {file.parent.name}"] = len(named)
            subset.count_rest(named)
        return dict(found)

    def files(self, path: str, parts: Iterator[Any]) -> Iterable[str]:
        return [next(parts).get("tar", path)]

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        raise_refused(parts)
        notes: Counter[str] = Counter()
        source: Path | bytes = below(root, path)
        if "missing" in parts[0]:
            raise BadInput("no such picture in its tar", met=f"no {parts[0]['missing']}", wanted="one of this name")
        if "tar" in parts[0]:
            source = read_member(below(root, parts[0]["tar"]), parts[0])
        picture = picture_for(source, (rle_size(part["region"].get("mask_rle")) for part in parts))
        regions = Regions((picture.height, picture.width), notes)
        for part in parts:
            region = dict(part["region"])
            mask = region.pop("mask_rle", None)
            caption = region.pop("caption", None)
            texts = [text for text in (caption if isinstance(caption, list) else [caption]) if _is_text(text)]
            notes[NO_CAPTION] += not texts
            regions.add([mask], texts, region, id=region.get("ann_id"))
        return regions.sample(path, self.name, picture, {"subset": parts[0]["subset"]})


class _Subset:
    """The pictures of one subset: members of tars, or files."""

    def __init__(self, root: Path, folder: str, counts: Counter[str]) -> None:
        self._root = root
        self._folder = PurePosixPath(folder)
        self._counts = counts
        self._tars: dict[str, tuple[str, _Members]] = {}
        self._files = Finder(root, [(self._folder / name).as_posix() for name in ("images", ".")])

    def place(self, image: str, tar: str | None) -> tuple[str, int, dict[str, Any]]:
        """Return path of the input, bytes (0: missing), and the picture's place in a tar ({}: it is a file)."""
        for name in (image, tar or "."):
            if not inside(name):
                return name, 0, {}
        if tar is None or not self._open(tar):
            path, size = self._files.find(image)
            if tar is None or size:
                return path, size, {}
            return (self._folder / "images" / tar / image).as_posix(), 0, {"missing": tar}
        path, members = self._tars[tar]
        member = members.named(image)
        if member is None:
            return f"{path}/{image}", 0, {"missing": image}
        place = members.places[member]
        return f"{path}/{member}", place["bytes"], {"tar": path, **place}

    def count_rest(self, named: set[str]) -> None:
        """Count the members of the opened tars that are not among the input paths `named`."""
        counts = self._counts
        counts["pictures without a region"] += 0
        for tar, members in self._tars.values():
            for name in members.places:
                if f"{tar}/{name}" in named:
                    continue
                if _is_picture(name):
                    counts["pictures without a region"] += 1
                else:
                    count_other(name, counts, NOT_READ[0])

    def _open(self, tar: str) -> bool:
        """Whether there is this tar. Its members are listed when it is first asked for."""
        for path in (self._folder / "images" / tar, self._folder / tar):
            if tar not in self._tars and (self._root / path).is_file():
                self._tars[tar] = path.as_posix(), _Members(self._places(self._root / path))
        return tar in self._tars

    def _places(self, tar: Path) -> dict[str, Member]:
        """Return name -> place of the members with safe names; of equal names the last."""
        places = {}
        for name, member in tar_members(tar):
            if is_hidden_path(name):
                self._counts[HIDDEN] += 1
                continue
            try:
                if (path := member_path(name)) in places:
                    self._counts["tar members of the name of an earlier one, which they replace"] += 1
                places[path] = member
            except BadInput:
                self._counts["tar members that would leave their folder"] += 1
        return places


class _Members:
    """Finds a tar's pictures by the names that annotations use."""

    def __init__(self, places: dict[str, Member]) -> None:
        self.places = places
        self._short: dict[str, str | None] = {}
        for name in filter(_is_picture, places):
            for key in _keys(name):
                self._short[key] = name if key not in self._short else None  # two share it: neither

    def named(self, image: str) -> str | None:
        """Return the member for `image`: of this name, or else the only one with its last part, or with its number."""
        if image in self.places:
            return image
        return next((name for key in _keys(image) if (name := self._short.get(key)) is not None), None)


def _keys(name: str) -> list[str]:
    """Return the last part of a name, and its number without padding."""
    last = PurePosixPath(name)
    number = [f"number {last.stem.lstrip('0')}"] if last.stem.isascii() and last.stem.isdecimal() else []
    return [last.name, *number]


def _regions(file: Path) -> Iterator[Any]:
    for _, regions in read_pairs(file):
        yield from regions if isinstance(regions, list) else [regions]


def _is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in _PICTURES


def _is_text(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())
