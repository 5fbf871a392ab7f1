"""Kind chat: questions and answers as the dataset wrote them, about a picture, a video, or nothing but words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.conversations.conversation import Conversation, Mark, Text, Turn
from trainer.conversations.frames import draw_one_of_each_part
from trainer.conversations.visit import Visit

TURNS = "turns of chat"


def chat(visit: Visit) -> list[Conversation]:
    """Return the turns of a sample as one row."""
    stored = visit.sample.meta.get("turns")
    if not stored:
        return []
    frames = draw_one_of_each_part(visit)
    turns = [
        Turn(_first_question(item) if number == 0 and frames else _words(item["question"]), _words(item["answer"]))
        for number, item in enumerate(stored)
    ]
    visit.notes[TURNS] += len(turns)
    return [Conversation("chat", tuple(turns), frames)]


def _words(text: str) -> Text:
    return (text,) if text else ()


def _first_question(item: Mapping[str, Any]) -> Text:
    """Return the first question with the pictures at their place, or in front of it on a line of their own."""
    question = item["question"]
    place = item.get("picture")
    if place is None:
        return (Mark.PICTURES, "\n" + question)
    return tuple(piece for piece in (question[:place], Mark.PICTURES, question[place:]) if piece)
