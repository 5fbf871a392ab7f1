"""Contact sheets of a shard set, and one page with them, for a person to check that frames and masks fit.

One row per frame: the frame, its masks, the masks over the frame, the prompt cells over the 448 picture; its pictures
alone without objects. Texts and turns stand below. All is drawn from what the reader returns. Tiles are means of blocks
(pictures) or every fourth pixel (masks, which stay black and white): nothing is interpolated.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from PIL import Image

from shards import codec
from shards.blocks import block_means
from shards.codec import Bool, UInt8
from shards.errors import BadShard, UserError
from shards.format import Field
from shards.output_folder import make_output_folder
from shards.reader import ShardSet
from shards.recipe import Recipe
from shards.sets import find_sets
from shards.where import Chosen, choose_of

_TILE = 256  # pixels
_GAP = 4
_FRAME, _MASK, _OVER, _CELLS = "frame (1024)", "mask", "mask over frame", "prompt cells over 448"
_VIEW = "frame (448)"
_HEADS = (_FRAME, _MASK, _OVER, _CELLS, _VIEW)
_COLOURS = np.array(
    [(230, 25, 25), (40, 120, 255), (30, 190, 60), (255, 190, 0), (190, 60, 220), (0, 200, 200)], np.float32
)
_PAGE = Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{{ name }}</title>
<style>
 body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1070px; color: #222; padding: 0 1rem }
 img { max-width: 100%; display: block; margin: .4rem 0 }
 h2 { font-size: 1rem; margin: 2rem 0 0; overflow-wrap: anywhere }
 p, li { margin: .1rem 0; color: #555 }
 .heads { display: grid; grid-template-columns: repeat(4, 1fr); max-width: 1036px; color: #555; font-size: .85rem }
 dl { margin: .4rem 0 } dt { font-weight: 600 } dd { margin: 0 0 .4rem 1rem }
 dt, dd { white-space: pre-wrap; overflow-wrap: anywhere }
 mark { border-radius: .3rem; padding: 0 .3rem; background: #dde7f7 }
</style>
<h1>{{ name }}</h1>
<p>{{ shown|length }} of {{ total }} samples, source {{ source }}, recipe {{ recipe }}. One row per frame. In each row
the coloured region must lie on one object, masks must be black and white, and the cells must cover the region; both
rows of a pair must show one scene and one object. Questions are bold, and a mark is where the pictures stand.</p>
{% if choice %}<p>{{ choice }}</p>{% endif %}
{% for sample in shown %}
<h2>{{ sample.key }}</h2>
<p>{{ sample.path }}</p>
{% for frame in sample.frames %}<p>{{ frame }}</p>{% endfor %}
{% if sample.sheet %}<div class="heads">{% for head in sample.heads %}<span>{{ head }}</span>{% endfor %}</div>
<img src="{{ sample.sheet }}" alt="contact sheet of {{ sample.key }}">
{% else %}<p>text alone</p>
{% endif %}
{% if sample.turns %}<dl>{% for turn in sample.turns %}
<dt>{{ turn.before }}{% if "after" in turn %}<mark>pictures</mark>{{ turn.after }}{% endif %}</dt>
<dd>{{ turn.answer }}</dd>{% endfor %}</dl>{% endif %}
{% if sample.texts %}<ul>{% for colour, text in sample.texts %}
<li>{% if colour %}<b style="color: {{ colour }}">&#9632;</b> {% endif %}{{ text }}</li>
{% endfor %}</ul>{% endif %}
{% endfor %}
</html>
""")


def preview_sets(
    paths: Sequence[Path | str], out: Path | None, samples: int = 8, where: str | None = None
) -> list[Path]:
    """Draw `samples` samples of each set that `paths` name (see `shards.sets.find_sets`), or of a tar of a set.

    Args:
        out: folder for the page; with several sets, for a folder per set. None: runs/preview/NAME for each.
        where: draw the objects that this condition chooses, and samples that have one.

    Returns:
        The pages.
    """
    sets = [Path(path) for path in find_sets(paths)]
    folders = [(out / path.stem if len(sets) > 1 else out) if out else Path("runs/preview", path.stem) for path in sets]
    for path, folder in zip(sets, folders, strict=True):
        if folders.count(folder) > 1:
            do = "give one of them alone, with an --out of its own"
            raise UserError("two sets of one name", where=str(path), met=path.stem, do=do)
    return [preview(path, folder, samples, where) for path, folder in zip(sets, folders, strict=True)]


