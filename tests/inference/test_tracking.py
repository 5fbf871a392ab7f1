"""Tracking against SAM 2's own `track_step`, into which the tests insert language embeddings, and its own predictor."""

from __future__ import annotations

import copy

import pytest
import torch

from inference.tracking import Tracker, frames_seen
from shards.errors import UserError
from tests.models import composed_once  # noqa: F401 (a fixture)
from trainer.model.architecture import tiny_sam
from trainer.model.grounding import GroundingEncoder
from trainer.model.sa2va import build

PROMPTED = (0, 1)
FRAMES = 10


@pytest.fixture(scope="module")
def encoder() -> GroundingEncoder:
    """SAM 2 with random weights that always finds its object, chooses among all three masks, and uses its memory."""
    torch.manual_seed(0)
    encoder = build("tiny").grounding_encoder.eval().requires_grad_(False)
    decoder = encoder.sam2_model.sam_mask_decoder
    torch.nn.init.normal_(decoder.iou_prediction_head.layers[-1].weight)
    decoder.pred_obj_score_head.layers[-1].bias.fill_(1e4)
    torch.nn.init.normal_(encoder.sam2_model.maskmem_tpos_enc)
    torch.nn.init.normal_(encoder.sam2_model.no_obj_ptr, std=20)  # large enough to matter among 4096 cells
    for layer in encoder.sam2_model.memory_attention.layers:
        for part in (layer.cross_attn_image.q_proj, layer.cross_attn_image.k_proj, layer.cross_attn_image.out_proj):
            part.weight *= 3
    return encoder


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    """(F, 1, 3, 1024, 1024) uint8: a bright square that moves over noise."""
    frames = torch.randint(0, 90, (FRAMES, 1, 3, 1024, 1024), dtype=torch.uint8)
    for i, frame in enumerate(frames):
        frame[..., 100 + 60 * i : 400 + 60 * i, 300:600] = 250
    return frames


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(1)


