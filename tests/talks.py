"""A source of pictures with expressions of several objects and of none, and of videos whose objects come and go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.finder import below
from pipeline.pictures import read_picture
from pipeline.raw import RawFrame, RawObject, RawSample
from pipeline.records import RecordsWriter
from pipeline.request import make_request
from pipeline.run import run
from pipeline.sources import Source
from tests.mixed import box_mask, write_raw

SOURCE = "tests.talks:Talks"
PICTURES = 5
VIDEOS = 4
SAID = [("both", ["0", "1"]), ("all of them", ["0", "1", "2", "3"]), ("no such", []), ("one", ["2"])]


class Talks(Source):
    name = "talks"

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        for number in range(PICTURES + VIDEOS):
            records.add(f"{number}.png", 1)
            records.attach(f"{number}.png", {"number": number})
        return {}

    def files(self, path: str, parts: Iterator[Any]) -> Iterable[str]:
        return ["a.png", "b.png"]

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        number = int(parts[0]["number"])
        is_video = number >= PICTURES
        objects = 3 if is_video else 4
        frames = []
        for f in range(6 if is_video else 1):
            picture = read_picture(below(root, "ab"[f % 2] + ".png"))
            boxes = [(3 * k + number, 5 * (k + f), 30 + 3 * k, 25 + 5 * (k + f)) for k in range(objects)]
            masks = [box_mask(one if f % (k + 2) or not is_video else (0, 0, 0, 0)) for k, one in enumerate(boxes)]
            frames.append(RawFrame(f"{f}", picture, masks))
        named = tuple(RawObject(str(k), (f"thing {k} of {number}",)) for k in range(objects))
        said = SAID[number % 2 :] + SAID[: number % 2]
        expressions = [{"id": str(i), "text": text, "objects": ids} for i, (text, ids) in enumerate(said)]
        return RawSample(path, self.name, tuple(frames), named, {} if is_video else {"expressions": expressions})


def write_set(root: Path, codec: str = "zstd") -> Path:
    """Shard the source into a set below `root`, a tar of about three samples each; return its folder."""
    out = root / "shards" / "talks"
    run(make_request(SOURCE, write_raw(root / "raw", []), shard_bytes=10**7, codec=codec), out, 1, 0.0)
    return out