def preview(path: Path | str, out: Path, samples: int = 8, where: str | None = None) -> Path:
    """Draw `samples` samples, spread evenly over the set at `path` (its folder, or one of its tars).

    Args:
        where: draw the objects that this condition chooses, and samples that have one.

    Returns:
        The page, `out/index.html`. It opens offline, with the sheets beside it.
    """
    path = Path(path)
    shards = ShardSet(path.parent if path.is_file() else path)
    positions = np.arange(len(shards))
    if not path.is_dir():
        names = [info.name for info in shards.manifest.shards]
        if path.name not in names:
            raise UserError("not a tar of this set", where=str(path), wanted="a tar that the manifest lists")
        positions = positions[shards.index["shard"] == names.index(path.name)]
    choice = choose_of(shards, where)
    if choice:
        positions = positions[choice.counts[positions] > 0]
    if not len(positions):
        raise UserError("no samples to show", where=str(path))  # of this tar
    chosen = positions[np.linspace(0, len(positions) - 1, min(samples, len(positions))).round().astype(int)]
    make_output_folder(out)
    shown = [_draw(shards, int(position), out, choice) for position in chosen]
    page = out / "index.html"
    page.write_text(
        _PAGE.render(
            name=str(path),
            total=len(positions),
            source=shards.manifest.source,
            choice=str(choice or ""),
            recipe=str(shards.recipe),
            shown=shown,
        ),
        encoding="utf-8",
        errors="backslashreplace",  # half a surrogate pair, which a text out of a JSON may hold
    )
    return page


def _draw(shards: ShardSet, position: int, out: Path, choice: Chosen | None) -> dict[str, Any]:
    """Write the contact sheet of one sample, if it has pictures; return the values that the page shows of it."""
    meta, members = shards.sample(position)
    numbers = choice.of(position) if choice else range(len(meta["objects"]))
    key = shards.key(position)
    rows, captions, heads = _rows(shards, key, meta, members, numbers)
    sheet = f"{key}.png" if rows else ""
    if rows:
        Image.fromarray(np.concatenate(rows)).save(out / sheet, optimize=True)
    return {
        "key": key,
        "path": meta.get("path", ""),
        "frames": captions,
        "sheet": sheet,
        "heads": heads,
        "texts": _texts(meta | {"objects": [meta["objects"][n] for n in numbers]}),
        "turns": [_turn(turn) for turn in meta.get("turns", [])],
    }


def _rows(
    shards: ShardSet,
    key: str,
    meta: dict[str, Any],
    members: Mapping[Field, memoryview],
    numbers: Sequence[int],
    most: int | None = None,
) -> tuple[list[UInt8], list[str], list[str]]:
    """Return one row of tiles (H, W, 3) uint8 per frame, a caption of each, and the tiles' heads.

    Args:
        key: of the sample, for messages.
        meta: its JSON.
        members: its members.
        numbers: positions of the objects to draw.
        most: frames to draw at most; None: all.
    """
    rows = []
    captions = []
    heads: list[str] = []
    for i, frame in enumerate(meta["frames"][:most]):
        number = None if len(meta["frames"]) == 1 else i + 1
        stored: dict[str, memoryview] = {field.name: data for field, data in members.items() if field.frame == number}
        caption = f"{frame.get('name', i + 1)}, {frame['width']} x {frame['height']}"
        try:
            tiles = _pictures(stored, shards.recipe)
            if meta["objects"]:
                regions, more = _regions(stored, meta, numbers, tiles, shards.recipe)
                caption += f"; {regions}"
                tiles |= more
                del tiles[_VIEW]  # it is below the cells
        except BadShard as error:
            raise error.at(f"{shards.folder}: {key}") from None
        captions.append(caption)
        heads = [head for head in _HEADS if head in tiles]
        rows.append(_row([tiles[head] for head in heads]))
    return rows, captions, heads


def contact_sheet(shards: ShardSet, samples: int, frames: int) -> bytes | None:
    """Return a JPEG with some samples, spread evenly over the set, one row per frame; None where none has a picture.

    Args:
        samples: to draw.
        frames: of each sample, at most.
    """
    rows = []
    for position in np.unique(np.linspace(0, len(shards) - 1, samples).round().astype(int)):
        meta, members = shards.sample(int(position))
        rows += _rows(shards, shards.key(int(position)), meta, members, range(len(meta["objects"])), frames)[0]
    if not rows:
        return None
    width = max(row.shape[1] for row in rows)
    sheet = np.full((sum(len(row) for row in rows), width, 3), 255, np.uint8)
    top = 0
    for row in rows:
        sheet[top : top + len(row), : row.shape[1]] = row
        top += len(row)
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "JPEG", quality=90)
    return file.getvalue()


