"""Make conversations of a sample."""

from __future__ import annotations

from collections import Counter
from random import Random

from shards.errors import UserError
from trainer.conversations.conversation import Conversation
from trainer.conversations.kinds import KINDS, first_kind
from trainer.conversations.options import ConversationOptions
from trainer.conversations.sample import SampleTexts
from trainer.conversations.visit import OtherPhrase, Visit
from trainer.data.choice import salt_of

NOTHING = "samples without a conversation of kind "


def make_conversations(
    sample: SampleTexts,
    options: ConversationOptions,
    *,
    epoch: int,
    visit: int,
    copy: int,
    other_phrase: OtherPhrase,
    kind: str | None = None,
) -> tuple[list[Conversation], Counter[str]]:
    """Return the conversations of one visit to a sample, and counts of what they ask for and of what was left out.

    The result depends only on the arguments. There is one conversation as a rule, several for `describe` and with
    `options.one_phrase_per_row`, and none where nothing can be asked.

    Args:
        epoch: from 0; seeds what is drawn.
        visit: how often the sample was visited before, in this epoch and those before it; decides what comes in turn.
        copy: how often it came before in this epoch; seeds what is drawn.
        other_phrase: draws a phrase of another sample of the source.
        kind: key of `KINDS`; None: the one that `options.kinds` gives the source, else the first for which the sample
            has texts.

    Raises:
        UserError: there is no such kind.
    """
    name = kind or options.kinds.get(sample.source) or first_kind(sample.meta)
    if name not in KINDS:
        raise UserError("no such kind of conversation", where="kinds", met=name, wanted=" or ".join(KINDS))
    notes: Counter[str] = Counter()
    draws = Random(salt_of(options.seed, epoch, sample.key, copy))
    conversations = KINDS[name](Visit(sample, options, visit, draws, other_phrase, notes))
    notes[NOTHING + name] += not conversations
    return conversations, +notes
