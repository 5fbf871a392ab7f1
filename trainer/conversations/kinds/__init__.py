"""The kinds of conversations: one small function for each kind of text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shards.sample import dicts
from trainer.conversations.conversation import Conversation
from trainer.conversations.kinds.chat import chat
from trainer.conversations.kinds.describe import describe
from trainer.conversations.kinds.grounded_caption import grounded_caption
from trainer.conversations.kinds.regions import regions
from trainer.conversations.kinds.segment import referring, segment
from trainer.conversations.visit import Visit

Kind = Callable[[Visit], list[Conversation]]

KINDS: Mapping[str, Kind] = {
    "segment": segment,
    "referring": referring,
    "grounded_caption": grounded_caption,
    "regions": regions,
    "describe": describe,
    "chat": chat,
}


def first_kind(meta: Mapping[str, Any]) -> str:
    """Return the first kind for which a sample's JSON has texts; `referring` where it has none."""
    if meta.get("turns"):
        return "chat"
    if any(dicts(item.get("phrases")) for item in dicts(meta.get("captions"))):
        return "grounded_caption"
    if dicts(meta.get("records")):
        return "regions"
    return "referring"