def _pictures(stored: Mapping[str, memoryview], recipe: Recipe) -> dict[str, UInt8]:
    """Return the tiles (h, w, 3) uint8 of a frame's pictures by their heads; `stored` are its members by field."""
    tiles = {_VIEW: block_means(codec.decode_picture(stored["pixel_values"], recipe.vision_size), 2)}
    if "g_pixel_values" in stored:
        large = codec.decode_picture(stored["g_pixel_values"], recipe.sam_size)
        tiles[_FRAME] = block_means(large, recipe.sam_size // _TILE)
    return tiles


def _regions(
    stored: Mapping[str, memoryview],
    meta: dict[str, Any],
    numbers: Sequence[int],
    pictures: Mapping[str, UInt8],
    recipe: Recipe,
) -> tuple[str, dict[str, UInt8]]:
    """Return (text about each object, tiles by their heads) of a frame with objects.

    Args:
        stored: the frame's members by field.
        meta: the sample's JSON.
        numbers: positions of the objects to draw.
        pictures: the tiles of the frame's pictures.

    Raises:
        BadShard: other numbers of prompts or masks than objects.
    """
    prompts = codec.decode_prompts(stored["prompt_masks"], recipe.grid)
    step = recipe.sam_size // _TILE
    if len(prompts) != len(meta["objects"]):
        raise BadShard("number of prompts", met=str(len(prompts)), wanted=f"{len(meta['objects'])}, as in the JSON")
    prompts = prompts[[*numbers]]
    small_masks = np.empty((len(numbers), _TILE, _TILE), np.bool_)
    shares = []
    for row, n in enumerate(numbers):  # one at a time: all of them may take gigabytes
        mask = codec.decode_masks(stored["masks"], recipe.sam_size, [n])[0]
        small_masks[row] = mask[::step, ::step]
        shares.append(100 * mask.mean())
    regions = ", ".join(
        f"object {meta['objects'][n]['id']}: {share:.2f} % of the picture, {int(cells.sum())} cells"
        for n, share, cells in zip(numbers, shares, prompts, strict=True)
    )
    union = np.any(small_masks, axis=0)
    view = pictures[_VIEW]
    cell = len(view) // recipe.grid
    over = tint(view, prompts.repeat(cell, axis=1).repeat(cell, axis=2), 0.55)
    over[::cell] = over[::cell] // 2 + 60
    over[:, ::cell] = over[:, ::cell] // 2 + 60
    return regions, {
        _MASK: np.repeat(union[:, :, None], 3, axis=2) * np.uint8(255),
        _OVER: tint(pictures[_FRAME], small_masks, 0.55),
        _CELLS: over,
    }


def _texts(meta: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (colour for CSS, or "", text) of objects, expressions and captions."""
    texts = [
        (_css(n), f"object {item['id']}: {text}") for n, item in enumerate(meta["objects"]) for text in item["texts"]
    ]
    expressions = meta.get("expressions")
    for item in expressions if isinstance(expressions, list) else ():  # those of one object are that object's texts
        objects = item.get("objects") if isinstance(item, dict) else None
        if isinstance(objects, list) and len(objects) != 1:
            named = "objects " + ", ".join(map(str, objects)) if objects else "no object"
            texts.append(("", f"{named}: {item.get('text')}"))
    captions = meta.get("captions")
    for item in captions if isinstance(captions, list) else ():
        if isinstance(item, dict) and "text" in item:
            texts.append(("", f"caption: {item['text']}"))
    return texts


def _turn(turn: dict[str, Any]) -> dict[str, str]:
    """Return a turn with its question cut in two where the pictures stand; `after` is absent where they do not."""
    question = turn["question"]
    if "picture" not in turn:
        return {"before": question, "answer": turn["answer"]}
    place = turn["picture"]
    return {"before": question[:place], "after": question[place:], "answer": turn["answer"]}


def _css(n: int) -> str:
    """Return the colour that `tint` gives object n, for CSS."""
    red, green, blue = _COLOURS[n % len(_COLOURS)].astype(int)
    return f"rgb({red}, {green}, {blue})"


def _row(tiles: Sequence[UInt8]) -> UInt8:
    """Return tiles (h, w, 3) uint8 side by side, (H, W, 3) uint8."""
    row = np.full((_TILE + _GAP, len(tiles) * (_TILE + _GAP), 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        row[: tile.shape[0], i * (_TILE + _GAP) : i * (_TILE + _GAP) + tile.shape[1]] = tile
    return row


def tint(picture: UInt8, masks: Bool, strength: float) -> UInt8:
    """Colour the masks (N, h, w) bool over the picture (h, w, 3) uint8, the first one red; return a new picture.

    Args:
        strength: share of the colour, 0 to 1.
    """
    tinted = picture.astype(np.float32)
    for n, mask in enumerate(masks):
        tinted[mask] = (1 - strength) * tinted[mask] + strength * _COLOURS[n % len(_COLOURS)]
    return tinted.astype(np.uint8)
