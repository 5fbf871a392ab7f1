"""Kind describe: a region is shown, the answer is a text of its object."""

from __future__ import annotations

from trainer.conversations.conversation import Conversation, Mark, Turn
from trainer.conversations.kinds.segment import text_in_turn
from trainer.conversations.visit import Visit
from trainer.conversations.wording import DESCRIBE
from trainer.data.choice import choose, salt_of

DESCRIPTIONS = "descriptions"


def describe(visit: Visit) -> list[Conversation]:
    """Ask for a text of each of a few objects, in a row of its own and in a frame that shows it.

    Objects are taken in turn, and the texts of each in turn.
    """
    sample = visit.sample
    options = visit.options
    visible = sample.cells > 0
    able = [number for number in sample.objects if visible[:, number].any() and sample.texts(number)]
    if not able:
        return []
    choice = choose(visible, able, options.phrases, salt_of(options.seed, sample.key), visit.number)
    visit.notes[DESCRIPTIONS] += len(choice.objects)
    chosen = zip(choice.objects, choice.turns, strict=True)
    return [description(number, text_in_turn(visit, number, turn), choice.frames[0]) for number, turn in chosen]


def description(number: int, text: str, frame: int) -> Conversation:
    """Ask for a text of object `number`, whose region is shown in a frame."""
    row = (Turn((Mark.PICTURES, *region_names(1), DESCRIBE), (text.strip(),)),)
    return Conversation("describe", row, (frame,), regions=(number,))


def region_names(count: int) -> tuple[str | Mark, ...]:
    """Return the sentence between the picture and the first question that names `count` regions."""
    pieces: list[str | Mark] = []
    for number in range(1, count + 1):
        before = f"\nThere are {count} part regions in the picture: " if number == 1 else ", "
        pieces += [f"{before}region{number}", Mark.REGION]
    return (*pieces, ".\n")
