"""Judging of conversations, compared with each row by itself and with numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.conversations import CONVERSATIONS, conversation_batch
from trainer.model.generation import Answers
from trainer.objectives.conversation_judging import judge_conversations
from trainer.objectives.judging import Judged


@pytest.fixture
def passes(make_loop):
    return make_loop().eval().passes


@torch.no_grad()
def judge(passes, batch, side: int = 256) -> Judged:
    return judge_conversations(passes, batch, side)


def test_masks_and_language_equal_those_of_each_row_alone(passes, batch):
    """The model reads one row at a time; areas are counted by numpy, losses taken by PyTorch."""
    whole = conversation_batch(batch, passes.model.prompts)
    judged = judge(passes, whole)
    assert {name: len(value) for name, value in judged.values.items() if name in ("iou", "video_iou", "lang")} == {
        "iou": 5,
        "video_iou": 3,
        "lang": len(CONVERSATIONS),
    }
    model = passes.model
    overlaps = {}
    unions = {}
    ious = []
    empty_right = []
    for logits, mask, seg in zip(judged.logits.numpy(), whole.masks.numpy(), whole.seg_of_mask.tolist(), strict=True):
        found = logits > 0
        truth = mask[2::4, 2::4]
        both = int((found & truth).sum())
        either = int((found | truth).sum())
        overlaps[seg] = overlaps.get(seg, 0) + both
        unions[seg] = unions.get(seg, 0) + either
        ious.append(both / either if truth.any() else np.nan)
        empty_right.append(np.nan if truth.any() else float(not found.any()))
    assert np.allclose(judged.values["iou"], ious, rtol=0, atol=1e-6, equal_nan=True)
    assert np.allclose(judged.values["empty_right"], empty_right, equal_nan=True)
    expected = [overlaps[0] / unions[0], np.nan, np.nan]  # of no object; of one frame
    assert np.allclose(judged.values["video_iou"], expected, rtol=0, atol=1e-6, equal_nan=True)
    assert judged.rows["iou"].tolist() == [0, 0, 0, 0, 6] and judged.rows["video_iou"].tolist() == [0, 0, 6]
    for number, talk in enumerate(CONVERSATIONS):
        alone = conversation_batch(batch, model.prompts, (number,))
        row = alone.rows[0]
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            embeddings = model.embedding(ids)
            if talk.frames:
                tokens = model.mlp1(model.encode_image(alone.pixel_values))
                parts = [tokens.flatten(0, 1), *(tokens[-1][cells.flatten()] for cells in alone.regions[0])]
                embeddings[ids == model.prompts.context] = torch.cat(parts)
            logits = model.language_model(inputs_embeds=embeddings).logits[0]
        loss = F.cross_entropy(logits[:-1], torch.tensor(row.labels[1:]), ignore_index=-100)
        known, unknown = ("caption", "lang") if talk.kind == "describe" else ("lang", "caption")
        assert judged.values[known][number].item() == pytest.approx(loss.item(), rel=1e-4), talk.kind
        assert judged.values[unknown][number].isnan()
        if talk.targets:
            judged_alone = judge(passes, alone)
            rows = judged.rows["iou"] == number
            assert torch.allclose(judged.logits[rows], judged_alone.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("says_seg", [True, False])
def test_shares_of_generated_answers(passes, batch, monkeypatch: pytest.MonkeyPatch, says_seg: bool):
    """The model is asked the first question alone, with its pictures and regions; here it always answers the same."""
    prompts = passes.model.prompts
    whole = conversation_batch(batch, prompts)
    said = [prompts.seg if says_seg else prompts.encode("x")[0], *prompts.end_ids]

    def generated(model, rows, embeddings, max_tokens, pick, ended, any_process):
        assert max_tokens == passes.config.eval.answer_tokens and embeddings.shape[:2] == rows.ids.shape
        for number, (ids, attention) in enumerate(zip(rows.ids, rows.attention, strict=True)):
            talk = CONVERSATIONS[number]
            text = prompts.decode(ids[attention.bool()].tolist())
            assert text.endswith(prompts.template.after) and text.count("<img>") == len(talk.frames)
            assert text.count("<vp>") == min(1, len(talk.regions))
        ids = torch.tensor([said] * len(rows.names))
        return Answers(ids, torch.ones_like(ids, dtype=torch.bool), embeddings[:0, 0], ids[:0, 0])

    monkeypatch.setattr("trainer.objectives.conversation_judging.generate", generated)
    judged = judge(passes, whole)
    expected = {
        "seg_asked": {0: says_seg, 6: says_seg},
        "seg_unasked": {1: says_seg, 2: says_seg, 4: says_seg, 5: says_seg},
        "refused_wrong": {0: not says_seg},
        "refused_right": {3: not says_seg},
    }
    for name, of_rows in expected.items():
        values = judged.values[name].tolist()
        assert {row: value for row, value in enumerate(values) if value == value} == of_rows, name
    assert judged.captions == ["[SEG]" if says_seg else "x"] * len(CONVERSATIONS)


@pytest.mark.parametrize("chosen", [(), (2,), (1, 2), (0,)])
def test_batches_without_pictures_or_masks_are_judged_too(passes, batch, chosen: tuple[int, ...]):
    whole = judge(passes, conversation_batch(batch, passes.model.prompts))
    some = judge(passes, conversation_batch(batch, passes.model.prompts, chosen))
    assert some.values.keys() == whole.values.keys()
    assert torch.allclose(some.values["lang"], whole.values["lang"][[*chosen]], rtol=1e-4)
    assert some.captions == [whole.captions[number] for number in chosen]


def test_a_picture_of_several_rows_is_encoded_once(passes, batch, monkeypatch: pytest.MonkeyPatch):
    prompts = passes.model.prompts
    encoded = []
    encode = passes.model.encode_sam
    monkeypatch.setattr(passes.model, "encode_sam", lambda pictures: encoded.append(len(pictures)) or encode(pictures))
    chosen = (6, 0, 1, 6, 0)
    judged = judge(passes, conversation_batch(batch, prompts, chosen))
    assert encoded == [3]
    for row, number in enumerate(chosen):
        alone = judge(passes, conversation_batch(batch, prompts, (number,)))
        assert torch.allclose(judged.logits[judged.rows["iou"] == row], alone.logits, rtol=0, atol=1e-4)
