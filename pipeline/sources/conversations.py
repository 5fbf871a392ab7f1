"""Conversations in ShareGPT's form: find their file, and make turns of their messages. `docs/datasets/llava.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.annotations import read_records
from pipeline.finder import inside
from pipeline.ids import id_of
from pipeline.records import RecordsWriter
from pipeline.refused import refuse
from pipeline.walk import list_names
from shards.errors import BadInput, UserError

IMAGE = "<image>"
VIDEO = "<video>"
SKIPPED = "answers left out: before the first question"
UNANSWERED = "questions left out: no answer follows"
SAME_ID = "records with the id of an earlier one"
TAKEN_OUT = "marks of pictures taken out of questions: the record has no picture"
_QUESTION = ("human", "user")
_ANSWER = ("gpt", "assistant")
_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_SHAPE = '[{"from": "human", "value": TEXT}, {"from": "gpt", "value": TEXT}, ...]'


@dataclass(frozen=True)
class Exchange:
    """What a human says until the model answers, and the answer."""

    messages: tuple[str, ...]
    """At least one, unchanged."""
    answer: str
    """Without blanks at its ends; never empty."""


def read_exchanges(record: Mapping[str, Any], notes: Counter[str]) -> list[Exchange]:
    """Return the exchanges of a record's `conversations`, at least one.

    As in Sa2VA's code, messages of the human that follow each other are one question, and answers before the first
    question are left out. Questions after the last answer are left out too. Both are counted in `notes`.

    Raises:
        BadInput: no list of messages, another speaker, an answer after an answer, an empty answer, or no exchange.
    """
    found: list[Exchange] = []
    messages: list[str] = []
    for number, (speaker, text) in enumerate(_messages(record.get("conversations"))):
        if speaker in _QUESTION:
            messages.append(text)
        elif messages and text.strip():
            found.append(Exchange(tuple(messages), text.strip()))
            messages = []
        elif messages:
            raise BadInput("an empty answer", met=f"message {number}", wanted="a text")
        elif found:
            raise BadInput("two answers without a question between", met=f"message {number}", wanted="human, then gpt")
        else:
            notes[SKIPPED] += 1
    notes[UNANSWERED] += len(messages)
    if not found:
        raise BadInput("no question with an answer", met=f"{len(messages)} questions", wanted="human, then gpt")
    return found


def _messages(stated: Any) -> Iterator[tuple[str, str]]:
    """Yield speaker and text of each message of a record's `conversations`."""
    if not isinstance(stated, list) or not stated:
        raise BadInput("no conversation", met=str(stated)[:80], wanted=_SHAPE)
    for message in stated:
        speaker = message.get("from") if isinstance(message, dict) else None
        text = message.get("value") if isinstance(message, dict) else None
        if not isinstance(speaker, str) or not isinstance(text, str):
            raise BadInput("a message of another shape", met=str(message)[:80], wanted=_SHAPE)
        if speaker not in (*_QUESTION, *_ANSWER):
            names = " or ".join((*_QUESTION, *_ANSWER))
            raise BadInput("a speaker that is neither human nor gpt", met=speaker[:40], wanted=names)
        yield speaker, text


def turn(question: str, answer: str, picture: int | None = None) -> dict[str, Any]:
    """Return a turn as a sample's JSON holds it; raises `BadInput` for an empty question without a picture.

    Args:
        picture: position in the question where the row's pictures stand; None for no pictures.
    """
    if picture is None and not question.strip():
        raise BadInput("an empty question", met=f"{question[:40]!r} before {answer[:40]!r}", wanted="a text")
    return {"question": question, **({} if picture is None else {"picture": picture}), "answer": answer}


def text_turns(record: Mapping[str, Any], notes: Counter[str]) -> list[dict[str, Any]]:
    """Return the turns of a record without a picture; `<image>` is taken out of its questions, as Sa2VA's code does."""
    turns = []
    for exchange in read_exchanges(record, notes):
        notes[TAKEN_OUT] += sum(message.count(IMAGE) for message in exchange.messages)
        question = "".join(message.replace(IMAGE, "") for message in exchange.messages)
        turns.append(turn(question, exchange.answer))
    return turns


def refuse_later_marks(exchanges: Sequence[Exchange], marks: Sequence[str]) -> None:
    """Raise `BadInput` where a mark of a picture stands in any message but the first."""
    for number, exchange in enumerate(exchanges):
        for message in exchange.messages[number == 0 :]:
            for mark in marks:
                if mark in message:
                    raise BadInput(
                        f"{mark} after the first message", met=f"turn {number}: {message[:60]!r}", wanted="in front"
                    )


def conversation_files(root: Path, named: str | None, known: Sequence[str] = ()) -> list[Path]:
    """Return the files of conversations below `root`: the one that is `named`, else the first `known` one, else all
    JSON and JSON Lines files directly in `root`.

    Args:
        named: file name, with or without its suffix; it may have folders.
        known: paths relative to `root`.

    Raises:
        UserError: there is none.
    """
    folders = dict.fromkeys(["", *(place.rpartition("/")[0] for place in known)])
    here = [name for name in list_names(root) if name.lower().endswith(_SUFFIXES) and (root / name).is_file()]
    if named:
        names = [named, *(named + suffix for suffix in _SUFFIXES)]
        places = [f"{folder}/{name}".lstrip("/") for folder in folders for name in names] if inside(named) else []
        found = [place for place in places if (root / place).is_file()][:1]
    else:
        found = [place for place in known if (root / place).is_file()][:1] or here
    if not found:
        raise UserError(
            "no conversations",
            where=str(root),
            met=named or "no JSON or JSON Lines file",
            wanted=" or ".join([*known[:1], "NAME.json, with --split NAME"]),
            do="say which with --split, or give --root",
        )
    return [root / place for place in found]


def only_file(root: Path, named: str | None, known: Sequence[str]) -> Path:
    """Return the only file of conversations (see `conversation_files`); raises `UserError` where there are several."""
    file, *others = conversation_files(root, named, known)
    if others:
        raise UserError(
            "several files of conversations",
            where=str(root),
            met=", ".join(path.name for path in (file, *others))[:200],
            wanted="one per set",
            do="say which with --split NAME",
        )
    return file


def each_record(
    root: Path, file: Path, records: RecordsWriter, counts: Counter[str]
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield number (from 0), `FILE#NUMBER` and content of each record of a file; what is no record is refused."""
    place = file.relative_to(root).as_posix()
    seen: set[str] = set()
    for number, record in enumerate(read_records(file)):
        path = f"{place}#{number}"
        counts["records"] += 1
        if isinstance(record, BadInput):
            refuse(records, path, record)
        elif not isinstance(record, dict):
            refuse(records, path, BadInput("not a record", met=str(record)[:80], wanted='{"conversations": [...]}'))
        else:
            name = id_of(record)
            if name is not None:
                counts[SAME_ID] += name in seen
                seen.add(name)
            yield number, path, record


def other_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record states beside its conversation."""
    return {key: value for key, value in record.items() if key != "conversations"}
