"""Kind regions: regions are shown, and conversations or descriptions of Osprey-724K speak of them by number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.sample import dicts
from trainer.conversations.conversation import Conversation, Mark, Text, Turn
from trainer.conversations.kinds.describe import region_names
from trainer.conversations.visit import Visit
from trainer.conversations.wording import IN_A_WORD, REGION_QUESTIONS
from trainer.data.choice import salt_of, shuffled

TURNS = "turns about regions"
LEFT_OUT = "records with a region that was left out"
NOT_CHOSEN = "records with a region that the condition leaves out"
NOT_VISIBLE = "records with a region without cells"
OTHER_SHAPE = "records of another shape"
_SHORT = "osprey_short_form.json"
"""The file whose answers are short; only to its questions Sa2VA's training adds that."""
_NAMED = re.compile(r"<region(\d+)>")
_DESCRIBED = re.compile(r"\s*<region(\d+)>\s*:")


@dataclass(frozen=True)
class _Record:
    record: Mapping[str, Any]
    regions: tuple[int, ...]
    """Numbers of the objects; equal outlines are one object, which then stands twice."""
    frames: list[int]
    """Frames in which all regions have cells."""


def regions(visit: Visit) -> list[Conversation]:
    """Show the regions of a record and repeat its turns; records come in turn."""
    records = visit.sample.meta.get("records")
    stated = records if isinstance(records, list) else []
    found = [usable for item in stated if (usable := _usable(visit, item))]
    if not found:
        return []
    order = shuffled(range(len(found)), salt_of(visit.options.seed, visit.sample.key))
    chosen = found[order[visit.number % len(order)]]
    frames = (visit.draws.choice(chosen.frames),)
    before: Text = (Mark.PICTURES, *region_names(len(chosen.regions)))
    is_conversation = bool(chosen.record.get("conversations"))
    pairs = _conversation(chosen.record) if is_conversation else _descriptions(visit, chosen)
    visit.notes[TURNS] += len(pairs)
    rows: list[tuple[Turn, ...]]
    if visit.options.one_phrase_per_row and not is_conversation:  # later turns of a conversation need those before them
        rows = [(_turn(before, question.rstrip(), answer),) for question, answer in pairs]
    else:
        (first, answer), *later = pairs
        rows = [(_turn(before, first.rstrip(), answer), *(_turn((), *pair) for pair in later))]
    return [Conversation("regions", row, frames, regions=chosen.regions) for row in rows]


def _turn(before: Text, question: str, answer: str) -> Turn:
    return Turn(tuple(filter(None, (*before, question))), tuple(filter(None, (answer,))))


def _usable(visit: Visit, record: Any) -> _Record | None:
    """Return a record whose regions are all there; None, and counted, for any other."""
    ids = record.get("regions") if isinstance(record, dict) else None
    if not isinstance(ids, list) or not ids or not _has_turns(record, len(ids)):
        visit.notes[OTHER_SHAPE] += 1
        return None
    numbers = [visit.sample.numbers([one]) for one in ids]
    texts = [turn["value"] for turn in dicts(record.get("conversations"))]
    named = {number for text in texts for number in _NAMED.findall(text)}
    if None in numbers or not named <= {str(number) for number in range(1, len(ids) + 1)}:
        visit.notes[LEFT_OUT] += 1
        return None
    objects = tuple(one for number in numbers for one in number or ())
    if not visit.sample.all_chosen(objects):
        visit.notes[NOT_CHOSEN] += 1
        return None
    shown = np.flatnonzero(np.all(visit.sample.cells[:, objects] > 0, axis=1)).tolist()
    if not shown:
        visit.notes[NOT_VISIBLE] += 1
        return None
    return _Record(record, objects, shown)


def _has_turns(record: Mapping[str, Any], regions: int) -> bool:
    """Whether a record has questions and answers in turn, or a description of each of its regions."""
    if record.get("conversations"):
        turns = dicts(record["conversations"])
        in_turn = [turn.get("from") for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        return bool(turns) and in_turn and all(isinstance(turn.get("value"), str) for turn in turns)
    described = _described(record)
    return len(described) == regions and all(isinstance(text, str) for text in described)


def _described(record: Mapping[str, Any]) -> list[Any]:
    described = record.get("description") or record.get("descriptions")
    return described if isinstance(described, list) else []


def _conversation(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return questions and answers with `<region1>` as `region1`, as Sa2VA's training writes it."""
    texts = [_without_marks(turn["value"]) for turn in dicts(record["conversations"])]
    limit = _limit(record)
    return [(q + limit, a.strip()) for q, a in zip(texts[::2], texts[1::2], strict=True)]


def _descriptions(visit: Visit, chosen: _Record) -> list[tuple[str, str]]:
    """Return a question for each description, about the region that it names or, if not all do, the next one."""
    texts = _described(chosen.record)
    named = [match[1] for text in texts if (match := _DESCRIBED.match(text))]
    places = [str(number) for number in range(1, len(texts) + 1)]
    numbers = named if sorted(named) == sorted(places) else places
    limit = _limit(chosen.record)
    return [
        (visit.wording(REGION_QUESTIONS).format(region=f"region{number}") + limit, _without_marks(text).strip())
        for number, text in zip(numbers, texts, strict=True)
    ]


def _limit(record: Mapping[str, Any]) -> str:
    return IN_A_WORD if record.get("file") == _SHORT else ""


def _without_marks(text: str) -> str:
    return text.replace("<", "").replace(">", "")
