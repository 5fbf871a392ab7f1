"""Locate phrases in captions. Spans count characters, and are checked against the phrase's words."""

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


def strip_quotes(caption: str) -> tuple[str, int]:
    """Return a caption without the quotes and blanks around it, and the number of characters removed at its start.

    A quote at one end alone is removed only where it has no partner, so that a caption may end in a quotation.
    """
    text = caption.strip()
    while len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if text.count('"') % 2:
        text = text[1:] if text.startswith('"') else text.removesuffix('"')
    lead = caption.index(text) + len(text) - len(text.lstrip())
    return text.strip(), lead


def find_phrase(phrase: str, text: str) -> list[Span]:
    """Return the spans where whole words of `text` are `phrase`, in any case."""
    words = phrase.strip()
    return [match.span() for match in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.I)] if words else []


def locate_phrase(
    phrase: str, text: str, lead: int, stated: Span | None, taken: int, notes: Counter[str]
) -> Span | None:
    """Return the span of `phrase` in `text`, a caption without its quotes; None, and counted, where there is none.

    Args:
        lead: number of characters that were removed at the caption's start.
        stated: span in the caption with its quotes or, in some files, without. It is used where it holds the phrase, in
            any case; else the nearest span that does, and counted.
        taken: number of equal phrases before this one. Without a stated span each gets the next one that is left.
    """
    for shift in dict.fromkeys((lead, 0)):
        if stated is None:
            break
        start = stated[0] - shift
        end = stated[1] - shift
        if 0 <= start < end <= len(text) and text[start:end].lower() == phrase.strip().lower():
            notes[UNSHIFTED] += shift != lead
            return start, end
    found = find_phrase(phrase, text)
    if not found:
        notes[LOST] += 1
        return None
    if stated is None:
        return found[min(taken, len(found) - 1)]
    notes[MENDED] += 1
    start = stated[0] - lead
    return min(found, key=lambda span: abs(span[0] - start))


def shift_span(text: str, lead: int, stated: Span, notes: Counter[str]) -> Span | None:
    """Return a stated span in `text`, a caption without its quotes, where no phrase is known to check it.

    It may count the quotes or not: the one that cuts no word is chosen. None, and counted, where neither fits.
    """
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


def merge_phrases(
    text: str, placed: Iterable[tuple[Span | None, str, str]], notes: Counter[str]
) -> list[dict[str, Any]]:
    """Return the phrases for a sample's JSON, in the order of their spans; those without a span come last.

    Args:
        placed: (span, words, id of the object) each. Those of one span are one phrase of several objects.

    Returns:
        `start`, `end`, `text` (the caption's characters from `start` to `end`), `objects` (ids), and `overlaps`: true
        where another phrase has some of its characters. `start` and `end` are None without a span.
    """
    merged: dict[Any, dict[str, Any]] = {}
    for span, words, name in placed:
        start, end = span or (None, None)
        words_here = text[start:end] if span else words
        one = merged.setdefault(span or (None, words), {"start": start, "end": end, "text": words_here, "objects": []})
        notes[SHARED] += span is not None and bool(one["objects"]) and name not in one["objects"]
        if name not in one["objects"]:
            one["objects"].append(name)
    ordered = sorted(merged.values(), key=lambda one: (one["start"] is None, one["start"] or 0, one["end"] or 0))
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
