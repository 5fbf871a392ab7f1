"""Panels of conversations: which letters belong to which mask, and which picture and mask belong to a row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conversations import CONVERSATIONS, conversation_batch
from trainer.data.batch import PairBatch
from trainer.measure.panels import panels, turns_of
from trainer.objectives.conversation_judging import judge_conversations


def coloured(talk: int) -> list[tuple[str, int]]:
    return [
        (span.text, span.number)
        for question, answer in turns_of(CONVERSATIONS[talk])
        for span in (*question, *answer)
        if span.number is not None
    ]


def test_phrases_and_regions_have_the_number_of_their_mask_or_place():
    assert coloured(0) == [("the left eye", 0), ("[SEG] 1", 0), ("the zebra", 1), ("[SEG] 2", 1)]
    assert coloured(6) == [(" a helmet ", 0), ("[SEG] 1", 0)]
    assert coloured(4) == [("[1]", 0), ("[2]", 1)]
    assert coloured(1) == coloured(2) == coloured(3) == []
    question, answer = turns_of(CONVERSATIONS[6])[0]
    assert "".join(span.text for span in question) == "Describe the picture."
    assert "".join(span.text for span in answer) == "A man in  a helmet  [SEG] 1."


@torch.no_grad()
def test_panels_show_the_pictures_and_masks_of_their_rows(make_loop, batch: PairBatch):
    step = make_loop().eval()
    whole = conversation_batch(batch, step.model.prompts)
    judged = judge_conversations(step.passes, whole)
    shown = [*panels(whole, judged, "converse")]
    assert [panel.kind for panel in shown] == [talk.kind for talk in CONVERSATIONS]
    assert [panel.generated for panel in shown] == judged.captions
    video = shown[0]
    assert [len(video.truth), len(video.truth[0]), len(video.frames)] == [2, 2, 2]
    for frame in (0, 1):
        truth = batch.frames[frame].masks[0].numpy()
        assert np.array_equal(video.truth[frame][0], truth[2::4, 2::4]) and not video.truth[frame][1].any()
        for target in (0, 1):
            logits = judged.logits[2 * frame + target].numpy()
            assert np.array_equal(video.prediction[frame][target], logits > 0)
        # Both are the same raw picture, at 448 and at 1024 pixels per side.
        other = batch.frames[frame].g_pixel_values[0].permute(1, 2, 0).numpy()[2::4, 2::4]
        assert np.abs(video.frames[frame].astype(int) - other).mean() < 12
    assert video.values["video_iou"] == pytest.approx(judged.values["video_iou"][0].item())
    assert not shown[2].frames and not shown[2].truth and shown[2].strips() == []
    cells = batch.frames[0].prompt_masks[0].numpy()
    assert [np.array_equal(region[8::16, 8::16], cells) for region in shown[4].regions] == [True, True]
    assert [name for name, _ in shown[4].strips()] == ["regions"]
    assert [name for name, _ in video.strips()] == ["frames", "true masks", "predicted masks"]
