"""Grounded captions of pictures: GranDf's val and test, as GLaMM publishes them for measuring.

An item is a picture; its id is that of the files. The answer is a caption with `<p> phrase </p> [SEG]` for each phrase.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.published.captions import NOT_MEASURED, caption_measures, missing
from evaluation.published.datasets import Asked, Benchmark, Item, OpenBenchmark, Options, View
from evaluation.published.datasets.pictures import Pictures, PictureTruth
from evaluation.published.measures import (
    Float,
    Int,
    Measure,
    Ratio,
    average_precision_50,
    iou_matrix,
    mean_of,
    paired_iou,
    recalled_phrases,
)
from evaluation.published.predictions import Prediction, encode, masks_of, union_of
from inference.phrases import phrase_spans
from pipeline import masks
from pipeline.annotations import read_items
from pipeline.cropped import Bool
from pipeline.finder import below
from pipeline.pictures import read_picture
from pipeline.records import RecordsWriter
from pipeline.regions import size_of
from pipeline.sources.frame_files import FrameFiles
from shards.errors import BadInput, UserError

QUESTION = (
    "<image>\nCould you please give me a brief description of the image? Please respond with interleaved segmentation "
    "masks for the corresponding parts of the answer."
)
"""GLaMM's and Sa2VA's."""
QUESTION_WITH_BLANKS = QUESTION.replace("interleaved ", "interleaved" + 5 * " ")
"""With the run of blanks that Sa2VA's script has, where a line of it goes on."""
_PICTURES = "images/grandf/val_test"
_FILES = "annotations/gcg_val_test"
_MARK = re.compile(r"<.*?>|\[SEG\]")
_NO_TEXTS = "recall is not measured: give --text-model"

Similarity = Callable[[Sequence[str], Sequence[str]], Float]
"""Similarity of each of T texts with each of A: (T, A)."""


@dataclass(frozen=True)
class GroundedTruth(PictureTruth):
    """A decoded picture with its true phrases and their masks."""

    masks: tuple[Bool, ...]
    """(H, W) each."""
    phrases: tuple[str, ...]


