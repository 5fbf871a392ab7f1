"""Objective segment: text -> mask, supervised."""

from __future__ import annotations

from typing import ClassVar

from trainer.objectives.conversation import ConversationObjective


class Segment(ConversationObjective):
    """The masks of objects of a sample, asked for with one text of each."""

    conversation_kind = "segment"
    needs = "texts"
    loss_weights: ClassVar = {"bce": "lambda_mask", "dice": "lambda_dice", "lang": "lambda_lang"}
