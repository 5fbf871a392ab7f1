"""A conversation: the turns of one row of the language model, with the pictures, regions and masks that they name."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Mark(Enum):
    """A place in a text that is not letters. A mark becomes tokens that no text of a dataset can become."""

    PICTURES = "<image>"
    """The places of the row's pictures, one string of them per frame; once, in the first question."""
    SEG = "[SEG]"
    """Asks for a mask: the next of the conversation's `targets`."""
    PHRASE_START = "<p>"
    PHRASE_END = "</p>"
    REGION = "<vp>"
    """The places of the next of the conversation's `regions`, with `<vp>` and `</vp>` around them."""


Text = tuple[str | Mark, ...]
"""A question or an answer: letters and marks in order. Letters that look like a mark stay letters."""


@dataclass(frozen=True)
class Turn:
    """A question and its answer, which is trained."""

    question: Text
    answer: Text


@dataclass(frozen=True)
class Target:
    """What one `[SEG]` must produce in each frame of its row."""

    objects: tuple[int, ...]
    """Numbers of objects in the sample, from 0: the mask is their union. None: the mask is empty in all frames."""
    phrase: str
    """The text that asks for it, for pictures and messages."""


@dataclass(frozen=True)
class Conversation:
    """One row of the language model, before it is tokenised."""

    kind: str
    """Name of the function that made it, in `trainer.conversations.kinds.KINDS`."""
    turns: tuple[Turn, ...]
    """At least one."""
    frames: tuple[int, ...] = ()
    """Numbers of the sample's frames that the row shows, from 0 and never falling. A frame may be there twice. Empty:
    a text without a picture."""
    targets: tuple[Target, ...] = ()
    """One per `Mark.SEG` of all turns, in their order."""
    regions: tuple[int, ...] = ()
    """One number of an object per `Mark.REGION` of all turns, in their order; its cells are those of the last frame."""
