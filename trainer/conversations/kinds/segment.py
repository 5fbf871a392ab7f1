"""Kinds segment and referring: a phrase is asked for, the answer gives its mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.conversations.conversation import Conversation, Mark, Target, Text, Turn
from trainer.conversations.frames import draw_frames
from trainer.conversations.phrases import Phrase, candidates, draw_other
from trainer.conversations.visit import Visit
from trainer.conversations.wording import ANSWERS, QUESTIONS, REFUSALS, WITH_A_MASK, normalise_phrase
from trainer.data.choice import choose, salt_of, shuffled, take_in_turn

PHRASES = "phrases"
SEVERAL = "phrases of several objects"
NO_TARGET = "phrases of no object"
NEGATIVES = "phrases of other samples"
_AS_THEY_STAND = {"ref-sav"}
"""Sources whose phrases Sa2VA's training leaves as they are."""
_NEVER_QUESTIONS = {"refcoco", "refcoco+", "refcocog", "grefcoco"}
"""Sources in whose phrases "?" is a doubt: "left guy?"."""


def referring(visit: Visit) -> list[Conversation]:
    """Ask for phrases of a sample, of one, several or no objects; some are replaced by phrases of other samples."""
    options = visit.options
    groups = candidates(visit)
    if not groups or not visit.sample.frames:
        return []
    if options.with_replacement:
        chosen = [visit.draws.choice(visit.draws.choice(groups)) for _ in range(options.phrases)]
    else:
        phrases = [phrase for group in groups for phrase in group]
        order = shuffled(range(len(phrases)), salt_of(options.seed, visit.sample.key))
        chosen = [phrases[number] for number, _ in take_in_turn(order, options.phrases, visit.number)]
        visit.draws.shuffle(chosen)
    for at, phrase in enumerate(chosen):
        other = draw_other(visit) if visit.draws.random() < options.negatives else None
        chosen[at] = other or phrase
        visit.notes[NEGATIVES] += other is not None
    return ask_for("referring", visit, chosen, draw_frames(visit, [n for one in chosen for n in one.objects]))


def segment(visit: Visit) -> list[Conversation]:
    """Ask for one text of each of a few objects: objects in turn, and the texts of each in turn."""
    sample = visit.sample
    options = visit.options
    visible = sample.cells > 0
    shown: list[bool] = np.any(visible, axis=0).tolist()
    able = [number for number in sample.objects if shown[number] and sample.texts(number)]
    if not able:
        return []
    choice = choose(visible, able, options.phrases, salt_of(options.seed, sample.key), visit.number)
    phrases = []
    for number, turn in zip(choice.objects, choice.turns, strict=True):
        text = text_in_turn(visit, number, turn)
        phrases.append(Phrase(text, (number,), sample.is_sentence(number, text)))
    frames = choice.frames[:1] if options.frames == 1 else draw_frames(visit, choice.objects)
    return ask_for("segment", visit, phrases, frames)


def text_in_turn(visit: Visit, number: int, turn: int) -> str:
    """Return a text of object `number`, which was taken `turn` times before: each text comes before one comes twice."""
    texts = visit.sample.texts(number)
    order = shuffled(range(len(texts)), salt_of(visit.options.seed, visit.sample.key, number))
    return texts[order[turn % len(order)]]


def ask_for(kind: str, visit: Visit, phrases: Sequence[Phrase], frames: tuple[int, ...]) -> list[Conversation]:
    """Return a row with a turn for each phrase, or one row each, and count the phrases."""
    turns = []
    targets = []
    for number, phrase in enumerate(phrases):
        first = number == 0 or visit.options.one_phrase_per_row
        question = question_for(visit, phrase, first)
        answer, target = answer_for(visit, phrase)
        turns.append(Turn((Mark.PICTURES, "\n" + question) if first else (question,), answer))
        targets.append(target)
        visit.notes[PHRASES] += 1
        visit.notes[SEVERAL] += len(phrase.objects) > 1
        visit.notes[NO_TARGET] += not phrase.objects
    if visit.options.one_phrase_per_row:
        return [Conversation(kind, (turn,), frames, target) for turn, target in zip(turns, targets, strict=True)]
    return [Conversation(kind, tuple(turns), frames, tuple(one for target in targets for one in target))]


def question_for(visit: Visit, phrase: Phrase, first: bool) -> str:
    """Return the question for a phrase; one that is a question is asked as it stands.

    Sa2VA's training removes each full stop from the phrases of videos, and one final full stop from those of pictures.
    """
    text = phrase.text
    source = visit.sample.source
    is_video = visit.sample.frames > 1
    if source in _AS_THEY_STAND:
        return visit.wording(QUESTIONS).format(phrase=text)
    if is_video and "?" in text:
        return text.rstrip() if first else text
    if not is_video and source not in _NEVER_QUESTIONS and text.strip().endswith("?"):
        return text.strip()
    if phrase.is_sentence:
        return text.strip() + WITH_A_MASK
    name = text.replace(".", "").strip().lower() if is_video else normalise_phrase(text)
    return visit.wording(QUESTIONS).format(phrase=name)


def answer_for(visit: Visit, phrase: Phrase) -> tuple[Text, tuple[Target, ...]]:
    """Return the answer to a phrase, and its target where the answer has a mask."""
    if not phrase.objects and visit.options.no_target != "empty_mask":
        return (visit.wording(REFUSALS),), ()
    before, after = visit.wording(ANSWERS).split("[SEG]")
    answer: Text = (before, Mark.SEG, after) if before else (Mark.SEG, after)
    return answer, (Target(phrase.objects, phrase.text),)
