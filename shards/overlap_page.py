"""Output of `cli.py overlap`: the pairs as text, as a page with thumbnails and as a parquet file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment
from PIL import Image
from tqdm import tqdm

from shards import codec
from shards.atomic import atomic_write
from shards.blocks import block_means
from shards.errors import UserError
from shards.extras import extra
from shards.format import Field
from shards.output_folder import check_output_file
from shards.overlap import MOST_LISTED, Overlap, Picture, Pictures, comparable, find_overlap
from shards.reader import ShardSet
from shards.sets import find_sets
from shards.tables import add_row, plain_table, table_text
from shards.twins import MOST_BITS

_BLOCK = 2  # pixels of the stored picture to one of a thumbnail
_PAGE = Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
 body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1000px; color: #222; padding: 0 1rem }
 h1 { font-size: 1.3rem; overflow-wrap: anywhere }
 p { margin: .2rem 0; color: #555; overflow-wrap: anywhere }
 section { border-top: 1px solid #ddd; margin-top: 1.2rem; padding-top: .8rem }
 h2 { font-size: 1rem; margin: 0 0 .4rem }
 .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem }
 figure { margin: 0 } img { display: block; width: 224px; max-width: 100% }
 figcaption { font-size: .85rem; color: #555; overflow-wrap: anywhere }
</style>
<h1>{{ title }}</h1>
{% for line in lines %}<p>{{ line }}</p>
{% endfor %}
{% for pair in pairs %}<section>
<h2>{{ pair.distance }}</h2>
<div class="pair">{% for picture in pair.pictures %}
<figure><img src="{{ picture.image }}" alt="{{ picture.key }}">
<figcaption>{{ picture.name }}<br>{{ picture.path }}</figcaption></figure>{% endfor %}
</div></section>
{% endfor %}
</html>
""")


@dataclass(frozen=True)
class Comparison:
    """Two lots of sets, and the pictures that they share."""

    names: tuple[str, str]
    """As they were asked for."""
    a: Pictures
    b: Pictures | None
    """None: both are the same, and the pairs are within `a`."""
    distance: int
    """Largest number of bits that may differ."""
    found: Overlap

    @property
    def other(self) -> Pictures:
        """The side that `a` is compared with."""
        return self.a if self.b is None else self.b

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return self.found.equal + self.found.near

    def pair(self, number: int) -> tuple[Picture, Picture]:
        """Return the pictures of a listed pair."""
        return self.a[int(self.found.a[number])], self.other[int(self.found.b[number])]

    def lines(self) -> list[str]:
        """Return what was compared and found, as lines of text."""
        found = self.found
        sides = [("A", self.a, self.names[0])]
        sides += [] if self.b is None else [("B", self.b, self.names[1])]
        lines = [f"{side}: {name}: {len(own):,} pictures of {len(own.sets):,} set(s)" for side, own, name in sides]
        counts = f"{found.twins_a:,} pictures have a twin"
        if self.b is not None:
            counts = f"{found.twins_a:,} pictures of A and {found.twins_b:,} of B have a twin"
        near = f"{found.near:,} nearly equal pairs (at most {self.distance} of 64 bits of their hashes differ)"
        lines.append(f"{found.equal:,} equal pairs, {near}: {counts}")
        if self.b is None:
            lines.append("not counted: pairs within one sample, one raw file or one video")
        sets = [*self.a.sets, *self.other.sets]
        if not comparable(sets):
            filters = ", ".join(sorted({shards.recipe.image_filter for shards in sets}))
            lines.append(
                f"pixels of sets with other filters ({filters}) are not comparable: all pairs are nearly equal"
            )
        if any(shards.manifest.psnr for shards in sets):
            lines.append("some sets are lossy: what is equal in the raw data may be nearly equal here")
        return lines

    def text(self, shown: int) -> str:
        """Return the lines, and a table of the first `shown` pairs."""
        lines = self.lines()
        if not len(self.found.a):
            return "\n".join(lines)
        table = plain_table("")
        for head in ("differ", *(("one", "other") if self.b is None else ("A", "B"))):
            table.add_column(head, overflow="fold")
        for number in range(min(shown, len(self.found.a))):
            add_row(table, (self.bits_text(number), *map(_name, self.pair(number))))
        return "\n".join([*lines, table_text(table, 160)])

    def bits_text(self, number: int) -> str:
        """Return how far the pictures of a listed pair differ, as text."""
        bits = int(self.found.distance[number])
        return "equal" if bits < 0 else f"{bits} bits"

    def to_json(self, shown: int) -> dict[str, Any]:
        """Return the counts, and the first `shown` pairs, for programs."""
        found = self.found
        pairs = []
        for number in range(min(shown, len(found.a))):
            both = (dict(zip(("set", "key", "frame"), _columns(one), strict=True)) for one in self.pair(number))
            bits = int(found.distance[number])
            pairs.append({**dict(zip("ab", both, strict=True)), "equal": bits < 0, "distance": max(0, bits)})
        sides = [self.a] if self.b is None else [self.a, self.b]
        return {
            "sets": [[str(shards.folder) for shards in side.sets] for side in sides],
            "pictures": [len(side) for side in sides],
            "with_twins": [found.twins_a, found.twins_b][: len(sides)],
            "equal": found.equal,
            "near": found.near,
            "distance": self.distance,
            "complete": found.complete,
            "pairs": pairs,
        }


