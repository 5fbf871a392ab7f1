"""Captions and the phrases in them: places in characters, checked against the words that they should hold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

Span = tuple[int, int]
"""(first character, one past the last)."""

UNSHIFTED = "phrases whose place was counted without the caption's quotes"
MENDED = "phrases found beside their stated place"
LOST = "phrases that are not in their caption"
SHARED = "phrases that share one place with another"
OVERLAPPING = "phrases that overlap another"
CUT = "phrases that begin or end inside a word"


def unquoted(caption: str) -> tuple[str, int]:
    """A caption without the quotes and blanks around it, and how many characters were taken from its beginning.

    A quote at one end alone is taken only where it has no partner, so that a caption may end in a quotation.
    """
    text = caption.strip()
    while len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if text.count('"') % 2:
        text = text[1:] if text.startswith('"') else text.removesuffix('"')
    lead = caption.index(text) + len(text) - len(text.lstrip())
    return text.strip(), lead


def places_of(phrase: str, text: str) -> list[Span]:
    """Where whole words of `text` are `phrase`, whatever their case."""
    words = phrase.strip()
    return [match.span() for match in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.I)] if words else []


def place(phrase: str, text: str, lead: int, stated: Span | None, taken: int, notes: Counter[str]) -> Span | None:
    """Where `phrase` stands in the unquoted `text`; None, and counted, where it does not.

    Args:
        lead: characters that were taken from the caption's beginning.
        stated: in the caption with its quotes, or, as some files have it, already without. It is believed where it
            holds the phrase, whatever its case; else the nearest place that does is taken, and counted.
        taken: without a stated place, how many equal phrases came before this one: each gets a place of its own, as
            long as there are.
    """
    for shift in dict.fromkeys((lead, 0)):
        if stated is None:
            break
        start = stated[0] - shift
        end = stated[1] - shift
        if 0 <= start < end <= len(text) and text[start:end].lower() == phrase.strip().lower():
            notes[UNSHIFTED] += shift != lead
            return start, end
    found = places_of(phrase, text)
    if not found:
        notes[LOST] += 1
        return None
    if stated is None:
        return found[min(taken, len(found) - 1)]
    notes[MENDED] += 1
    return min(found, key=lambda one: abs(one[0] - stated[0] - lead))


def rebased(text: str, lead: int, stated: Span, notes: Counter[str]) -> Span | None:
    """A stated place in the unquoted `text` where no phrase is known to check it: the one that cuts no word."""
    spans = [(stated[0] - shift, stated[1] - shift) for shift in dict.fromkeys((lead, 0))]
    fit = [(start, end) for start, end in spans if 0 <= start < end <= len(text)]
    if not fit:
        notes[LOST] += 1
        return None
    whole = [span for span in fit if not _cuts(text, *span)]
    chosen = (whole or fit)[0]
    notes[CUT] += not whole
    notes[UNSHIFTED] += chosen != spans[0]
    return chosen


def phrases(text: str, placed: Iterable[tuple[Span | None, str, str]], notes: Counter[str]) -> list[dict[str, Any]]:
    """Phrases as a sample's JSON holds them, in the order of their places; those without a place come last.

    Args:
        placed: (place, words, id of the object) each. Those of one place are one phrase of several objects.

    Returns:
        `start`, `end`, `text` (the caption's characters from `start` to `end`), `objects` (ids), and `overlaps`: true
        where another phrase has some of its characters. `start` and `end` are None without a place.
    """
    told: dict[Any, dict[str, Any]] = {}
    for span, words, name in placed:
        start, end = span or (None, None)
        said = text[start:end] if span else words
        one = told.setdefault(span or (None, words), {"start": start, "end": end, "text": said, "objects": []})
        notes[SHARED] += span is not None and bool(one["objects"]) and name not in one["objects"]
        if name not in one["objects"]:
            one["objects"].append(name)
    ordered = sorted(told.values(), key=lambda one: (one["start"] is None, one["start"] or 0, one["end"] or 0))
    for one in ordered:
        one["overlaps"] = _overlaps(one, ordered)
        notes[OVERLAPPING] += one["overlaps"]
    return ordered


def _overlaps(one: dict[str, Any], others: Sequence[dict[str, Any]]) -> bool:
    if one["start"] is None:
        return False
    located = (other for other in others if other is not one and other["start"] is not None)
    return any(other["start"] < one["end"] and one["start"] < other["end"] for other in located)


def _cuts(text: str, start: int, end: int) -> bool:
    """Whether a word is cut, or a blank is at an end."""
    before = start > 0 and text[start - 1].isalnum() and text[start].isalnum()
    after = end < len(text) and text[end - 1].isalnum() and text[end].isalnum()
    return before or after or text[start].isspace() or text[end - 1].isspace()
