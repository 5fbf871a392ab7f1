"""Objective describe: mask -> text, supervised."""

from __future__ import annotations

from typing import ClassVar

from trainer.objectives.conversation import ConversationObjective


class Describe(ConversationObjective):
    """One text of each of a sample's objects, asked for with its region, each in a row of its own."""

    conversation_kind = "describe"
    needs = "texts"
    loss_weights: ClassVar = {"caption": 1.0}
    unreached_parts = ("text_hidden_fcs", "sam_mask_decoder", "sam_image_encoder")
    language_loss = "caption"
    predicts_masks = False
