"""The card of a published set: README.md, written from its manifest and index, as the Hugging Face hub reads it.

Its front matter names the columns, so that `datasets.load_dataset` needs no options.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from jinja2 import Environment

from shards.format import META_EXTENSION, Field, frame_fields
from shards.licences import Licence
from shards.manifest import Manifest
from shards.printable import printable
from shards.reader import ShardSet
from shards.storage.protocols import hub_parts, is_hub

CARD = "README.md"
SHEET = "contact-sheet.jpg"
MARK = "<!-- Written by sa2va-shards publish; a card without this line is kept as it is. -->"
_LISTS = {"prompt_masks": "bool", "pixel_values": "uint8", "g_pixel_values": "uint8"}
"""dtype of the nested lists that `datasets` makes of a member with the extension npy."""

_CARD = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True).from_string("""---
license: {{ license }}
{% if license == "other" %}
license_name: {{ license_name }}
{% endif %}
pretty_name: {{ yaml_name }}
task_categories:
{% for task in tasks %}
- {{ task }}
{% endfor %}
size_categories:
- {{ size_category }}
tags:
- webdataset
- sa2va
configs:
- config_name: default
  data_files:
  - split: train
    path: "*.tar"
dataset_info:
  features:
{% for line in features %}
  {{ line }}
{% endfor %}
---
{{ mark }}

# {{ name }}

{{ samples }} samples with {{ objects }} objects, ready for training Sa2VA: pictures at 448 x 448 and 1024 x 1024,
a mask of each object at 1024 x 1024, and the cells of its region in a grid of 16 x 16. They are stored in
{{ tars }} tars in WebDataset's format, {{ gigabytes }} GB.

{% if sheet %}
![Frames, masks, masks over frames, and cells of some samples]({{ sheet }})

{% endif %}
| | |
|---|---|
{% for key, value in about %}
| {{ key }} | {{ value }} |
{% endfor %}

## Loading

With sa2va-shards (`pip install "sa2va-shards[remote]"`), which also trains on it (`data.shards=[{{ place }}]`):

```python
import shards

samples = shards.open_set("{{ place }}")
sample = samples[0]
print(len(samples), sample["__key__"], {name: value.shape for name, value in sample.items() if hasattr(value, "shape")})
```

With webdataset; `shards.decode_sample` compares each member with its checksum and makes the arrays:

```python
import shards
import webdataset

{{ webdataset }}
for sample in webdataset.WebDataset(tars, shardshuffle=False).map(shards.decode_sample):
    print(sample["__key__"], [item["id"] for item in sample["meta"]["objects"]])
```

With Hugging Face's datasets:

```python
import shards
from datasets import load_dataset
{{ datasets }}
for row in rows:
    sample = shards.decode_sample(row)
    print(sample["__key__"], [item["id"] for item in sample["meta"]["objects"]])
```

## Files

`manifest.json` has the recipe, the counts and the SHA-256 of each tar; it was sent last, so a copy without it is not
whole. `index.npy` has the place of each sample. `ledger.jsonl` names the inputs that did not become a
sample{{ ledger }}.
{% if tables %}
`tables.json` lists the tables of the objects: {{ tables }}.
{% endif %}
""")


def write_card(
    shards: ShardSet, name: str, place: str, licence: Licence, licence_id: str, tables: Sequence[str], sheet: bool
) -> bytes:
    """Return the bytes of the card of a set; they follow from the arguments alone.

    Args:
        name: of the set.
        place: URL of where it is published; "" for a folder.
        licence: of its source.
        licence_id: identifier of the licence on the hub.
        tables: names of its tables.
        sheet: it has a contact sheet.
    """
    manifest = shards.manifest
    frames = _frame_counts(shards)
    webdataset, datasets = _snippets(manifest, name, place)
    left_out = sum(manifest.left_out.values())
    text = _CARD.render(
        license=licence_id,
        license_name=json.dumps(licence.name),
        yaml_name=json.dumps(printable(name)),
        tasks=_tasks(shards, frames),
        size_category=_size_category(manifest.samples),
        features=_features(manifest, frames),
        mark=MARK,
        name=_cell(name),
        samples=f"{manifest.samples:,}",
        objects=f"{manifest.objects:,}",
        tars=f"{len(manifest.shards):,}",
        gigabytes=f"{sum(info.bytes for info in manifest.shards) / 1e9:,.2f}",
        sheet=SHEET if sheet else "",
        about=_about(manifest, frames, licence, left_out),
        place=place or name,
        webdataset=webdataset,
        datasets=datasets,
        ledger=f" ({left_out:,}), by their paths" if left_out else ", none of them here",
        tables=", ".join(f"`{table}`" for table in tables),
    )
    return text.encode("utf-8", "backslashreplace")


def _frame_counts(shards: ShardSet) -> list[int]:
    """Return the numbers of frames that samples of the set have, in order."""
    if "frames" in (shards.index.dtype.names or ()):
        return sorted({*shards.index["frames"].tolist()})
    return sorted({len(shards.meta(position)["frames"]) for position in range(len(shards))})  # of an older release


def _about(manifest: Manifest, frames: Sequence[int], licence: Licence, left_out: int) -> list[tuple[str, str]]:
    """Return the rows of the card's table."""
    return [
        ("source", _code(manifest.source)),
        ("licence", _cell(f"{licence.name}{f'; {licence.forbids}' if licence.forbids else ''}")),
        ("samples, objects", f"{manifest.samples:,}, {manifest.objects:,}"),
        ("frames of a sample", ", ".join(map(str, frames))),
        ("inputs", f"{manifest.inputs:,}, of which {left_out:,} were left out"),
        ("pictures", _cell(manifest.pictures)),
        ("recipe", _cell(str(manifest.recipe))),
        ("options", _code(json.dumps(manifest.options, sort_keys=True))),
        ("selection", _cell(manifest.selection or "all samples")),
        ("format", f"sa2va-shards, version {manifest.version}"),
    ]


