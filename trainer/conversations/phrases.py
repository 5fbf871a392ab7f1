"""Phrases that a sample can be asked for, and phrases of other samples that do not fit it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from shards.sample import dicts, says_something, usable_texts
from trainer.conversations.visit import Visit
from trainer.data.object_texts import ObjectTexts

UNKNOWN = "expressions of unknown objects"
WITHOUT_TEXT = "expressions without a text"
NOT_CHOSEN = "expressions of objects that the condition leaves out"
NO_TARGET_LEFT_OUT = "phrases of no object left out"
_TRIES = 8
"""Phrases of other samples that are drawn until one does not fit."""
_ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class Phrase:
    """A text that asks for objects."""

    text: str
    objects: tuple[int, ...]
    """Numbers of the objects, from 0; none where it means nothing in the sample."""
    is_sentence: bool = False
    """Whether the dataset says that it is a sentence, not a name."""


def phrases_of(
    meta: Mapping[str, Any], chosen: Collection[int] | None = None, texts: ObjectTexts | None = None
) -> list[str]:
    """Return the texts of a sample's JSON that refer to its objects: its expressions, or else the objects' texts.

    Args:
        chosen: the numbers of the objects that count; None: all.
        texts: their texts; None: those in the JSON.
    """
    objects = meta.get("objects", ())
    numbers = range(len(objects)) if chosen is None else chosen
    if has_expressions(meta) and (texts is None or texts.with_source):
        hidden = {objects[number]["id"] for number in {*range(len(objects))} - {*numbers}}
        said = (item for item in _expressions(meta) if item.get("objects") and says_something(item.get("text")))
        found = [item["text"] for item in said if not any(name in hidden for name in dict.fromkeys(item["objects"]))]
        return found + [text for number in numbers for text in (texts.joined(number) if texts else ())]
    return [
        t for number in numbers for t in (texts.of(number, objects[number]) if texts else usable_texts(objects[number]))
    ]


def has_expressions(meta: Mapping[str, Any]) -> bool:
    """Whether a sample states expressions; then only they are asked for."""
    return isinstance(meta.get("expressions"), list) and bool(meta["expressions"])


def candidates(visit: Visit) -> list[list[Phrase]]:
    """Return the phrases that can be asked for, in groups of which each is as likely to be drawn.

    Each expression is a group, or else the texts of each object are one. Expressions that cannot be used are counted.
    Beside expressions, the texts of each object that the source does not give are a group too; where the source's texts
    do not count, neither do expressions.
    """
    meta = visit.sample.meta
    texts = visit.sample.object_texts
    if not has_expressions(meta) or (texts is not None and not texts.with_source):
        return _groups(visit, visit.sample.texts)
    found = []
    for item in _expressions(meta):
        objects = visit.sample.numbers(item.get("objects"))
        if not says_something(item.get("text")):
            visit.notes[WITHOUT_TEXT] += 1
        elif objects is None:
            visit.notes[UNKNOWN] += 1
        elif not visit.sample.all_chosen(objects):
            visit.notes[NOT_CHOSEN] += 1
        elif not objects and visit.options.no_target == "left_out":
            visit.notes[NO_TARGET_LEFT_OUT] += 1
        else:
            found.append([Phrase(item["text"], objects, item.get("is_sentence") is True)])
    return found if texts is None else found + _groups(visit, visit.sample.joined_texts)


def _groups(visit: Visit, texts_of: Callable[[int], list[str]]) -> list[list[Phrase]]:
    """Return the texts of each object that has some, as a group each."""
    sample = visit.sample
    return [
        [Phrase(text, (number,), sample.is_sentence(number, text)) for text in texts]
        for number in sample.objects
        if (texts := texts_of(number))
    ]


def _expressions(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [item if isinstance(item, dict) else {} for item in meta["expressions"]]


def draw_other(visit: Visit) -> Phrase | None:
    """Draw a phrase of another sample that does not fit this one; None where none of a few does."""
    here: list[str] | None = None
    for _ in range(_TRIES):
        text = visit.other_phrase(visit.draws)
        if text is None:
            return None
        if here is None:
            joined = (text for number in visit.sample.objects for text in visit.sample.joined_texts(number))
            here = [words_of(one) for one in chain(texts_of(visit.sample.meta), _named([*joined]))]
        if not fits(text, here):
            return Phrase(text, ())
    return None


def fits(phrase: str, here: Sequence[str]) -> bool:
    """Whether a phrase may fit a sample with the texts `here`, each as `words_of` returns it.

    It may if its words stand in one of the texts, or one of the texts stands in it: "the red car on the left" where
    there is a "red car". Upper case, articles, a final "s" and punctuation do not count.
    """
    words = words_of(phrase)
    return not words.strip() or any(words in text or text in words for text in here)


def words_of(text: str) -> str:
    """Return the words of a text in lower case without articles and a final "s", a space around each."""
    words = [word.removesuffix("s") for word in re.findall(r"\w+", text.lower()) if word not in _ARTICLES]
    return f" {' '.join(words)} " if words else " "


def texts_of(meta: Mapping[str, Any]) -> Iterator[str]:
    """Yield all texts of a sample that may name what it shows: those with a word besides articles."""
    for item in meta.get("objects", ()):
        yield from _named(usable_texts(item))
        yield from _named([item.get("category")])
    for name in ("expressions", "captions"):
        for item in dicts(meta.get(name)):
            yield from _named([item.get("text")])


def _named(texts: Sequence[Any]) -> Iterator[str]:
    return (text for text in texts if isinstance(text, str) and words_of(text).strip())
