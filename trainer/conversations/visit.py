"""One visit to a sample: what conversations are made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from trainer.conversations.options import ConversationOptions
from trainer.conversations.sample import SampleTexts

OtherPhrase = Callable[[Random], str | None]
"""Draws a phrase of another sample of the source; None where there is none."""


@dataclass(frozen=True)
class Visit:
    """One visit to a sample."""

    sample: SampleTexts
    options: ConversationOptions
    number: int
    """How often the sample was visited before, in this epoch and those before it."""
    draws: Random
    """Seeded for this visit."""
    other_phrase: OtherPhrase
    notes: Counter[str]
    """Counts of what was made and of what was left out."""

    def wording(self, texts: Sequence[str]) -> str:
        """Draw one of `texts`, or take the first where the wording is fixed."""
        return self.draws.choice(texts) if self.options.vary_wording else texts[0]
