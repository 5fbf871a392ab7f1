"""Tracking against SAM 2's own `track_step`, which knows no language embeddings: they are put in from outside."""

from __future__ import annotations

import pytest
import torch

from inference.tracking import Tracker
from trainer.model.grounding import GroundingEncoder
from trainer.model.sa2va import build

PROMPTED, FRAMES = 2, 10


@pytest.fixture(scope="module")
def encoder() -> GroundingEncoder:
    """SAM 2 with random weights that always finds its object, chooses among all three masks, and heeds its memory."""
    torch.manual_seed(0)
    encoder = build("tiny").grounding_encoder.eval().requires_grad_(False)
    decoder = encoder.sam2_model.sam_mask_decoder
    torch.nn.init.normal_(decoder.iou_prediction_head.layers[-1].weight)
    decoder.pred_obj_score_head.layers[-1].bias.fill_(1e4)
    torch.nn.init.normal_(encoder.sam2_model.maskmem_tpos_enc)
    for layer in encoder.sam2_model.memory_attention.layers:
        for part in (layer.cross_attn_image.q_proj, layer.cross_attn_image.k_proj, layer.cross_attn_image.out_proj):
            part.weight *= 4
    return encoder


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    """(F, 1, 3, 1024, 1024) uint8: a bright square that moves over noise."""
    frames = torch.randint(0, 90, (FRAMES, 1, 3, 1024, 1024), dtype=torch.uint8)
    for i, frame in enumerate(frames):
        frame[..., 100 + 60 * i : 400 + 60 * i, 300:600] = 250
    return frames


def sam_alone(encoder: GroundingEncoder, video: torch.Tensor, embedding: torch.Tensor, prompted: int) -> torch.Tensor:
    """One object with SAM 2's own methods; positions of cells from a new module."""
    from sam2.modeling.position_encoding import PositionEmbeddingSine

    sam, outputs = encoder.sam2_model, {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    where, logits = PositionEmbeddingSine(sam.hidden_dim, normalize=True), []
    for i, frame in enumerate(video):
        out = sam.forward_image(encoder.normalise(frame))
        out["vision_pos_enc"] = [where(level) for level in out["backbone_fpn"]]
        _, features, positions, sizes = sam._prepare_backbone_features(out)
        is_prompted = i < prompted

        def with_language(module, given, result, on=is_prompted):
            return (torch.cat([result[0], embedding[None, None]], 1), result[1]) if on else None

        hook = sam.sam_prompt_encoder.register_forward_hook(with_language)
        step = sam.track_step(i, is_prompted, features, positions, sizes, None, None, outputs, len(video))
        hook.remove()
        step["maskmem_features"] = step["maskmem_features"].bfloat16()
        outputs["cond_frame_outputs" if is_prompted else "non_cond_frame_outputs"][i] = step
        logits.append(step["pred_masks"][0, 0])
    return torch.stack(logits)


def tracked(encoder: GroundingEncoder, video: torch.Tensor, embeddings: torch.Tensor, prompted: int) -> torch.Tensor:
    """(F, N, 256, 256)."""
    tracker, logits = Tracker(encoder, len(video)), []
    for i, frame in enumerate(video):
        looked = encoder.encode(frame)
        logits.append(tracker.prompt(i, looked, embeddings) if i < prompted else tracker.follow(i, looked))
    return torch.stack(logits)


def test_it_is_sam2s_own_tracking_and_objects_are_as_if_alone(encoder, video):
    embeddings = 3 * torch.randn(2, encoder.width)
    met = tracked(encoder, video, embeddings, PROMPTED)
    wanted = sam_alone(encoder, video, embeddings[1], PROMPTED)
    scale = wanted.abs().max()
    assert torch.allclose(met[:, 1], wanted, atol=1e-3 * scale)
    # What is compared depends on the frame and, where nothing is prompted, on what was.
    assert all((wanted[i] - wanted[i - 1]).abs().max() > 0.05 * scale for i in range(1, FRAMES))
    assert all((met[i, 0] - met[i, 1]).abs().max() > 0.02 * scale for i in range(FRAMES))


def test_an_object_that_is_not_there_moves_the_pointer_and_blanks_nothing(encoder, video):
    bias = encoder.sam2_model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias
    embeddings = torch.randn(1, encoder.width)
    there = tracked(encoder, video[:2], embeddings, 1)
    bias.fill_(-1e4)
    tracker = Tracker(encoder, 2)
    first = tracker.prompt(0, encoder.encode(video[0]), embeddings)
    second = tracker.follow(1, encoder.encode(video[1]))
    bias.fill_(1e4)
    assert torch.equal(first, there[0])
    assert torch.equal(tracker._memory["cond_frame_outputs"][0]["obj_ptr"], encoder.sam2_model.no_obj_ptr)
    assert second.min() > -1000 and not torch.equal(second, there[1])  # another pointer, another mask


def test_memory_is_bfloat16_and_bounded(encoder):
    tracker = Tracker(encoder, 40)
    looked = encoder.encode(torch.zeros(1, 3, 1024, 1024, dtype=torch.uint8))
    tracker.prompt(0, looked, torch.randn(1, encoder.width))
    for i in range(1, 22):
        tracker.follow(i, looked)
    kept = tracker._memory["non_cond_frame_outputs"]
    assert list(kept) == list(range(6, 22))
    assert all(step["maskmem_features"].dtype == torch.bfloat16 for step in kept.values())
