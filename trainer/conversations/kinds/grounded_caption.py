"""Kind grounded_caption: the answer is a caption, and each of its phrases has a mask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shards.sample import dicts, says_something
from trainer.conversations.conversation import Conversation, Mark, Target, Text, Turn
from trainer.conversations.frames import draw_frames
from trainer.conversations.sample import SampleTexts
from trainer.conversations.visit import Visit
from trainer.conversations.wording import GROUNDED_CAPTION_QUESTIONS
from trainer.data.choice import salt_of, shuffled

PHRASES = "phrases of grounded captions"
WITHOUT_PLACE = "phrases of captions without a place in them"
OUTSIDE = "phrases that do not stand at their place in the caption"
UNKNOWN = "phrases of captions whose objects were left out"
NOT_CHOSEN = "phrases of captions of objects that the condition leaves out"
OVERLAPPING = "phrases of captions that overlap another"
SECOND_PLACE = "second places of phrases of captions"
BARE = "captions without a phrase that has a mask"
SHORT = "captions of fewer than 3 words"
_FLICKR = "flickr"
_IN_LOWER_CASE = "RefCOCOg"
"""Begin the names of files that Sa2VA's training treats in their own way."""


@dataclass(frozen=True)
class _Phrase:
    start: int
    end: int
    objects: tuple[int, ...]


def grounded_caption(visit: Visit) -> list[Conversation]:
    """Ask for a caption of the picture with masks; captions come in turn. Other phrases stay in it as plain words."""
    found = []
    for caption in dicts(visit.sample.meta.get("captions")):
        text = caption.get("text")
        if not isinstance(text, str) or not says_something(text):
            visit.notes[BARE] += 1
            continue
        phrases, notes = _phrases(caption, visit.sample)
        if str(caption.get("file")).startswith(_FLICKR) and len(text.split(" ")) < 3:
            visit.notes[SHORT] += 1
        elif phrases:
            found.append((caption, phrases, notes))
        else:
            visit.notes.update({**notes, BARE: 1})
    if not found or not visit.sample.frames:
        return []
    order = shuffled(range(len(found)), salt_of(visit.options.seed, visit.sample.key))
    caption, phrases, notes = found[order[visit.number % len(order)]]
    visit.notes.update({**notes, PHRASES: len(phrases)})
    text = caption["text"]
    if str(caption.get("file")).startswith(_IN_LOWER_CASE):
        text = _lower(text)
    question = visit.wording(GROUNDED_CAPTION_QUESTIONS)
    turn = Turn((Mark.PICTURES, "\n" + question), _answer(text, phrases))
    targets = tuple(Target(phrase.objects, text[phrase.start : phrase.end]) for phrase in phrases)
    frames = draw_frames(visit, [number for phrase in phrases for number in phrase.objects])
    return [Conversation("grounded_caption", (turn,), frames, targets)]


def _phrases(caption: Mapping[str, Any], sample: SampleTexts) -> tuple[list[_Phrase], Counter[str]]:
    """Return the phrases of a caption that get a mask, in the order of their places, and counts of the others."""
    notes: Counter[str] = Counter()
    text = caption["text"]
    usable = []
    for item in dicts(caption.get("phrases")):
        start = item.get("start")
        end = item.get("end")
        objects = sample.numbers(item.get("objects"))
        if not isinstance(start, int) or not isinstance(end, int):
            notes[WITHOUT_PLACE] += 1
        elif not 0 <= start < end <= len(text) or item.get("text", text[start:end]) != text[start:end]:
            notes[OUTSIDE] += 1
        elif not objects:
            notes[UNKNOWN] += 1
        elif not sample.all_chosen(objects):
            notes[NOT_CHOSEN] += 1
        elif str(caption.get("file")).startswith(_FLICKR) and not _is_first_place(start, caption, objects, sample):
            notes[SECOND_PLACE] += 1
        else:
            usable.append(_Phrase(start, end, objects))
    kept: list[_Phrase] = []
    for phrase in sorted(usable, key=lambda one: (one.start, -one.end)):
        if kept and phrase.start < kept[-1].end:
            notes[OVERLAPPING] += 1
        else:
            kept.append(phrase)
    return kept, notes


def _is_first_place(start: int, caption: Mapping[str, Any], objects: Iterable[int], sample: SampleTexts) -> bool:
    """Whether a region of Flickr30k states `start` first of its places; only there Sa2VA's training sets marks.

    Places are counted with or without the quotes in front of the caption. A place of which nothing is stated is one.
    """
    record = caption["record"] if isinstance(caption.get("record"), dict) else {}
    lead = max(0, str(record.get("caption", "")).find(caption["text"]))
    firsts = set()
    for number in objects:
        for annotation in dicts(sample.meta["objects"][number].get("annotations")):
            regions = annotation.get("says") if annotation.get("file") == caption.get("file") else ()
            for region in dicts(regions):
                if str(region.get("image_id")) == str(record.get("id")):
                    firsts.add(_first_start(region.get("tokens_positive")))
    return not firsts or start in firsts or start + lead in firsts


def _first_start(spans: Any) -> Any:
    """Return s of [[s, e], ...]; None for any other value."""
    first = spans[0] if isinstance(spans, list) and spans else None
    return first[0] if isinstance(first, list) and first and isinstance(first[0], int) else None


def _answer(text: str, phrases: Iterable[_Phrase]) -> Text:
    """Return a caption with `<p> phrase </p> [SEG]` for each phrase."""
    pieces: list[str | Mark] = []
    end = 0
    for phrase in phrases:
        pieces += [text[end : phrase.start], Mark.PHRASE_START, f" {text[phrase.start : phrase.end]} "]
        pieces += [Mark.PHRASE_END, " ", Mark.SEG]
        end = phrase.end
    pieces = [*pieces, text[end:].rstrip()]
    if isinstance(pieces[0], str):
        pieces[0] = pieces[0].lstrip()
    return tuple(piece for piece in pieces if piece)


def _lower(text: str) -> str:
    """Return `text` in lower case with each character at its place: a few would become two characters."""
    return "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in text)
