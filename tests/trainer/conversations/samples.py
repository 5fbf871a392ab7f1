"""Samples of texts, and conversations written as texts, for the tests of this folder."""

from collections import Counter

import numpy as np

from trainer.conversations.conversation import Conversation, Mark
from trainer.conversations.make import make_conversations
from trainer.conversations.options import ConversationOptions
from trainer.conversations.sample import SampleTexts


def sample(meta: dict, frames: int = 1, source: str = "folder", key: str = "key", cells=None) -> SampleTexts:
    """Return a sample whose objects are visible in all frames unless `cells` says otherwise."""
    meta = {"objects": [], **meta}
    if cells is None:
        cells = np.full((frames, len(meta["objects"])), 9)
    return SampleTexts(key, source, meta, np.asarray(cells))


def objects(*texts: list[str] | str) -> list[dict]:
    """Return objects with ids "a", "b", ... and these texts."""
    lists = [[text] if isinstance(text, str) else text for text in texts]
    return [{"id": chr(ord("a") + number), "texts": one} for number, one in enumerate(lists)]


def make(
    of: SampleTexts, epoch: int = 0, visit: int | None = None, copy: int = 0, other=None, kind=None, **options
) -> tuple[list[Conversation], Counter]:
    """Make the conversations of a visit; `visit` is the epoch where it is not given."""
    number = epoch if visit is None else visit
    chosen = ConversationOptions(**options)
    other_phrase = other or (lambda draws: None)
    return make_conversations(of, chosen, epoch=epoch, visit=number, copy=copy, other_phrase=other_phrase, kind=kind)


def written(conversation: Conversation) -> list[tuple[str, str]]:
    """Return the turns as texts; a mark is written as the official code writes it, between angle quotes."""

    def text(pieces) -> str:
        assert all(pieces), "no empty piece"
        return "".join(f"«{piece.value}»" if isinstance(piece, Mark) else piece for piece in pieces)

    return [(text(turn.question), text(turn.answer)) for turn in conversation.turns]


def check(conversation: Conversation, of: SampleTexts) -> None:
    """Check what holds for every conversation."""
    marks = [piece for turn in conversation.turns for piece in (*turn.question, *turn.answer)]
    assert conversation.turns
    assert marks.count(Mark.SEG) == len(conversation.targets)
    assert marks.count(Mark.REGION) == len(conversation.regions)
    assert marks.count(Mark.PHRASE_START) == marks.count(Mark.PHRASE_END)
    assert marks.count(Mark.PICTURES) == bool(conversation.frames)
    assert conversation.turns[0].question.count(Mark.PICTURES) == bool(conversation.frames)
    assert [*conversation.frames] == sorted(conversation.frames)
    assert {*conversation.frames} <= {*range(of.frames)}
    named = {number for target in conversation.targets for number in target.objects} | {*conversation.regions}
    assert named <= {*range(len(of.meta["objects"]))}
    for number in conversation.regions:
        assert of.cells[conversation.frames[-1], number] > 0
