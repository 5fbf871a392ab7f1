"""Objective converse: any text of a sample as a conversation, supervised."""

from __future__ import annotations

from typing import ClassVar

from trainer.objectives.conversation import ConversationObjective


class Converse(ConversationObjective):
    """The answers of all kinds of conversations, and the masks that they ask for."""

    needs = "letters"
    loss_weights: ClassVar = {"bce": "lambda_mask", "dice": "lambda_dice", "lang": "lambda_lang"}
