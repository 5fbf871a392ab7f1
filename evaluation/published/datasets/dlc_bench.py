"""DLC-Bench (Describe Anything): a judge answers prepared questions about the description of each region.

An item is a region; its id is that of its annotation. The first question to the judge is whether the described object
is of the region's class: where it is not, no other answer counts for the description, only against it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np

from evaluation.published.datasets import Asked, Benchmark, Item, OpenBenchmark, Options
from evaluation.published.datasets.pictures import Regions, RegionTruth
from evaluation.published.judge import Judge, Verdicts
from evaluation.published.measures import Float, Int, Measure, mean_of
from evaluation.published.predictions import Prediction
from pipeline import masks
from pipeline.annotations import read_items, read_pairs
from pipeline.cropped import Bool
from pipeline.finder import below
from pipeline.ids import id_of
from pipeline.pictures import read_picture
from pipeline.records import RecordsWriter
from pipeline.regions import size_of
from shards.errors import BadInput, UserError

QUESTION = "<image>\nPlease generate a detailed description for the given image region."
"""Sa2VA publishes no question for DLC-Bench; this is that of training here, and of `predict --region`."""
PROMPT = """Answer the multiple-choice question based on the text description of an object in an image. You need to \
follow these rules:
1. Do not output any reasoning. Do not perform correction. Please output exactly one answer from the choices for each \
question. Do not repeat the question.
2. There is no need for exact matching. Please choose the closest option based on the description.

The description is:
{description}

From the description above, please answer the following question with one of the choices:
{question}
"""
"""Question to DLC-Bench's judge; it decides the number, so it is DLC-Bench's own."""
_ONE = "Is it likely that the object in the description is {} or an object of a similar type?"
_SEVERAL = "Is it likely that the objects in the description are {} or objects of a similar type?"
_AGAIN = " Again, It does not have to be an exact match."
_KINDS = ("positive", "negative")
_MARK = re.compile(r"<.*?>|\[SEG\]")
_FILES = ("annotations.json", "qa.json", "class_names.json")
_NO_JUDGE = "not measured: no judge has answered; give --judge, with --from for descriptions that are written"


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question to the judge with its choices."""

    kind: str
    """"recognition", "positive" or "negative"."""
    text: str
    choices: tuple[str, ...]
    scores: tuple[float, ...]
    """Points of each choice."""

    def prompt(self, description: str) -> str:
        """Return what the judge is asked about a description."""
        choices = (f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, self.choices, strict=False))
        return PROMPT.format(description=description, question="\n".join([self.text, *choices]).strip())


@dataclass(frozen=True)
class JudgedTruth(RegionTruth):
    """A decoded picture with its regions, and the questions to the judge."""

    questions: Mapping[str, Sequence[ChoiceQuestion]]
    """Of each item by its id."""


