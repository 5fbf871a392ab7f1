"""Grounded answers as plain text and phrases: `<p>phrase</p> [SEG]` says what a mask shows."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass

_SEG = "[SEG]"
_PHRASE = re.compile(r"<p>(.*?)</p>(?:[\s,]*\[SEG\])*|\[SEG\]", re.DOTALL)
_MARKS = re.compile(r"[^\S\n]*(?:(?:</?p>|</?vp>|\[SEG\])[^\S\n]*)+")
_CLOSING = ("", "\n", *".,;:!?)")
"""Texts without a blank in front of them; "" is the end of the text."""


@dataclass(frozen=True)
class PhraseSpan:
    """A phrase of a text with the masks that it names, or a `[SEG]` without a phrase."""

    start: int
    """`text[start:end]` is the phrase. Empty for a `[SEG]` without one."""
    end: int
    masks: range
    """Numbers of its `[SEG]`s among all of the answer, from 0. Empty for a phrase without one."""
    tagged: bool
    """Whether there is a phrase."""


def phrase_spans(answer: str) -> list[PhraseSpan]:
    """Return the phrases of an answer, and its `[SEG]`s without a phrase, in their order.

    A phrase ends at the first `</p>` after its `<p>`. The `[SEG]`s that follow it, with nothing but blanks and commas
    between, are its own; so are those inside it. A `<p>` that nothing closes, and a `</p>` that nothing opened, are no
    phrases.

    >>> [(span.tagged, span.masks) for span in phrase_spans("[SEG] <p>two cats</p> [SEG], [SEG] on <p>a mat</p>")]
    [(False, range(0, 1)), (True, range(1, 3)), (True, range(3, 3))]
    """
    spans = []
    number = 0
    for match in _PHRASE.finditer(answer):
        masks = range(number, number + match[0].count(_SEG))
        number = masks.stop
        tagged = match[1] is not None
        start, end = match.span(1) if tagged else (match.start(), match.start())
        spans.append(PhraseSpan(start, end, masks, tagged))
    return spans


def without_marks(answer: str) -> tuple[str, list[PhraseSpan]]:
    """Return an answer without marks, and its phrases at their places in this text, without the blanks around them.

    Of the blanks around marks one is kept; none at the ends of a line, nor in front of a full stop and the like. All
    else is as it was.

    >>> without_marks("<p> A cat </p> [SEG] sits on <p>the mat</p> [SEG].")[0]
    'A cat sits on the mat.'
    """
    kept: list[int] = []  # places in the answer of the characters that stay
    end = 0
    for match in _MARKS.finditer(answer):
        kept += range(end, match.start())
        end = match.end()
        blanks = [i for i in range(*match.span()) if answer[i].isspace()]
        begins = match.start() == 0 or answer[match.start() - 1] == "\n"
        if not begins and answer[end : end + 1] not in _CLOSING:
            kept += blanks[:1]
    kept += range(end, len(answer))
    plain = "".join(answer[i] for i in kept)
    spans = []
    for span in phrase_spans(answer):
        start, end = (bisect_left(kept, place) for place in (span.start, span.end))
        while start < end and plain[start].isspace():
            start += 1
        while start < end and plain[end - 1].isspace():
            end -= 1
        spans.append(PhraseSpan(start, end, span.masks, span.tagged))
    return plain, spans
