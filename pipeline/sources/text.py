"""Conversations alone, without pictures. `docs/datasets/text.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.raw import RawSample
from pipeline.records import RecordsWriter
from pipeline.refused import raise_refused
from pipeline.sources import Source
from pipeline.sources.conversations import conversation_files, each_record, other_values, text_turns
from shards.errors import BadInput

_PICTURES = ("image", "images", "video", "videos")


class Text(Source):
    """One sample per record. The input's path: the file's, `#`, and the record's number, from 0."""

    name = "text"
    choices: Mapping[str, Any] = {"split": None}

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for file in conversation_files(root, choices["split"]):
            for _, path, record in each_record(root, file, records, counts):
                records.add(path, 0)
                records.attach(path, {"record": record})
        return dict(counts)

    def files(self, path: str, parts: Iterator[Any]) -> Iterable[str]:
        return []

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        raise_refused(parts)
        record = parts[0]["record"]
        if shown := [key for key in _PICTURES if record.get(key)]:
            value = f"{shown[0]}: {str(record[shown[0]])[:60]}"
            raise BadInput(
                "a record of a picture", met=value, wanted="a text alone", do="use --source llava or videoqa"
            )
        notes: Counter[str] = Counter()
        more = {"turns": text_turns(record, notes), "record": other_values(record)}
        return RawSample(path, self.name, (), (), more, +notes, segmentable=False)
