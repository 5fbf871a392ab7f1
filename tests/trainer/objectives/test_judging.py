"""Metrics compared with scikit-learn's, and judging of objectives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from tests.batches import one_sample
from tests.conversations import about_objects
from trainer.data.batch import Frame, PairBatch
from trainer.model.captioner import Caption
from trainer.objectives import OBJECTIVES, load_objective
from trainer.objectives.judging import other_objects
from trainer.objectives.metrics import mask_metrics

TEXTS = [["The Left eye."], ["a helmet", "the white helmet"]]


@pytest.mark.parametrize("side", [256, 1024])
def test_metrics_equal_scikit_learns(side: int):
    torch.manual_seed(0)
    logits = F.interpolate(torch.randn(3, 1, 16, 16), (256, 256), mode="bicubic")[:, 0]
    masks = F.interpolate(torch.randn(3, 1, 12, 12), (1024, 1024), mode="bicubic")[:, 0] > 0.3
    metrics = mask_metrics(logits, masks, side)
    for n in range(3):
        dense = F.interpolate(logits[n, None, None], (side, side), mode="bilinear", align_corners=False)[0, 0] > 0
        step = 1024 // side
        truth = masks[n, step // 2 :: step, step // 2 :: step].flatten().numpy()
        predicted = dense.flatten().numpy()
        for name, score in (
            ("iou", jaccard_score),
            ("dice", f1_score),
            ("precision", precision_score),
            ("recall", recall_score),
        ):
            assert metrics[name][n].item() == pytest.approx(score(truth, predicted), abs=2e-5), name
        assert metrics["overlap"][n] / metrics["union"][n] == pytest.approx(metrics["iou"][n])


def test_metrics_at_the_edges():
    empty = torch.zeros(1, 1024, 1024, dtype=torch.bool)
    full = torch.ones(1, 1024, 1024, dtype=torch.bool)
    nothing = torch.full((1, 256, 256), -9.0)
    everything = torch.full((1, 256, 256), 9.0)
    cases = [(nothing, empty, 1), (everything, full, 1), (everything, empty, 0), (nothing, full, 0)]
    for logits, masks, expected in cases:
        metrics = mask_metrics(logits, masks)
        assert {metrics[name].item() for name in ("iou", "dice", "precision", "recall")} == {expected}
    assert mask_metrics(nothing[:0], empty[:0])["iou"].shape == (0,)


def two_objects(batch: PairBatch) -> PairBatch:
    """Both objects of the batch as those of the first picture."""
    frames = [
        replace(frame, pixel_values=frame.pixel_values[:1], g_pixel_values=frame.g_pixel_values[:1])
        for frame in batch.frames
    ]
    fields = {"paired": batch.paired[:1], "keys": batch.keys[:1], "texts": TEXTS}
    return replace(batch, frames=tuple(frames), image_of_object=torch.tensor([0, 0]), **fields)


def test_judging_changes_no_state(make_loop, batch: PairBatch):
    loop = make_loop()
    state = torch.get_rng_state()
    judged = loop.judge(batch, "dual")
    assert torch.equal(torch.get_rng_state(), state)
    assert loop.training and loop.model.training
    assert all(not p.requires_grad or p.grad is None for p in loop.parameters())
    assert judged.logits.shape == (2, 256, 256) and not judged.logits.requires_grad
    assert all(0 <= value <= 1 for name in ("iou", "dice") for value in judged.values[name].tolist())
    assert len(judged.captions) == 2


@pytest.mark.parametrize("objective", [n for n in OBJECTIVES if not load_objective(n).reads_conversations])
def test_each_objective_is_judged_on_the_fields_that_it_names(make_loop, batch: PairBatch, objective: str):
    fields = load_objective(objective).judging_fields
    first, second = (
        Frame(**{name: tensor for name, tensor in frame.tensors().items() if f"{name}{k}" in fields})
        for k, frame in enumerate(batch.frames, 1)
    )
    sample = replace(batch, texts=TEXTS, frames=(first, second))
    judged = make_loop().judge(sample, objective)
    assert judged.captions if objective == "dual" else judged.captions == ["The Left eye.", "a helmet"]
    assert "iou" in judged.values and ("caption" in judged.values) == (objective == "reverse")
    assert all(value.shape == (2,) and value.isfinite().all() for value in judged.values.values())


def test_judged_language_loss_equals_that_of_training(make_loop, batch: PairBatch):
    loop = make_loop().eval()
    for objective, loss in (("describe", "caption"), ("segment", "lang")):
        texts = about_objects(batch, loop.model.prompts, objective)
        judged = loop.judge(texts, objective).values[loss].mean().item()
        assert judged == pytest.approx(loop(texts, objective)[loss].item(), rel=1e-5)


def test_the_swap_gap_uses_another_objects_caption(make_loop, batch: PairBatch, monkeypatch: pytest.MonkeyPatch):
    """By hand: the second object's words asked of the first, and the other way round."""
    loop = make_loop().eval()
    two = two_objects(batch)
    passes = loop.passes
    model = loop.model
    captions = [model.prompts.encode(text) for text in ("a cat", "#")]
    monkeypatch.setattr("trainer.objectives.dual.captions_of", lambda *a: [Caption(words, True) for words in captions])
    judged = loop.judge(two, "dual")
    with torch.no_grad():
        rows = [model.prompts.segment("x", words) for words in (captions[1], captions[0])]
        sam_features = model.encode_sam(two.frames[1].g_pixel_values)
        wrong, _ = passes.predict_masks(two, rows, model.encode_image(two.frames[1].pixel_values), sam_features)
    expected = judged.values["iou"] - mask_metrics(wrong, two.frames[1].masks)["iou"]
    assert expected.abs().min() > 1e-6  # random weights hardly listen, but they do
    assert torch.allclose(judged.values["swap_gap"], expected, rtol=0, atol=1e-7)


def test_a_single_object_has_no_swap_gap(make_loop, batch: PairBatch):
    judged = make_loop().judge(one_sample(batch), "dual")
    assert judged.values["swap_gap"].isnan().all() and judged.values["iou"].isfinite().all()


@pytest.mark.parametrize(
    ("images", "expected"),
    [([0, 0, 1, 1], [1, 0, 3, 2]), ([0, 0, 0], [1, 2, 0]), ([0, 1, 2], [1, 2, 0]), ([0, 1, 1], [1, 2, 1]), ([0], [0])],
)
def test_another_object_is_of_the_same_picture_where_there_is_one(images, expected):
    assert other_objects(images) == expected