def _tasks(shards: ShardSet, frames: Sequence[int]) -> list[str]:
    """Return the hub's names of what the set is for."""
    if not any(frames):
        return ["text-generation"]
    masks = ["image-segmentation", "mask-generation"] if shards.manifest.objects else []
    return [*masks, "image-text-to-text"] if shards.index["texts"].any() or not masks else masks


def _size_category(samples: int) -> str:
    """Return the hub's name for a number of samples: "n<1K", "1K<n<10K", ..."""
    if samples < 1000:
        return "n<1K"
    names = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    power = min(len(str(samples)) - 4, len(names) - 2)
    return f"{names[power]}<n<{names[power + 1]}"


def _features(manifest: Manifest, frames: Sequence[int]) -> list[str]:
    """Return the lines of YAML of the columns that `datasets` makes of the members."""
    lines = ["- name: __key__", "  dtype: string", "- name: __url__", "  dtype: string"]
    lines += [f"- name: {META_EXTENSION}", "  dtype: json"]
    fields: list[Field] = []
    for count in frames:  # a sample of one frame has names without a number
        fields += [field for field in frame_fields(count) if field not in fields]
    for field in fields:
        extension = field.extension(manifest.codec, manifest.version)
        lines.append(f"- name: {field}.{extension}")
        if extension == "npy":
            lines += ["  list:", "    list:", f"      list: {_LISTS[field.name]}"]
        else:
            lines.append("  dtype: binary")
    return lines


def _snippets(manifest: Manifest, name: str, place: str) -> tuple[str, str]:
    """Return the lines of the snippets for webdataset (`tars = ...`) and for datasets (`rows = ...`)."""
    tars = _tars([info.name for info in manifest.shards])
    load = 'load_dataset({}, split="train", streaming=True)'
    if not is_hub(place):
        local = [json.dumps(f"{name}/{tar}") for tar in tars]
        return f"tars = {_list(local)}", f"\nrows = {load.format(json.dumps(name))}"
    repository, revision, folder = hub_parts(place)
    webdataset = f"tars = {_list([json.dumps(f'{place}/{tar}') for tar in tars])}"
    at = f', revision="{revision}"' if revision else ""
    if not folder:
        return webdataset, f"\nrows = {load.format(json.dumps(repository) + at)}"
    download = f'snapshot_download("{repository}", repo_type="dataset"{at}, allow_patterns="{folder}/*")'
    lines = ["from huggingface_hub import snapshot_download", "", f"folder = {download}"]
    inside = f'f"{{folder}}/{folder}"'
    return webdataset, "\n".join([*lines, f"rows = {load.format(inside)}"])


def _list(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else "[\n    " + ",\n    ".join(texts) + ",\n]"


def _tars(names: Sequence[str]) -> list[str]:
    """Return the names of tars, or one pattern such as "sav-{000000..000041}.tar" if they are numbered from 0 on."""
    prefix = names[0].removesuffix("000000.tar")
    numbered = [f"{prefix}{number:06d}.tar" for number in range(len(names))]
    if len(names) < 2 or [*names] != numbered:
        return [*names]
    return [f"{prefix}{{000000..{len(names) - 1:06d}}}.tar"]


def _cell(text: object) -> str:
    """Return a text that does nothing to a table of Markdown."""
    return re.sub(r"([|\\\[\]<>`])", lambda match: f"&#{ord(match[1])};", printable(" ".join(str(text).split())))


def _code(text: object) -> str:
    """Return a text as code in a cell of a table of Markdown."""
    safe = printable(" ".join(str(text).split())).replace("`", "'")
    return f"`{safe}`".replace("|", "\\|")