def apart(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the relative norm of the difference. Memories are rounded to bfloat16: single values may differ more."""
    return float((actual - expected).norm() / expected.norm())


def in_order(prompted: tuple[int, ...], frames: int) -> list[int]:
    """Return the numbers of the prompted frames, then those of the others."""
    return [*prompted, *(i for i in range(frames) if i not in prompted)]


def sam_alone(
    encoder: GroundingEncoder,
    video: torch.Tensor,
    embedding: torch.Tensor,
    prompted: tuple[int, ...],
    dtype: torch.dtype = torch.bfloat16,
):
    """Track one object with SAM 2's own methods and a new position module: masks (F, 256, 256), pointers (F, C)."""
    from sam2.modeling.position_encoding import PositionEmbeddingSine

    sam = encoder.sam2_model
    outputs = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    position_of = PositionEmbeddingSine(sam.hidden_dim, normalize=True)
    logits = {}
    pointers = {}
    for i in in_order(prompted, len(video)):
        out = sam.forward_image(encoder.normalise(video[i]))
        out["vision_pos_enc"] = [position_of(level) for level in out["backbone_fpn"]]
        _, features, positions, sizes = sam._prepare_backbone_features(out)
        is_prompted = i in prompted

        def with_language(module, inputs, result, on=is_prompted):
            return (torch.cat([result[0], embedding[None, None]], 1), result[1]) if on else None

        hook = sam.sam_prompt_encoder.register_forward_hook(with_language)
        step = sam.track_step(i, is_prompted, features, positions, sizes, None, None, outputs, len(video))
        hook.remove()
        step["maskmem_features"] = step["maskmem_features"].to(dtype)
        outputs["cond_frame_outputs" if is_prompted else "non_cond_frame_outputs"][i] = step
        logits[i] = step["pred_masks"][0, 0]
        pointers[i] = step["obj_ptr"][0]
    return torch.stack([logits[i] for i in sorted(logits)]), torch.stack([pointers[i] for i in sorted(pointers)])


def tracked(
    encoder: GroundingEncoder,
    video: torch.Tensor,
    embeddings: torch.Tensor,
    prompted: tuple[int, ...],
    dtype: torch.dtype = torch.bfloat16,
):
    """Masks (F, N, 256, 256), pointers (F, N, C)."""
    tracker = Tracker(encoder, len(video), dtype)
    logits = {}
    for i in in_order(prompted, len(video)):
        features = encoder.encode(video[i])
        logits[i] = tracker.prompt(i, features, embeddings) if i in prompted else tracker.follow(i, features)
    outputs = {**tracker._memory["cond_frame_outputs"], **tracker._memory["non_cond_frame_outputs"]}
    frames = range(len(video))
    return torch.stack([logits[i] for i in frames]), torch.stack([outputs[i]["obj_ptr"] for i in frames])


@pytest.mark.parametrize(
    "count, expected",
    [(1, [0]), (3, [0, 1, 2]), (5, [0, 1, 2, 3, 4]), (6, [0, 1, 2, 3, 5]), (100, [0, 24, 49, 74, 99])],
)
def test_frames_that_are_seen(count, expected):
    """At i * (count - 1) / 4, rounded down: exact in whole numbers."""
    assert frames_seen(count, "uniform") == expected == sorted({i * (count - 1) // 4 for i in range(5)})
    assert frames_seen(count, "first") == [*range(count)][:5]
    with pytest.raises(UserError, match="met last; wanted first or uniform"):
        frames_seen(count, "last")


@pytest.mark.slow
@pytest.mark.parametrize("prompted, frames", [((0, 1), FRAMES), ((0, 2, 4), 5)])
def test_tracking_equals_sam_2(encoder, video, prompted, frames):
    embeddings = 3 * torch.randn(1, encoder.width)
    actual, pointers = tracked(encoder, video[:frames], embeddings, prompted)
    expected, wanted_pointers = sam_alone(encoder, video[:frames], embeddings[0], prompted)
    for i in range(frames):
        assert apart(actual[i, 0], expected[i]) < 1e-3 and apart(pointers[i, 0], wanted_pointers[i]) < 1e-3, i
        assert i == 0 or apart(expected[i], expected[i - 1]) > 0.02


@pytest.fixture
def two_decoders(encoder) -> GroundingEncoder:
    """An encoder with an original decoder, unlike the one that Sa2VA trained."""
    encoder = copy.deepcopy(encoder)
    for parameter in encoder.add_original_decoder().parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


@pytest.mark.slow
@pytest.mark.parametrize("visible", [True, False])
def test_masks_are_followed_as_sam_2_s_own_predictor_does(two_decoders, video, monkeypatch, visible):
    """Two objects, of which one is not in the last prompted frame; once SAM 2 finds them in the others, once not."""
    from sam2.build_sam import build_sam2_video_predictor

    encoder = two_decoders
    encoder.original_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(1e4 if visible else -1e4)
    masks = torch.zeros(5, 2, 1, 1024, 1024)
    for i in (0, 3):
        masks[i, 0, 0, 100 + 60 * i : 400 + 60 * i, 300:600] = 1
    masks[0, 1, 0, 700:, 30:500] = 1

    sam = tiny_sam(encoder.width)
    overrides = [*sam.sam_overrides, "++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability=true"]
    overrides += [
        f"++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_{k}" for k in ("delta=0.05", "thresh=0.98")
    ]
    official = build_sam2_video_predictor(
        sam.sam_config, device="cpu", hydra_overrides_extra=overrides, apply_postprocessing=False
    )
    official.load_state_dict(encoder.original_sam().state_dict())
    monkeypatch.setattr(
        "sam2.sam2_video_predictor.load_video_frames",
        lambda **_: (torch.cat([encoder.normalise(frame) for frame in video[:5]]), 1024, 1024),
    )
    state = official.init_state("frames")
    for i in (0, 3):
        for n in range(2):
            official.add_new_mask(state, i, n, masks[i, n, 0])
    expected = {i: logits for i, _, logits in official.propagate_in_video(state)}

    tracker = Tracker(encoder, 5, original_decoder=True)
    for i in in_order((0, 3), 5):
        features = encoder.features_for(encoder.original_mask_decoder, encoder.encode_maps(video[i]))
        prompted = i in (0, 3)
        logits = tracker.prompt_with_masks(i, features, masks[i]) if prompted else tracker.follow(i, features)
        enlarged = torch.nn.functional.interpolate(logits[:, None], (1024, 1024), mode="bilinear")
        for n in range(2):
            assert apart(enlarged[n], expected[i][n]) < 1e-3, (i, n)
        assert prompted or visible != bool((logits == -1024).all())


@pytest.mark.slow
def test_memories_in_float32_are_not_rounded(encoder, video):
    """Against SAM 2's own tracking in float32: nearly equal where rounded memories are far off."""
    embeddings = 3 * torch.randn(1, encoder.width)
    expected, _ = sam_alone(encoder, video[:4], embeddings[0], PROMPTED, torch.float32)
    exact, _ = tracked(encoder, video[:4], embeddings, PROMPTED, torch.float32)
    rounded, _ = tracked(encoder, video[:4], embeddings, PROMPTED)
    for i in range(len(PROMPTED), 4):
        assert apart(exact[i, 0], expected[i]) < 1e-5
        assert apart(rounded[i, 0], expected[i]) > 10 * apart(exact[i, 0], expected[i])


def test_objects_are_tracked_as_if_alone(encoder, video):
    embeddings = 3 * torch.randn(2, encoder.width)
    together, pointers = tracked(encoder, video[:4], embeddings, PROMPTED)
    alone, alone_pointers = tracked(encoder, video[:4], embeddings[1:], PROMPTED)
    for i in range(4):
        assert apart(together[i, 1], alone[i, 0]) < 1e-3 and apart(pointers[i, 1], alone_pointers[i, 0]) < 1e-3, i
        # Prompted frames decide the others.
        assert apart(together[i, 0], together[i, 1]) > 1e-2 and apart(pointers[i, 0], pointers[i, 1]) > 1e-2, i


def test_an_absent_object_gets_the_no_object_pointer_and_keeps_its_logits(encoder, video):
    bias = encoder.sam2_model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias
    embeddings = torch.randn(1, encoder.width)
    there, _ = tracked(encoder, video[:2], embeddings, (0,))
    bias.fill_(-1e4)
    gone, pointers = tracked(encoder, video[:2], embeddings, (0,))
    bias.fill_(1e4)
    assert torch.equal(gone[0], there[0])
    assert torch.equal(pointers, encoder.sam2_model.no_obj_ptr.expand(2, 1, -1))
    assert gone.min() > -1000 and not torch.equal(gone[1], there[1])  # another pointer, another mask


def test_memory_is_bfloat16_and_bounded(encoder, monkeypatch):
    monkeypatch.setattr(
        encoder.sam2_model, "max_obj_ptrs_in_encoder", 4
    )  # 16 in the released models; spatial memory reaches 6 frames back
    tracker = Tracker(encoder, 20)
    sam_features = encoder.encode(torch.zeros(1, 3, 1024, 1024, dtype=torch.uint8))
    tracker.prompt(0, sam_features, torch.randn(1, encoder.width))
    tracker.prompt(8, sam_features, torch.randn(1, encoder.width))  # is not followed: frame 1 goes all the same
    for i in (1, 2, 3, 4, 5, 6, 7, 9):
        tracker.follow(i, sam_features)
    kept = tracker._memory["non_cond_frame_outputs"]
    assert list(kept) == [3, 4, 5, 6, 7, 9]
    assert all(step["maskmem_features"].dtype == torch.bfloat16 for step in kept.values())
    monkeypatch.setattr(encoder.sam2_model, "max_obj_ptrs_in_encoder", 8)
    for i in range(10, 20):
        tracker.follow(i, sam_features)
    assert [*kept] == [*range(12, 20)]  # of the oldest one only the pointer
    assert [i for i, step in kept.items() if "maskmem_features" in step] == [*range(13, 20)]
