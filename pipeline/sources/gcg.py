"""Grounded captions (GCG): GranDf, OpenPSG, RefCOCOg and Flickr30k in GLaMM's files. `docs/datasets/gcg.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.annotations import read_items
from pipeline.captions import Span, locate_phrase, merge_phrases, shift_span, strip_quotes
from pipeline.finder import Finder, below
from pipeline.ids import id_of
from pipeline.raw import RawSample
from pipeline.records import RecordsWriter
from pipeline.refused import raise_refused, refuse
from pipeline.regions import Regions, picture_for, rle_size, size_of
from pipeline.sources import Source
from shards.errors import BadInput, UserError

_SPLITS = ("train", "val", "test")
_PARTS = ("train", "val", "val_test", "test")
_BELOW = ("", "images/", "glamm_data/images/")
_FOLDERS = {
    "GranDf_HA_GCG": ("grandf/{}", "GranDf_HA_images/{}", "GranDf/GranDf_HA_images/{}", "grandf"),
    "OpenPsgGCG": (
        *("coco2017", "coco_2017", "coco", "."),  # the names carry train2017/ or val2017/, or do not
        *(f"{folder}{part}2017" for part in ("train", "val") for folder in ("coco2017/", "coco_2017/", "coco/", "")),
    ),
    "RefCOCOg_GCG": ("coco2014/train2014", "coco_2014/train2014", "coco/train2014", "train2014"),
    "flickr_mergedGT_GCG": (
        *("flickr30k/Flickr30K", "flickr30k/flickr30k-images", "flikcr_30k/{}", "flickr_30k/{}"),
        *("flikcr_30k", "flickr_30k", "flickr30k"),
    ),
}
_FLICKR = "flickr_mergedGT_GCG"
_FEW_WORDS = 3
SHORT = f"captions of fewer than {_FEW_WORDS} words"
BARE = "captions without a phrase that has a region"
IGNORED = "regions left out: marked to be ignored"
NO_SPAN = "regions without a place in their caption"


class Gcg(Source):
    """One sample per picture, with the captions of all files that are read.

    Args:
        name: the source's name.
        kinds: the files to read, without split and suffix.
    """

    choices: Mapping[str, Any] = {"split": "train"}

    def __init__(self, name: str = "gcg", kinds: Sequence[str] = tuple(_FOLDERS)) -> None:
        self.name = name
        self._kinds = kinds

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        """Add every picture that a caption names. One with an unsafe name becomes an input that `load` refuses."""
        split = choices["split"]
        if split not in _SPLITS:
            raise UserError("no such split", where="--split", met=str(split), wanted=" or ".join(_SPLITS))
        folders = ("annotations", ".", "glamm_data/annotations", f"GranDf/annotations/{split}")
        files = [
            (kind, next((root / f / name for f in folders if (root / f / name).is_file()), None))
            for kind, name in ((kind, f"{kind}_{split}.json") for kind in self._kinds)
        ]
        if not any(file for _, file in files):
            raise UserError(
                "no annotations of grounded captions",
                where=str(root),
                wanted="annotations/" + " or ".join(f"{kind}_{split}.json" for kind in self._kinds),
            )
        found = Counter(dict.fromkeys(("captions without a picture", "captions of another shape"), 0))
        for kind, file in files:
            if file is not None:
                self._find(root, kind, split, file, records, found)
        return dict(found)

    def _find(self, root: Path, kind: str, split: str, file: Path, records: RecordsWriter, found: Counter[str]) -> None:
        parts = dict.fromkeys(
            (split, *_PARTS)
        )  # a caption may be of one split and its picture in the folder of another
        folders = (folder.format(part) for part in parts for folder in _FOLDERS[kind])
        pictures = Finder(root, dict.fromkeys(top + folder for folder in folders for top in _BELOW))
        named: dict[str, str] = {}
        for record in _captions(kind, file):
            name = record.get("img_file_name", record.get("file_name")) if isinstance(record, dict) else None
            if not isinstance(name, str) or not isinstance(record.get("caption"), str):
                found["captions of another shape"] += 1
                continue
            path, size, _ = pictures.add(name, records)
            number = id_of(record)
            if kind == _FLICKR and number is not None and named.setdefault(number, path) != path:
                value = f"caption {number} of {named[number]} and {path}"
                for input_path in (path, named[number]):
                    error = BadInput("one id for two pictures", met=value, wanted="an id for each")
                    refuse(records, input_path, error)
            found["captions without a picture"] += size == 0
            records.attach(path, {"file": file.name, "kind": kind, "caption": record})
            found[f"captions of {file.name}"] += 1
        pictures.refuse_shared(records)
        if kind != _FLICKR:
            return
        for annotation in read_items(file, "annotations.item"):
            number = id_of(annotation, "image_id")
            if number is None or number not in named:
                found["regions of no caption"] += 1
            else:
                records.attach(named[number], {"file": file.name, "kind": kind, "region": annotation})

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        raise_refused(parts)
        notes: Counter[str] = Counter()
        source = below(root, path)
        grounded = [(part, [*_grounded(part, parts, notes)]) for part in parts if "caption" in part]
        sizes = [size_of(part["caption"]) for part, _ in grounded]
        sizes += [rle_size(mask) for _, found in grounded for one in found for mask in one[2]]
        picture = picture_for(source, sizes)
        regions = Regions((picture.height, picture.width), notes)
        captions = [_add_caption(part, found, regions) for part, found in grounded]
        return regions.sample(path, self.name, picture, {"captions": captions})


Grounded = tuple[str | None, list[Span], list[Any], Any]
"""Words of a phrase (None: only its spans are stated), stated spans, masks, what else the source states."""


def _captions(kind: str, file: Path) -> Iterator[Any]:
    """Yield the records of captions in a file of this kind."""
    if kind == _FLICKR:
        yield from read_items(file, "images.item")
    elif kind == "RefCOCOg_GCG":
        for record in read_items(file):  # one key each: the picture's id
            for number, inner in record.items() if isinstance(record, dict) else [("", None)]:
                yield {**inner, "id": number} if isinstance(inner, dict) else inner
    else:
        for record in read_items(file):
            if isinstance(record, dict):  # as pairs, which keep their order
                groundings = record.get("groundings")
                record["groundings"] = [*groundings.items()] if isinstance(groundings, dict) else []
            yield record


def _grounded(part: dict[str, Any], parts: Sequence[Any], notes: Counter[str]) -> Iterator[Grounded]:
    """Yield the phrases of a caption that have masks."""
    record = part["caption"]
    if part["kind"] == _FLICKR:
        regions = [other["region"] for other in parts if "region" in other and _same_caption(other, part)]
        together: dict[tuple[Span, ...], list[Any]] = {}
        for region in regions:
            if region.get("ignore"):
                notes[IGNORED] += 1
            else:
                together.setdefault(tuple(_spans(region.get("tokens_positive"))), []).append(region)
        for spans, found in together.items():
            rest = [_without(region, "sam_mask") for region in found]
            notes[NO_SPAN] += 0 if spans else len(found)
            yield None, list(spans), [region.get("sam_mask") for region in found], rest
    elif part["kind"] == "RefCOCOg_GCG":
        for ref in _as_list(record.get("refs")):
            if isinstance(ref, dict):
                words = ref.get("sentence")
                yield (
                    words if isinstance(words, str) else "",
                    [],
                    [ref.get("segmentation")],
                    _without(ref, "segmentation"),
                )
    else:
        for words, one in record["groundings"]:
            inner = one if isinstance(one, dict) else {}
            yield (
                words,
                _spans(inner.get("token_positives")),
                _as_list(inner.get("rle_masks")),
                _without(inner, "rle_masks"),
            )


def _add_caption(part: dict[str, Any], grounded: Iterable[Grounded], regions: Regions) -> dict[str, Any]:
    """Add a caption's regions. Returns the caption with its phrases, for the sample's JSON."""
    record = part["caption"]
    notes = regions.notes
    text, lead = strip_quotes(record["caption"])
    notes[SHORT] += len(text.split()) < _FEW_WORDS
    placed: list[tuple[Span | None, str, str]] = []
    before: Counter[str] = Counter()
    for words, spans, masks, rest in grounded:
        if words is None:
            places = [shift_span(text, lead, span, notes) for span in spans]
            texts = [text[slice(*span)] for span in places if span]
        else:
            stated: list[Span | None] = [*spans] or [None]
            places = [locate_phrase(words, text, lead, span, before[words.lower()], notes) for span in stated]
            texts = [words]
        before[(words or "").lower()] += 1
        name = regions.add(masks, texts, {"file": part["file"], "says": rest})
        placed += [(span, texts[0] if texts else "", name) for span in places or [None]]
    notes[BARE] += not placed
    caption = {"file": part["file"], "text": text, "phrases": merge_phrases(text, placed, notes)}
    inner = _without(record, "caption", "groundings", "refs")
    return {**caption, "record": {**inner, "caption": record["caption"]}}


def _same_caption(region: dict[str, Any], part: dict[str, Any]) -> bool:
    return id_of(region["region"], "image_id") == id_of(part["caption"])


def _without(record: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _spans(stated: Any) -> list[Span]:
    """Return [(start, end), ...] of either form in use: one pair, or a list of pairs."""
    pairs = [stated] if isinstance(stated, list) and stated and not isinstance(stated[0], list) else _as_list(stated)
    return [(p[0], p[1]) for p in pairs if isinstance(p, list) and len(p) == 2 and all(isinstance(n, int) for n in p)]


GCG_GRANDF = Gcg("gcg-grandf", ("GranDf_HA_GCG",))
GCG_OPENPSG = Gcg("gcg-openpsg", ("OpenPsgGCG",))
GCG_REFCOCOG = Gcg("gcg-refcocog", ("RefCOCOg_GCG",))
GCG_FLICKR30K = Gcg("gcg-flickr30k", (_FLICKR,))