class DlcBench(Regions):
    """Descriptions of regions. An item's numbers: its positive score, and its negative one (NaN without a question).

    Args:
        judge: asked what no verdict is known to; None: nothing is sent anywhere.
        judge_model: whose verdicts count; None: the judge's, or those that are there.
        verdicts: what the judge has answered; None: no item is measured.
    """

    questions = (QUESTION,)
    published: Mapping[str, int | None] = {"val": 100}
    folders = ("DLC-Bench/DLC-bench", "DLC-bench", "DLC-Bench")
    quality_name = "score"
    no_numbers = "without a verdict on each question"

    def __init__(
        self, judge: Judge | None = None, judge_model: str | None = None, verdicts: Verdicts | None = None
    ) -> None:
        super().__init__("dlc-bench")
        self._judge = judge
        self._judge_model = judge_model if judge is None else judge.model
        self._verdicts = verdicts

    def with_options(self, options: Options) -> DlcBench:
        return DlcBench(options.judge, options.judge_model)

    def find(self, root: Path, split: str, records: RecordsWriter) -> list[str]:
        annotations, questions, names = (root / name for name in _FILES)
        for file in (annotations, questions, names):
            if not file.is_file():
                raise UserError("no such file", where=str(file), do="see docs/BENCHMARKS.md for the layout")
        asked = dict(read_pairs(questions))
        classes = dict(read_pairs(names))
        paths = {}
        for image in read_items(annotations, "images.item"):
            paths[id_of(image)] = path = f"images/{image.get('file_name')}"
            records.add(path, 0)
            records.attach(path, {"image": image})
        for annotation in read_items(annotations, "annotations.item"):
            number = id_of(annotation) or ""
            found = paths.get(id_of(annotation, "image_id"))
            if found is not None and number in asked:
                values = {"annotation": annotation, "questions": asked.pop(number), "class": classes.get(number)}
                records.attach(found, values)
        return [f"{len(asked):,} regions of {questions.name} have no picture or annotation"] if asked else []

    def items_of(self, root: Path, path: str, parts: Sequence[Any]) -> Iterator[Item]:
        for part in parts[1:]:
            number = id_of(part["annotation"]) or ""
            questions_of(part["class"], part["questions"], number)
            yield Item(number, part["class"], QUESTION, (number,))

    def size_of(self, parts: Sequence[Any]) -> tuple[int, int] | None:
        return size_of(parts[0]["image"])

    def read(self, opened: OpenBenchmark, asked: Asked) -> JudgedTruth:
        parts = opened.records.parts(asked.path)
        picture = np.asarray(read_picture(below(opened.root, asked.path), self.size_of(parts)))
        regions: dict[str, Bool] = {}
        for part in parts[1:]:
            try:
                region = masks.from_coco(part["annotation"].get("segmentation"), *picture.shape[:2])
            except BadInput:
                continue
            if region.any():
                regions[id_of(part["annotation"]) or ""] = region
        return JudgedTruth(picture, regions, _questions(parts))

    def prepare(
        self, opened: OpenBenchmark, of_item: Mapping[str, Prediction], folder: Path
    ) -> tuple[Benchmark, list[str]]:
        """Ask the judge all that the folder holds no verdict to."""
        verdicts = Verdicts(folder, self._judge_model)
        asked: list[tuple[str, ChoiceQuestion]] = []
        for one in opened.asked:
            questions = _questions(opened.records.parts(one.path))
            for item in one.items:
                if item.id in of_item:
                    description = description_of(of_item[item.id].answer)
                    asked += [(question.prompt(description), question) for question in questions[item.id]]
        unusable = {} if self._judge is None else verdicts.ask(self._judge, [prompt for prompt, _ in asked])
        replies = [(verdicts.reply(prompt), question) for prompt, question in asked]
        if not any(reply is not None for reply, _ in replies):
            return self, [_NO_JUDGE]
        notes = [f"judge: {verdicts.model}"]
        if unusable:
            notes.append(f"no usable answer to {len(unusable):,} questions, such as {next(iter(unusable.values()))}")
        strange = sum(r is not None and choice_of(r, question.choices) is None for r, question in replies)
        if strange:
            notes.append(f"{strange:,} of {len(replies):,} verdicts name no choice: they count 0")
        return DlcBench(self._judge, self._judge_model, verdicts), notes

    def score(
        self, truth: JudgedTruth, items: Sequence[Item], of_item: Mapping[str, Prediction], where: str
    ) -> list[tuple[float, ...] | None]:
        if self._verdicts is None:
            return [()] * len(items)
        return [self._numbers(truth.questions[item.id], of_item[item.id], self._verdicts) for item in items]

    @staticmethod
    def _numbers(
        questions: Sequence[ChoiceQuestion], prediction: Prediction, verdicts: Verdicts
    ) -> tuple[float, ...] | None:
        scores: dict[str, list[float]] = {kind: [] for kind in ("recognition", *_KINDS)}
        for question in questions:
            reply = verdicts.reply(question.prompt(description_of(prediction.answer)))
            if reply is None:
                return None
            choice = choice_of(reply, question.choices)
            scores[question.kind].append(0.0 if choice is None else question.scores[choice])
        most = math.inf if scores["recognition"] == [1.0] else 0.0
        means = (np.mean(np.minimum(scores[kind], most)) if scores[kind] else math.nan for kind in _KINDS)
        return tuple(map(float, means))

    def measures(self, numbers: Float, kinds: Int) -> Mapping[str, Measure]:
        positive, negative = (mean_of(one, ~np.isnan(one)) for one in numbers.T)
        return {"positive": positive, "negative": negative, "mean": [*positive, *negative]}

    def quality(self, numbers: Float) -> Float:
        known = ~np.isnan(numbers)
        sums = np.where(known, numbers, 0.0).sum(axis=1)
        return np.maximum(sums / np.maximum(known.sum(axis=1), 1), 0.0)