class Gcg(Pictures):
    """Grounded captions. An item's numbers: IoU of the paired masks, recalled phrases (NaN if unknown), true phrases.

    Args:
        similarity: of texts, for the recall; None: recall is not measured.
        question: with `<image>`.
    """

    folders = ("glamm_data",)
    published: Mapping[str, int | None] = {"val": None, "test": None}

    def __init__(self, similarity: Similarity | None = None, question: str = QUESTION) -> None:
        super().__init__("gcg")
        self._similarity = similarity
        self.questions = (question,)

    def with_options(self, options: Options) -> Gcg:
        similarity = None
        if options.text_model is not None:
            from evaluation.published.texts import TextModel

            similarity = TextModel(options.text_model).similarity
        return Gcg(similarity, QUESTION_WITH_BLANKS if options.blanks else QUESTION)

    def find(self, root: Path, split: str, records: RecordsWriter) -> list[str]:
        files = {kind: root / _FILES / f"{split}_gcg_coco_{kind}_gt.json" for kind in ("caption", "mask")}
        for file in files.values():
            if not file.is_file():
                raise UserError("no such file", where=str(file), do="see docs/BENCHMARKS.md for the layout")
        pictures = FrameFiles(root / _PICTURES)
        names: dict[str, str] = {}
        for image in read_items(files["caption"], "images.item"):
            number = _id(image, "id", files["caption"])
            found = pictures.named(number)
            names[number] = f"{_PICTURES}/{found.name if found else number + '.jpg'}"
            records.add(names[number], 0)
            records.attach(names[number], {"id": number, "image": image})
        for kind, file in files.items():
            for annotation in read_items(file, "annotations.item"):
                number = _id(annotation, "image_id", file)
                if number in names:
                    records.attach(names[number], {kind: annotation})
        notes = [] if self._similarity else [_NO_TEXTS]
        return notes + ([NOT_MEASURED + missing()] if missing() else [])

    def items_of(self, root: Path, path: str, parts: Sequence[Any]) -> Iterator[Item]:
        captions = [part["caption"] for part in parts if "caption" in part]
        text = captions[0].get("caption") if captions else None
        labels = captions[0].get("labels") if captions else None
        if not isinstance(text, str) or not isinstance(labels, list) or not all(isinstance(x, str) for x in labels):
            raise BadInput("no grounded caption", where=path, wanted="caption, a text, and labels, a list of texts")
        yield Item(parts[0]["id"], text, self.questions[0])

    def size_of(self, parts: Sequence[Any]) -> tuple[int, int] | None:
        return size_of(parts[0]["image"])

    def read(self, opened: OpenBenchmark, asked: Asked) -> GroundedTruth:
        parts = opened.records.parts(asked.path)
        picture = np.asarray(read_picture(below(opened.root, asked.path), self.size_of(parts)))
        phrases = next(part["caption"]["labels"] for part in parts if "caption" in part)
        stated = [part["mask"].get("segmentation") for part in parts if "mask" in part]
        height, width = picture.shape[:2]
        found = tuple(masks.from_coco(one, height, width) for one in stated)
        return GroundedTruth(picture, found, tuple(phrases))

    def score(
        self, truth: GroundedTruth, items: Sequence[Item], of_item: Mapping[str, Prediction], where: str
    ) -> list[tuple[float, ...] | None]:
        return [self._numbers(truth, of_item[item.id], where) for item in items]

    def _numbers(self, truth: GroundedTruth, prediction: Prediction, where: str) -> tuple[float, ...]:
        height, width = truth.picture.shape[:2]
        answers = [*masks_of(prediction, height, width, where)]
        recalled = np.nan
        phrases = phrases_of(prediction.answer)
        if self._similarity is not None:
            matrix = iou_matrix(truth.masks, answers)
            try:
                recalled = recalled_phrases(matrix, self._similarity(truth.phrases, phrases))
            except IndexError:  # a mask without a phrase: GLaMM's script then counts nothing of the picture
                recalled = 0
        return paired_iou(iou_matrix(answers, truth.masks)), recalled, len(truth.phrases)

    def measures(self, numbers: Float, kinds: Int) -> Mapping[str, Measure]:
        return {"mIoU": mean_of(numbers[:, 0]), "recall": (Ratio(numbers[:, 1], numbers[:, 2]),)}

    def whole(
        self, opened: OpenBenchmark, items: Sequence[tuple[Asked, Item]], of_item: Mapping[str, Prediction]
    ) -> dict[str, Measure]:
        """Return AP50, and METEOR and CIDEr where captions can be measured."""
        truths = {item.id: [encode(mask) for mask in self.read(opened, one).masks] for one, item in items}
        answers = {key: of_item[key].masks for key in truths}
        found: dict[str, Measure] = {"AP50": [average_precision_50(answers, truths)]}
        if missing():
            return found
        captions = [caption_of(of_item[item.id].answer) for _, item in items]
        return found | caption_measures(captions, [[item.phrase] for _, item in items])

    def quality(self, numbers: Float) -> Float:
        return numbers[:, 0]

    def views(self, truth: GroundedTruth, item: Item, prediction: Prediction, where: str) -> list[View]:
        """Return the picture with the union of all masks."""
        height, width = truth.picture.shape[:2]
        union = np.zeros((height, width), np.bool_)
        for mask in truth.masks:
            union |= mask
        return [View("picture", truth.picture, union_of(prediction, height, width, where), union)]


def phrases_of(answer: str) -> list[str]:
    """Return the phrases of an answer: what stands between `<p>` and `</p>` (Sa2VA's `process_and_save_output`)."""
    line = _one_line(answer)
    return [line[span.start : span.end].strip() for span in phrase_spans(line) if span.tagged]


def caption_of(answer: str) -> str:
    """Return an answer without its marks, and without the quotes around it (`process_and_save_output`)."""
    return " ".join(_MARK.sub("", _one_line(answer)).split()).strip("'").strip()


def _one_line(answer: str) -> str:
    """Return an answer as Sa2VA's script takes it: it joins lines without a blank."""
    return answer.replace("<s>", "").replace("\n", "").replace("  ", " ")


def _id(record: Any, key: str, file: Path) -> str:
    number = record.get(key) if isinstance(record, dict) else None
    if type(number) not in (int, str) or not str(number):
        raise UserError("an entry without an id", where=str(file), met=str(record)[:60], wanted=key)
    return str(number)


BENCHMARKS: Mapping[str, Benchmark] = {"gcg": Gcg()}
