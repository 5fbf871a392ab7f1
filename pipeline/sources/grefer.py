"""gRefCOCO: expressions of one, several and no objects of an image. `docs/datasets/grefcoco.md`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.annotations import read_items
from pipeline.cropped import Bool
from pipeline.ids import as_id, id_of
from pipeline.pickles import read_pickle
from pipeline.raw import RawObject, RawSample
from pipeline.records import RecordsWriter
from pipeline.refused import raise_refused, refuse
from pipeline.sources import Source
from pipeline.sources.coco import add_images, category_names, image_sample
from pipeline.sources.coco_layouts import image_finder
from pipeline.sources.objects import Candidate
from pipeline.sources.refer import IMAGES, select_refs, sentences_of
from pipeline.walk import matching
from shards.errors import BadInput, DroppedInput, UserError

_NO_OBJECT = "-1"  # stands in `ann_id` for no object
_PART = {"expressions"}  # the keys of what `find` attaches to a picture beside its image and annotations


class Grefer(Source):
    """One sample per image, with the objects that its expressions name; none where all expressions are of no object."""

    name = "grefcoco"
    choices: Mapping[str, Any] = {"split": "train", "split_by": "unc", "mask_slack": 0}

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        folder = root / self.name if (root / self.name).is_dir() else root
        refs = _read_refs(folder, str(choices["split_by"]), str(choices["split"]))
        file = folder / "instances.json"
        counts = Counter(dict.fromkeys(("images", "images without a file"), 0))
        of_image: dict[str | None, list[dict[str, Any]]] = defaultdict(list)
        for ref in refs:
            of_image[as_id(ref["image_id"])].append(ref)
        names = category_names(file, counts)
        paths = add_images(file, image_finder(root, IMAGES), records, counts, of_image.keys())
        wanted: dict[str, set[str]] = defaultdict(set)
        for image, its_refs in of_image.items():
            if image not in paths:
                counts["refs of no listed image"] += len(its_refs)
                continue
            expressions = [expression for ref in its_refs for expression in _expressions(ref)]
            records.attach(paths[image], {"expressions": expressions})
            for ref in its_refs:
                if fault := _contradiction(ref):
                    refuse(records, paths[image], fault)
            wanted[paths[image]].update(number for one in expressions for number in one["objects"])
            counts["refs"] += len(its_refs)
            counts["expressions"] += len(expressions)
            counts["expressions of several objects"] += sum(len(one["objects"]) > 1 for one in expressions)
            counts["expressions without an object"] += sum(not one["objects"] for one in expressions)
        taken: set[tuple[str, str]] = set()
        for annotation in read_items(file, "annotations.item"):
            number = id_of(annotation)
            path = paths.get(id_of(annotation, "image_id"))
            if path is None or number is None or number not in wanted.get(path, ()):
                continue
            if (path, number) in taken:  # it is unknown which of the two an expression names
                value = f"annotation {number} of {path}, twice"
                refuse(records, path, BadInput("one id for two objects", met=value, wanted="an id for each"))
                counts["annotations that share an id"] += 1
                continue
            taken.add((path, number))
            records.attach(path, {**annotation, "category": names.get(id_of(annotation, "category_id"))})
            counts["objects"] += 1
        named = sum(map(len, wanted.values()))
        counts["objects without an annotation of their image"] = named - len(taken)
        return dict(counts)

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        raise_refused(parts)
        expressions = [one for part in parts if part.keys() == _PART for one in part["expressions"]]
        others = [part for part in parts if part.keys() != _PART]
        named = dict.fromkeys(number for one in expressions for number in one["objects"])
        if not expressions:
            raise DroppedInput("no expression", met="0 sentences", wanted="at least one")
        texts = {number: tuple(one["text"] for one in expressions if one["objects"] == [number]) for number in named}
        annotated = {id_of(part) for part in others[1:]}
        missing = [_missing(number, texts[number]) for number in named if number not in annotated]
        more = {"split": options["split"], "split_by": options["split_by"], "expressions": expressions}

        def read_texts(annotation: dict[str, Any]) -> tuple[str, ...]:
            return texts[id_of(annotation) or ""]

        slack = options.get("mask_slack", 0)
        return image_sample(root, path, self.name, others, read_texts, more, slack, missing, no_target=not named)


def _expressions(ref: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each sentence of a ref, with the ids of its objects; [] for none."""
    objects = [number for number in ref["ann_id"] if number != _NO_OBJECT]
    for sentence in ref["sentences"]:
        inner = {"sent": sentence["sent"], "ref_id": ref["ref_id"]}
        yield {"id": sentence["sent_id"], "text": sentence["raw"], "objects": objects, **inner}


def _contradiction(ref: Mapping[str, Any]) -> BadInput | None:
    """Return the fault of a ref of which it is unknown whether it has objects; None for any other."""
    numbers = ref["ann_id"]
    none = numbers in ([], [_NO_OBJECT])
    mixed = not none and _NO_OBJECT in numbers
    stated = ref["no_target"]
    if not mixed and (numbers == [_NO_OBJECT] if stated is None and none else bool(stated) == none):
        return None
    return BadInput(
        "an expression with and without objects",
        met=f"ref {ref['ref_id']}: ann_id {ref['ann_id']}, no_target {ref['no_target']}"[:120],
        wanted="ids with no_target false, or [-1] with no_target true",
    )


def _missing(number: str, texts: tuple[str, ...]) -> Candidate:
    """Return an object that has no annotation, so that it is named among those left out."""

    def read() -> Bool:
        raise BadInput("no such annotation", met=f"annotation {number}", wanted="one of this image in instances.json")

    return Candidate(RawObject(number, texts), (read,))


def _read_refs(folder: Path, split_by: str, split: str) -> list[dict[str, Any]]:
    """Return the refs of a split ("all": of every split), each with the keys that are needed."""
    files = [folder / f"grefs({split_by}).{suffix}" for suffix in ("json", "p")]
    file = next(filter(Path.exists, files), None)
    if file is None:
        raise UserError(
            "no such file",
            where=str(files[0]),
            met=", ".join(path.name for path in matching(folder, "grefs(*).*")) or "none",
            do="give --root, or another --split-by to shard",
        )
    refs = read_items(file) if file.suffix == ".json" else read_pickle(file)
    expected = "a list of refs with ref_id, ann_id, image_id, split, sentences of sent_id, raw, sent"
    return select_refs(refs, split, _checked, file, "not gRefCOCO's refs", expected)


def _checked(ref: dict[str, Any]) -> dict[str, Any]:
    """Return what is needed of a ref, `ann_id` as a list of ids; raises `KeyError` or `TypeError` for a broken one."""
    if as_id(ref["image_id"]) is None:
        raise TypeError(f"image_id {str(ref['image_id'])[:40]!r}, which is neither a number nor a text")
    stated = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    numbers = [number for value in stated if (number := as_id(value)) is not None]
    if len(numbers) != len(stated):
        raise TypeError(f"ann_id {str(ref['ann_id'])[:40]!r}, which is no list of numbers or texts")
    no_target = ref.get("no_target")
    if not (no_target is None or isinstance(no_target, bool) or no_target in (0, 1)):
        raise TypeError(f"no_target {str(no_target)[:40]!r}, which is neither true nor false")
    return {
        **{key: ref[key] for key in ("ref_id", "image_id", "split")},
        "ann_id": [*dict.fromkeys(numbers)],
        "no_target": None if no_target is None else bool(no_target),
        "sentences": sentences_of(ref),
    }
