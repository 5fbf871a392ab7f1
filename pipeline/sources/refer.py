"""RefCOCO, RefCOCO+, RefCOCOg: all referred objects of an image, all sentences of each. `docs/datasets/refcoco.md`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.annotations import read_items
from pipeline.ids import as_id, id_of
from pipeline.pickles import read_pickle
from pipeline.raw import RawSample
from pipeline.records import RecordsWriter
from pipeline.refused import refuse
from pipeline.sources import Source
from pipeline.sources.coco import add_images, category_names, image_sample
from pipeline.sources.coco_layouts import image_finder
from pipeline.walk import matching
from shards.errors import BadInput, UserError

IMAGES = ("images/mscoco/images/train2014", "coco2014/train2014", "images/train2014")


class Refer(Source):
    """One sample per image.

    Args:
        name: the source's name.
        split_by: default of the option that names the split's author.
    """

    def __init__(self, name: str, split_by: str) -> None:
        self.name = name
        self.choices: Mapping[str, Any] = {"split": "train", "split_by": split_by, "mask_slack": 0}

    def find(self, root: Path, choices: Mapping[str, Any], records: RecordsWriter) -> dict[str, int]:
        folder = root / self.name if (root / self.name).is_dir() else root
        refs = _read_refs(folder / f"refs({choices['split_by']}).p", str(choices["split"]))
        file = folder / "instances.json"
        counts = Counter(dict.fromkeys(("images", "images without a file"), 0))
        of_object: dict[str | None, list[Any]] = defaultdict(list)
        for ref in refs:
            of_object[as_id(ref["ann_id"])].append(ref)
        images = {as_id(ref["image_id"]) for ref in refs}
        names = category_names(file, counts)
        # A ref's file_name ends with an object's number: it is not the picture's.
        paths = add_images(file, image_finder(root, IMAGES), records, counts, images)
        taken: dict[str | None, str] = {}
        for annotation in read_items(file, "annotations.item"):
            number = id_of(annotation)
            path = paths.get(id_of(annotation, "image_id"))
            if path is not None and number in taken:  # it is unknown which of the two a sentence refers to
                value = f"annotation {number} of {taken[number]} and {path}"
                for input_path in (taken[number], path):
                    refuse(records, input_path, BadInput("one id for two objects", met=value, wanted="an id for each"))
                counts["annotations that share an id"] += 1
            if path is None or not of_object.get(number):
                continue
            object_refs = of_object.pop(number)
            taken[number] = path
            annotation["category"] = names.get(id_of(annotation, "category_id"))
            records.attach(path, {**annotation, "refs": object_refs})
            counts["objects"] += 1
            counts["refs"] += len(object_refs)
            counts["sentences"] += sum(len(ref["sentences"]) for ref in object_refs)
        counts["refs without an annotation or image"] = sum(map(len, of_object.values()))
        return dict(counts)

    def load(self, root: Path, path: str, options: Mapping[str, Any], parts: Sequence[Any]) -> RawSample:
        more = {"split": options["split"], "split_by": options["split_by"]}
        return image_sample(root, path, self.name, parts, _sentences, more, options.get("mask_slack", 0))


def _sentences(annotation: dict[str, Any]) -> tuple[str, ...]:
    return tuple(sentence["raw"] for ref in annotation["refs"] for sentence in ref["sentences"])


def _read_refs(file: Path, split: str) -> list[dict[str, Any]]:
    """Return the refs of a split ("all": of every split), each with the keys that are needed."""
    if not file.exists():
        raise UserError(
            "no such file",
            where=str(file),
            met=", ".join(sorted(path.name for path in matching(file.parent, "refs(*).p"))) or "none",
            do="give --root, or another --split-by to shard",
        )
    expected = "a list of refs with ref_id, ann_id, image_id, category_id, split, sentences of sent_id, raw, sent"
    return select_refs(read_pickle(file), split, _checked, file, "not refer's pickle", expected)


def select_refs(
    refs: Iterable[dict[str, Any]],
    split: str,
    check: Callable[[dict[str, Any]], dict[str, Any]],
    file: Path,
    fault: str,
    expected: str,
) -> list[dict[str, Any]]:
    """Return the refs of a split ("all": of every split), each as `check` returns it.

    Args:
        check: raises `KeyError` or `TypeError` for a broken ref.
        file: the file that the refs come from, for messages.
        fault: what is wrong with a file that holds a broken ref, for messages.
        expected: what such a file should hold, for messages.

    Raises:
        UserError: a broken ref, which is named by its number; no ref of this split.
    """
    chosen = []
    splits: set[str] = set()
    number = 0
    try:
        for ref in refs:
            number += 1
            splits.add(str(ref["split"]))
            if split in ("all", ref["split"]):
                chosen.append(check(ref))
    except (TypeError, KeyError) as error:
        raise UserError(
            fault,
            where=f"{file}, ref {number}" if number else str(file),
            met=f"no {error}" if isinstance(error, KeyError) else str(error),
            wanted=expected,
        ) from None
    if not chosen:
        raise UserError(
            "no ref of this split",
            where=str(file),
            met=", ".join(sorted(splits)) or "no ref at all",
            wanted=split,
            do="give --split",
        )
    return chosen


def _checked(ref: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a ref that are needed; raises `KeyError` or `TypeError` where one is missing or wrong."""
    chosen = {key: ref[key] for key in ("ref_id", "ann_id", "image_id", "category_id", "split")}
    for key in ("ann_id", "image_id"):
        if as_id(ref[key]) is None:
            raise TypeError(f"{key} {str(ref[key])[:40]!r}, which is neither a number nor a text")
    return {**chosen, "sentences": sentences_of(ref)}


def sentences_of(ref: dict[str, Any]) -> list[dict[str, Any]]:
    """Return sent_id, raw, sent of each sentence; raises `KeyError` or `TypeError` where one is missing or wrong."""
    sentences = [{key: sentence[key] for key in ("sent_id", "raw", "sent")} for sentence in ref["sentences"]]
    for sentence in sentences:
        if not isinstance(sentence["raw"], str):
            raise TypeError(f"a sentence that is no text: {str(sentence['raw'])[:40]!r}")
    return sentences


REFCOCO = Refer("refcoco", "unc")
REFCOCO_PLUS = Refer("refcoco+", "unc")
REFCOCOG = Refer("refcocog", "umd")
