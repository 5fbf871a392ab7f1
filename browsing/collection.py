"""The sets that are looked through, and what the page is told of them, as JSON."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from browsing import drawing
from browsing.drawing import LAYERS, Layer
from browsing.recent import Recent
from browsing.views import View, Views, columns_of, from_ranges, ranges
from shards.errors import UserError
from shards.format import LEDGER, MAX_OBJECTS
from shards.manifest import read_ledger_at
from shards.reader import ShardSet
from shards.sample import dicts
from shards.sets import find_sets

MOST_ROWS = 500
"""Most samples, or lines of a ledger, of one answer."""
_PICTURES = 128 << 20
"""Bytes of pictures that are kept in memory."""
_LETTERS = 280
"""Characters of a text that stands in the grid in place of a picture."""


class Unknown(UserError):
    """A set or a sample that is not there."""


@dataclass(frozen=True)
class Picture:
    """Bytes of a picture or a file, as they are sent."""

    data: bytes
    kind: str
    """Media type."""


@dataclass(frozen=True)
class OpenSet:
    """A set under the name that the page has for it."""

    name: str
    shards: ShardSet

    @property
    def version(self) -> str:
        """A part of every picture's address, another one for another state of the set."""
        return self.shards.manifest.index_sha256[:12]


@dataclass
class Collection:
    """Some sets, by their names."""

    sets: Mapping[str, OpenSet]
    views: Views = field(default_factory=Views)
    _pictures: Recent[Picture] = field(default_factory=lambda: Recent(_PICTURES))

    @classmethod
    def open(cls, paths: Sequence[Path | str]) -> Collection:
        """Open the sets that `paths` name (see `shards.sets.find_sets`). Their tars are opened when they are needed.

        Raises:
            UserError: one is no finished set.
        """
        sets: dict[str, OpenSet] = {}
        for path in find_sets(paths):
            shards = ShardSet(Path(path))
            plain = Path(path).resolve().name
            names = itertools.chain([plain], (f"{plain}~{i}" for i in itertools.count(2)))
            name = next(one for one in names if one not in sets)
            sets[name] = OpenSet(name, shards)
        return cls(sets)

    def get(self, name: str) -> OpenSet:
        """Return a set; raises `Unknown`."""
        if name not in self.sets:
            raise Unknown("no such set", met=name[:80], wanted=", ".join(self.sets))
        return self.sets[name]

    def view(self, one: OpenSet, where: str, sort: str) -> View:
        """Return the samples that a condition chooses; `sort` is a column, after a "-" where the order descends."""
        descending = sort.startswith("-")
        column = sort.removeprefix("-")
        return self.views.view(one.shards, where.strip(), "" if column == "position" else column, descending)

    def explain(self, where: str) -> list[str]:
        """Return a line for each set: what a condition chooses of it, or why it cannot be evaluated there.

        Raises:
            UserError: it can be evaluated for no set.
        """
        lines: list[str] = []
        errors: list[UserError] = []
        for one in self.sets.values():
            try:
                lines.append(f"{one.name}: {self.view(one, where, '').choice}")
            except UserError as error:
                errors.append(error)
                lines.append(str(error))
        if len(errors) == len(lines):
            raise errors[0]
        return lines

    def rows(self, one: OpenSet, where: str, sort: str, begin: int, count: int) -> dict[str, Any]:
        """Return the samples at some places of a view, for the grid."""
        view = self.view(one, where, sort)
        samples = []
        for position in view.part(max(begin, 0), min(count, MOST_ROWS)):
            chosen = view.objects_of(position)
            about = {"position": position, "key": one.shards.key(position)}
            samples.append(about if chosen is None else {**about, "objects": ranges(chosen)})
        answer: dict[str, Any] = {"total": len(view), "begin": begin, "samples": samples}
        if view.choice is not None:
            answer["objects"] = int(view.choice.counts.sum())
        return answer

    def place(self, one: OpenSet, where: str, sort: str, position: int) -> dict[str, Any]:
        """Return where a sample stands in a view, and the positions of those before and after it."""
        _check_position(one, position)
        view = self.view(one, where, sort)
        place = view.place_of(position)
        beside: list[int | None] = [None, None]
        if place is not None:
            for n, other in enumerate((place - 1, place + 1)):
                beside[n] = view.part(other, 1)[0] if 0 <= other < len(view) else None
        chosen = view.objects_of(position) if place is not None else None
        return {
            "total": len(view),
            "place": place,
            "before": beside[0],
            "after": beside[1],
            "objects": None if chosen is None else ranges(chosen),
        }

    def picture(self, one: OpenSet, position: int, objects: str | None, masks: bool) -> Picture:
        """Return what stands for a sample in the grid: its first frame, or its text."""
        _check_position(one, position)

        def make() -> Picture:
            try:
                chosen = None if objects is None else self._objects(one, position, objects)
                return Picture(drawing.small_picture(one.shards, position, chosen, masks), "image/jpeg")
            except drawing.NoPicture:
                text = {"text": _first_text(one.shards.meta(position))}
                return Picture(json.dumps(text).encode("ascii"), "application/json")

        return self._pictures.get((one.name, position, objects, masks), make, lambda made: len(made.data))

    def layer(self, one: OpenSet, position: int, frame: int, name: str, objects: str | None) -> Picture:
        """Return a layer of a frame, which is counted from 1; see `browsing.drawing.layer`."""
        _check_position(one, position)
        known: dict[str, Layer] = {layer: layer for layer in LAYERS}
        if name not in known:
            raise Unknown("no such layer", met=name[:40], wanted=", ".join(LAYERS))

        def make() -> Picture:
            chosen = None if objects is None else self._objects(one, position, objects)
            data = drawing.layer(one.shards, position, frame - 1, known[name], chosen)
            return Picture(data, "image/jpeg" if name in ("large", "small") else "image/png")

        key = one.name, position, frame, name, objects
        return self._pictures.get(key, make, lambda made: len(made.data))

    def _objects(self, one: OpenSet, position: int, text: str) -> list[int]:
        return from_ranges(text, min(one.shards.open(position).objects, MAX_OBJECTS))

    def about_sets(self) -> list[dict[str, Any]]:
        """Return what the page shows of every set: its manifest in words."""
        return [_about(one) for one in self.sets.values()]

    def columns(self, one: OpenSet) -> dict[str, Any]:
        """Return the columns of a set's table with their types, or why there are none."""
        try:
            return {"columns": columns_of(one.shards), "no_table": ""}
        except UserError as error:
            return {"columns": {}, "no_table": f"{error.what}; {error.do}"}

    def sample(self, one: OpenSet, position: int) -> dict[str, Any]:
        """Return what the page shows of a sample.

        Raises:
            Unknown: there is no such sample.
            BadShard: it cannot be read.
        """
        _check_position(one, position)
        meta = one.shards.meta(position)
        row = one.shards.index[position]
        return {
            "position": position,
            "key": one.shards.key(position),
            "path": str(meta.get("path", "")),
            "shard": one.shards.manifest.shards[int(row["shard"])].name,
            "bytes": int(row["size"]),
            "frames": [
                {"name": str(frame.get("name", n)), "width": frame["width"], "height": frame["height"]}
                for n, frame in enumerate(meta["frames"], 1)
            ],
            "large": any(field.name == "g_pixel_values" for field in one.shards.open(position).members),
            "objects": [_object(meta, n) for n in range(len(meta["objects"]))],
            "texts": _texts(meta),
            "turns": [{"question": turn["question"], "answer": turn["answer"]} for turn in meta.get("turns", [])],
            "json": json.dumps(meta, indent=1, ensure_ascii=True, sort_keys=True),
        }

    def ledger(self, one: OpenSet, begin: int, reason: str, count: int) -> dict[str, Any]:
        """Return lines of a set's ledger from byte `begin` on, those of a reason alone where one is given."""
        path = one.shards.folder / LEDGER
        lines, end = read_ledger_at(path, begin, min(count, MOST_ROWS), reason or None)
        return {"lines": [vars(line) for line in lines], "next": end}