def questions_of(name: Any, stated: Any, where: str) -> list[ChoiceQuestion]:
    """Return the questions to the judge about a region: whether its class is recognised, then those of `qa.json`.

    Args:
        name: the region's class.
        stated: its questions, as `qa.json` has them.

    Raises:
        BadInput: they are of another shape.
    """
    if not isinstance(name, str) or not name or not isinstance(stated, list):
        raise BadInput("no questions of a region", where=where, met=f"{name!r:.40}", wanted="a class, and a list")
    found = [ChoiceQuestion("recognition", _recognition(name), ("Yes", "No"), (1.0, 0.0))]
    for one in stated:
        try:
            kind, text, choices = one["type"], one["question"], [(choice, score) for choice, score in one["choices"]]
        except (LookupError, TypeError, ValueError):
            kind, text, choices = "", "", []
        numbers = all(isinstance(score, int | float) and math.isfinite(score) for _, score in choices)
        texts = all(isinstance(choice, str) and choice for choice, _ in choices)
        if kind not in _KINDS or not isinstance(text, str) or not numbers or not texts or not 1 < len(choices) < 27:
            wanted = "question, choices of [text, score], type positive or negative"
            raise BadInput("no question about a region", where=where, met=f"{one!r:.60}", wanted=wanted)
        found.append(ChoiceQuestion(kind, text, *zip(*choices, strict=True)))
    return found


def description_of(answer: str) -> str:
    """Return an answer without marks."""
    return _MARK.sub("", answer).strip()


def choice_of(reply: str, choices: Sequence[str]) -> int | None:
    """Return which choice a judge's reply names; None for none (`parse_pred` of Describe Anything).

    A reply is a choice or its letter or both; else it holds choices, of which the last counts, the longest of those at
    one place; or it begins with a letter; or it is a part of choices, of which the longest counts.
    """
    said = reply.strip().lower()
    known = [choice.strip().lower() for choice in choices]
    letters = ascii_uppercase.lower()[: len(known)]
    if not said:
        return None
    for n, choice in enumerate(known):
        if said in (choice, f"{letters[n]}. {choice}", letters[n]):
            return n
    held = [n for n, choice in enumerate(known) if choice in said]
    if len(held) == 1:
        return held[0]
    if said[0] in letters and said[1:2] == ".":
        return letters.index(said[0])
    if held:
        return max(held, key=lambda n: (said.index(known[n]), len(known[n])))
    around = [n for n, choice in enumerate(known) if said in choice]
    if around:
        return max(around, key=lambda n: len(known[n]))
    return letters.index(said[0]) if said[0] in letters and said[1:2] == "\n" else None


def _questions(parts: Sequence[Any]) -> dict[str, list[ChoiceQuestion]]:
    every = [(id_of(part["annotation"]) or "", part) for part in parts[1:]]
    return {number: questions_of(part["class"], part["questions"], number) for number, part in every}


def _recognition(name: str) -> str:
    """Return the question whether the described object is of a class.

    Describe Anything's script asks a package for plurals and articles. For its 100 regions these rules do the same.
    """
    if name.endswith("s") and name != "bus":
        return _SEVERAL.format(name) + _AGAIN
    return _ONE.format(("an " if name[0].lower() in "aeiou" else "a ") + name) + _AGAIN


BENCHMARKS: Mapping[str, DlcBench] = {"dlc-bench": DlcBench()}
