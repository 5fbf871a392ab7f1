"""What conversations a training makes of samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from shards.errors import UserError

NoTarget = Literal["refusal", "empty_mask", "left_out"]
"""What an expression of no object trains: an answer in words without `[SEG]`; `[SEG]` with an empty mask in all frames,
as Sa2VA's video sets do; nothing."""


@dataclass(frozen=True)
class ConversationOptions:
    """What conversations are made of a sample."""

    seed: int = 0
    """Of all that is drawn."""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """Kind of conversation by source; of a source that is not named, the first kind for which a sample has a text."""
    phrases: int = 1
    """Phrases of a sample that are asked for, at most."""
    with_replacement: bool = False
    """Draw exactly `phrases` phrases with replacement, as Sa2VA's own training does; else each comes up before one
    comes twice."""
    one_phrase_per_row: bool = False
    """Give each phrase, or each region, a row of its own, as an evaluation does."""
    frames: int = 1
    """Frames that are drawn of a video."""
    no_target: NoTarget = "refusal"
    negatives: float = 0.0
    """Share of the phrases that are replaced by one of another sample, which this sample does not show."""
    vary_wording: bool = True
    """Draw the wording of questions and answers; else take the first one."""
    max_text_tokens: int = 512
    """Tokens of a region's description, at most, where the objective is `describe`."""
    max_row_tokens: int = 8192
    """Tokens of a row, at most; longer ones are cut at their end."""

    def __post_init__(self) -> None:
        if self.negatives and self.no_target == "left_out":
            raise UserError(
                "negatives have no answer",
                where="conversation",
                met=f"negatives {self.negatives}, no_target left_out",
                wanted="no_target refusal or empty_mask",
            )