def _check_position(one: OpenSet, position: int) -> None:
    if not 0 <= position < len(one.shards):
        raise Unknown("no such sample", where=one.name, met=str(position)[:40], wanted=f"0 to {len(one.shards) - 1}")


def _about(one: OpenSet) -> dict[str, Any]:
    manifest = one.shards.manifest
    return {
        "name": one.name,
        "folder": str(one.shards.folder),
        "version": one.version,
        "samples": manifest.samples,
        "objects": manifest.objects,
        "facts": _facts(one),
        "left_out": manifest.left_out,
    }


def _facts(one: OpenSet) -> dict[str, str]:
    """Return the manifest in words, by name."""
    manifest = one.shards.manifest
    size = sum(shard.bytes for shard in manifest.shards)
    facts = {
        "folder": str(one.shards.folder),
        "source": manifest.source,
        "recipe": str(manifest.recipe),
        "pictures": manifest.pictures,
        "samples": f"{manifest.samples:,}",
        "objects": f"{manifest.objects:,}",
        "inputs": f"{manifest.inputs:,}, of which {sum(manifest.left_out.values()):,} were left out",
        "shards": f"{len(manifest.shards):,}, {size / 1e9:,.2f} GB",
        "selection": manifest.selection,
        "options": json.dumps(manifest.options, sort_keys=True) if manifest.options else "",
        **{f"note: {name}": f"{count:,}" for name, count in sorted(manifest.notes.items())},
        "format": f"version {manifest.version}",
        "plan": manifest.plan,
    }
    return {name: value for name, value in facts.items() if value}


def _object(meta: Mapping[str, Any], number: int) -> dict[str, Any]:
    item = meta["objects"][number]
    category = item.get("category")
    return {
        "id": item["id"],
        "colour": drawing.colour_of(number),
        "texts": [text for text in item["texts"] if isinstance(text, str)],
        "category": category if isinstance(category, str) else "",
    }


def _texts(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return expressions and captions: each a text, and the ids of the objects that it names where it names some."""
    found: list[dict[str, Any]] = []
    for item in dicts(meta.get("expressions")):
        named = item.get("objects")
        ids = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
        found.append({"kind": "expression", "text": str(item.get("text")), "objects": ids})
    found += [
        {"kind": "caption", "text": str(item["text"]), "objects": []}
        for item in dicts(meta.get("captions"))
        if "text" in item
    ]
    return found


def _first_text(meta: Mapping[str, Any]) -> str:
    turns = meta.get("turns") or [{"question": "", "answer": ""}]
    text = f"{turns[0]['question']}\n{turns[0]['answer']}".strip()
    return text if len(text) <= _LETTERS else text[:_LETTERS] + " ..."