def compare_sets(a: str, b: str, distance: int, threads: int) -> Comparison:
    """Find the pictures that the sets `a` and `b` share; each names a set, a folder of sets or a pattern.

    Raises:
        UserError: a set has no table of pictures, or stands on both sides of two that differ; a distance too large.
    """
    if not 0 <= distance <= MOST_BITS:
        raise UserError("--distance", met=str(distance), wanted=f"0 to {MOST_BITS} of 64 bits")
    folders = [{Path(path).resolve(): path for path in find_sets([side])} for side in (a, b)]
    both = folders[0].keys() & folders[1].keys()
    within = folders[0].keys() == folders[1].keys()
    if both and not within:
        do = "give two that share no set, or one of them twice"
        raise UserError("a set on both sides", where=str(min(both)), do=do)
    sides = [
        Pictures.joined([Pictures.read(ShardSet(path)) for path in side.values()]) for side in folders[: 2 - within]
    ]
    shape = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=1.0, desc="overlap", mininterval=0.5, bar_format=shape) as bar:
        found = find_overlap(sides[0], None if within else sides[1], distance, threads, bar.update)
        bar.update(1 - bar.n)  # shares do not add up to 1 exactly
    return Comparison((a, b), sides[0], None if within else sides[1], distance, found)


def write_pairs(compared: Comparison, path: Path) -> None:
    """Write the listed pairs as a parquet file; raises `UserError` where it cannot be written."""
    with extra("pipeline", where=str(path)):
        import pyarrow as pa
        import pyarrow.parquet as pq

    found = compared.found
    columns: dict[str, Any] = {}
    for side, own, rows in (("a", compared.a, found.a), ("b", compared.other, found.b)):
        numbers = pa.array(own.numbers[rows])
        names = pa.array([str(shards.folder) for shards in own.sets], pa.string())
        columns[f"{side}_set"] = pa.DictionaryArray.from_arrays(numbers, names)
        columns[f"{side}_key"] = pa.array(_keys(own, rows), pa.string())
        columns[f"{side}_frame"] = own.frames[rows]
    columns["equal"] = found.distance < 0
    columns["distance"] = found.distance.clip(0)
    check_output_file(path)
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    atomic_write(path, buffer.getvalue())


def _keys(pictures: Pictures, rows: Any) -> list[str]:
    keys = [""] * len(rows)
    numbers = pictures.numbers[rows]
    for number, shards in enumerate(pictures.sets):
        own = (numbers == number).nonzero()[0]
        found = shards.index["key"][pictures.positions[rows[own]]].tolist()
        for at, key in zip(own.tolist(), found, strict=True):
            keys[at] = key.decode("ascii", "replace")
    return keys


def write_page(compared: Comparison, page: Path, lines: Sequence[str], shown: int) -> None:
    """Write one HTML file that opens offline, with the thumbnails of the first `shown` pairs.

    Args:
        lines: of text, above them.

    Raises:
        UserError: it cannot be written, or a picture cannot be read.
    """
    check_output_file(page)
    pairs = []
    for number in range(min(shown, len(compared.found.a))):
        pictures = [_shown(picture) for picture in compared.pair(number)]
        bits = compared.bits_text(number)
        pairs.append({"distance": "equal pixels" if bits == "equal" else f"{bits} differ", "pictures": pictures})
    names = dict.fromkeys(compared.names)
    title = "Pictures in " + " and ".join(names) if len(names) > 1 else f"Twins within {compared.names[0]}"
    text = _PAGE.render(title=title, lines=lines, pairs=pairs)
    atomic_write(page, text.encode("utf-8", "backslashreplace"))


def list_note(compared: Comparison, path: Path) -> str:
    """Return a line about the file of pairs."""
    if compared.found.complete:
        return f"all pairs: {path}"
    return f"more than {MOST_LISTED:,} pairs: {path} lists each picture that has twins, with one of its nearest"


def _columns(picture: Picture) -> tuple[str, str, int]:
    return str(picture.shards.folder), picture.key, picture.frame


def _name(picture: Picture) -> str:
    folder, key, frame = _columns(picture)
    frames = f", frame {frame + 1}" if frame else ""
    return f"{folder}: {key}{frames}"


def _shown(picture: Picture) -> dict[str, str]:
    """Return what the page shows of a picture."""
    meta, members = picture.shards.sample(picture.position)
    number = None if len(meta["frames"]) == 1 else picture.frame + 1
    stored = codec.decode_picture(members[Field("pixel_values", number)], picture.shards.recipe.vision_size)
    file = io.BytesIO()
    Image.fromarray(block_means(stored, _BLOCK)).save(file, "JPEG", quality=85)
    image = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"image": image, "key": picture.key, "name": _name(picture), "path": str(meta.get("path", ""))}
