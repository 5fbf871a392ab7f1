"""The points at which an implementation of Sa2VA goes wrong, each against an independent computation."""

import dataclasses

import pytest
import torch

from shards.errors import UserError
from trainer.data.batch import PairBatch
from trainer.model.architecture import preset_named
from trainer.model.rows import TokenRow
from trainer.model.sa2va import Sa2VA, build, pixel_shuffle

ONE = torch.tensor([0])


def places(model: Sa2VA, ids: list[int], token: int) -> list[int]:
    return [place for place, i in enumerate(ids) if i == token]


def test_pixel_shuffle_equals_loops():
    side = 32
    width = 3
    tokens = torch.randn(2, side * side, width)
    folded = pixel_shuffle(tokens)
    assert folded.shape == (2, 256, 4 * width)
    for picture in range(2):
        for row in range(16):
            for column in range(16):
                expected = []
                for down in (0, 1):
                    for right in (0, 1):
                        expected += tokens[picture, (2 * row + down) * side + 2 * column + right].tolist()
                assert folded[picture, row * 16 + column].tolist() == expected


def test_encode_image_drops_the_class_token_and_keeps_row_order(model: Sa2VA, batch: PairBatch):
    pictures = batch.frames[0].pixel_values
    states = model.vision_model(pixel_values=pictures).last_hidden_state
    assert states.shape[1] == 1 + 32 * 32
    visual_tokens = model.encode_image(pictures)
    width = states.shape[2]
    assert torch.equal(visual_tokens[0, 0, :width], states[0, 1])  # the first patch, not the class token
    assert torch.equal(visual_tokens[0, 1, :width], states[0, 3])  # two patches to the right
    assert torch.equal(visual_tokens[0, 16, :width], states[0, 1 + 64])  # two rows down


def test_region_tokens_are_the_cells_of_the_region_row_by_row(model: Sa2VA):
    visual_tokens = torch.randn(2, 256, model.mlp1[0].normalized_shape[0])
    regions = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    regions[0, 0, 3:5, 7:9] = True
    regions[1, 0, 0, 15] = regions[1, 0, 15, 0] = regions[1, 0, 2, 2] = True
    prompts = model.prompts
    rows = prompts.padded([prompts.describe("a", [4]), prompts.describe("b", [3])], model.device)
    image_of_row = torch.tensor([1, 0])
    embeddings = model.embed_rows(rows, visual_tokens, image_of_row, regions)
    visual = model.mlp1(visual_tokens)
    for row, image in enumerate(image_of_row.tolist()):
        expected = [visual[image, cell] for cell in range(256)]
        for y in range(16):
            for x in range(16):
                if regions[row, 0, y, x]:
                    expected.append(visual[image, 16 * y + x])
        found = places(model, rows.ids[row].tolist(), prompts.context)
        assert torch.equal(embeddings[row, found], torch.stack(expected))
        text = [p for p in range(rows.ids.shape[1]) if p not in found]
        assert torch.equal(embeddings[row, text], model.embedding(rows.ids[row, text]))


def test_several_regions_follow_one_another(model: Sa2VA):
    visual_tokens = torch.randn(1, 256, model.mlp1[0].normalized_shape[0])
    regions = torch.zeros(1, 2, 16, 16, dtype=torch.bool)
    regions[0, 0, 9, 9] = regions[0, 1, 1, 1] = True
    rows = model.prompts.padded([model.prompts.describe("a", [1, 1])], model.device)
    embeddings = model.embed_rows(rows, visual_tokens, ONE, regions)
    last = places(model, rows.ids[0].tolist(), model.prompts.context)[-2:]
    visual = model.mlp1(visual_tokens)[0]
    assert torch.equal(embeddings[0, last], visual[[9 * 16 + 9, 17]])


def test_rows_get_several_pictures_in_order_and_regions_of_the_last(model: Sa2VA):
    """Tiles and frames: 256 tokens a picture; rows may have unequal numbers of them, and share them."""
    visual_tokens = torch.randn(4, 256, model.mlp1[0].normalized_shape[0])
    prompts = model.prompts
    visual = model.mlp1(visual_tokens)
    regions = torch.zeros(3, 2, 16, 16, dtype=torch.bool)
    regions[0, 0, 2, 3] = regions[0, 1, 0, :2] = regions[1, 0, 15, 15] = True
    asked = [
        prompts.ask("a", "x", tiles=3, cells=[1, 2]),
        prompts.ask("b", "a longer question", cells=[1]),
        prompts.ask("c", "?", frames=2),
    ]
    rows = prompts.padded(asked, model.device, left=True)
    embeddings = model.embed_rows(rows, visual_tokens, torch.tensor([[2, 0, 1], [3, -1, -1], [1, 3, -1]]), regions)
    expected = [
        torch.cat([visual[2], visual[0], visual[1], visual[1, [35, 0, 1]]]),
        torch.cat([visual[3], visual[3, [255]]]),
        torch.cat([visual[1], visual[3]]),
    ]
    for row, tokens in enumerate(expected):
        assert torch.equal(embeddings[row, places(model, rows.ids[row].tolist(), prompts.context)], tokens)
    with pytest.raises(UserError, match=r"sample a.*met 771 places.*wanted 515"):
        model.embed_rows(rows, visual_tokens, torch.tensor([[2, 0, -1], [3, -1, -1], [1, 3, -1]]), regions)


@pytest.mark.parametrize("cells", [3, 5])
def test_a_wrong_number_of_image_tokens_names_the_sample(model: Sa2VA, cells: int):
    visual_tokens = torch.zeros(1, 256, model.mlp1[0].normalized_shape[0])
    regions = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    regions[0, 0, 0, :4] = True
    rows = model.prompts.padded([model.prompts.describe("pair_17", [cells])], model.device)
    with pytest.raises(UserError, match=rf"sample pair_17.*met {256 + cells} places.*wanted 260"):
        model.embed_rows(rows, visual_tokens, ONE, regions)


def test_a_black_picture_is_encoded(model: Sa2VA):
    pictures = torch.stack([torch.zeros(3, 448, 448), torch.full((3, 448, 448), -2.0)])
    visual_tokens = model.encode_image(pictures)
    assert len(visual_tokens) == 2 and visual_tokens.isfinite().all()
    sam_features = model.encode_sam(torch.zeros(1, 3, 1024, 1024, dtype=torch.uint8))
    assert (
        model.grounding_encoder.decode(sam_features, ONE, torch.randn(1, model.grounding_encoder.width))
        .isfinite()
        .all()
    )


def test_the_seg_state_is_taken_after_the_final_norm_at_its_position(model: Sa2VA, batch: PairBatch):
    prompts = model.prompts
    # Rows of unequal length: a shift by padding or by one token would show.
    written = [prompts.segment("a", "cat", answer=0), prompts.segment("b", "the long thing", answer=3)]
    rows = prompts.padded(written, model.device)
    embeddings = model.embed_rows(rows, model.encode_image(batch.frames[0].pixel_values), torch.tensor([0, 1]))
    normed = []
    taken = []
    hooks = [
        model.language_model.model.norm.register_forward_hook(lambda m, inputs, out: normed.append(out)),
        model.text_hidden_fcs.register_forward_hook(lambda m, inputs, out: taken.append(inputs[0])),
    ]
    states = model.run_language_model(embeddings, rows.attention, rows.positions)
    sam_features = model.encode_sam(batch.frames[0].g_pixel_values)
    model.decode_masks(states, rows, sam_features, torch.tensor([0, 1]))
    for hook in hooks:
        hook.remove()
    for i, row in enumerate(written):
        (place,) = places(model, row.ids, prompts.seg)
        assert torch.equal(taken[0][i], normed[0][i, place])


def test_logits_are_computed_only_where_a_label_follows(model: Sa2VA):
    states = torch.randn(2, 6, model.embedding.embedding_dim)
    labels = [[-100, -100, -100, -100, 7, 8], [-100, -100, 9]]
    written = [TokenRow("x", [65] * len(of_row), of_row, [False] * len(of_row)) for of_row in labels]
    rows = model.prompts.padded(written, model.device)
    logits = model.answer_logits(states, rows)
    assert rows.labels.tolist() == [7, 8, 9] and rows.row_of_label.tolist() == [0, 0, 1]
    everything = model.language_model.lm_head(states)
    assert torch.allclose(logits, torch.stack([everything[0, 3], everything[0, 4], everything[1, 1]]), atol=1e-6)


def test_phrase_embeddings_replace_those_of_the_table(model: Sa2VA):
    prompts = model.prompts
    written = [prompts.segment("a", [1, 2]), prompts.segment("b", [3])]
    rows = prompts.padded(written, model.device)
    phrases = torch.randn(3, model.embedding.embedding_dim)
    visual_tokens = torch.zeros(1, 256, model.mlp1[0].normalized_shape[0])
    embeddings = model.embed_rows(rows, visual_tokens, torch.tensor([0, 0]), phrase_embeddings=phrases)
    at = [(n, p) for n, row in enumerate(written) for p, yes in enumerate(row.replaced) if yes]
    assert torch.equal(torch.stack([embeddings[n, p] for n, p in at]), phrases) and [n for n, _ in at] == [0, 0, 1]


def test_sam_gets_the_exact_normalisation_of_uint8(model: Sa2VA):
    values = torch.arange(256, dtype=torch.uint8)
    pictures = values.repeat(3 * 1024 * 4).view(1, 3, 1024, 1024)
    result = model.grounding_encoder.normalise(pictures)
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        expected = (values.double() / 255 - mean) / std
        assert torch.allclose(result[0, channel, 0, :256].double(), expected, atol=1e-6)
    assert pictures.dtype == torch.uint8 and torch.equal(pictures[0, 0, 0, :256], values)  # not changed in place
    with pytest.raises(TypeError, match="uint8"):
        model.grounding_encoder.normalise(result)
    rounded = model.grounding_encoder.normalise(pictures, rounded=True)
    mean = 0.484375  # this and `std` are the nearest bfloat16
    std = 0.22851562
    assert torch.allclose(rounded[0, 0, 0, :256].double(), (values.double() / 255 - mean) / std, atol=1e-6)
    assert 1e-3 < (rounded - result).abs().max() < 1e-2


def test_features_equal_those_of_sam2s_forward(model: Sa2VA, batch: PairBatch):
    encoder = model.grounding_encoder
    pictures = batch.frames[1].g_pixel_values
    sam_features = encoder.encode(pictures)
    sam = encoder.sam2_model
    out = sam.forward_image(encoder.normalise(pictures))
    *high, last = out["backbone_fpn"]
    assert torch.equal(sam_features.embedding, last)
    assert all(torch.equal(features, expected) for features, expected in zip(sam_features.high, high, strict=True))
    assert [tuple(level.shape[2:]) for level in (*high, last)] == [(256, 256), (128, 128), (64, 64)]


def test_prompt_tokens_are_two_padding_points_and_the_language_embedding(model: Sa2VA, batch: PairBatch):
    encoder = model.grounding_encoder
    decoder = model.grounding_encoder.sam2_model.sam_mask_decoder
    caught: dict[str, torch.Tensor] = {}
    hook = decoder.register_forward_pre_hook(lambda m, a, kwargs: caught.update(kwargs), with_kwargs=True)
    embeddings = torch.randn(3, encoder.width)
    logits = encoder.decode(encoder.encode(batch.frames[0].g_pixel_values), torch.tensor([1, 0, 1]), embeddings)
    hook.remove()
    assert logits.shape == (3, 256, 256) and logits.dtype == torch.float32
    sparse = caught["sparse_prompt_embeddings"]
    padding = encoder.sam2_model.sam_prompt_encoder.not_a_point_embed.weight[0]
    assert sparse.shape == (3, 3, encoder.width)
    assert torch.equal(sparse[:, 0], padding.expand(3, -1)) and torch.equal(sparse[:, 1], padding.expand(3, -1))
    assert torch.equal(sparse[:, 2], embeddings)
    plain = encoder.encode(batch.frames[0].g_pixel_values).embedding[[1, 0, 1]]
    assert torch.equal(caught["image_embeddings"], plain + encoder.sam2_model.no_mem_embed[0, 0][None, :, None, None])


def test_the_mask_of_highest_predicted_iou_is_taken_and_none_is_blanked(model: Sa2VA, batch: PairBatch):
    encoder = model.grounding_encoder
    decoder = model.grounding_encoder.sam2_model.sam_mask_decoder
    sam_features = encoder.encode(batch.frames[0].g_pixel_values)
    embeddings = torch.randn(2, encoder.width)
    pictures = torch.tensor([0, 1])
    outputs = []
    hook = decoder.register_forward_hook(lambda m, inputs, out: outputs.append(out))
    logits = encoder.decode(sam_features, pictures, embeddings)
    hook.remove()
    masks, ious, _, _ = outputs[0]
    assert masks.shape == (2, 3, 256, 256)
    for i in range(2):
        best = max(range(3), key=lambda k: ious[i, k].item())
        assert torch.equal(logits[i], masks[i, best])
    bias = decoder.pred_obj_score_head.layers[-1].bias
    before = bias.clone()
    with torch.no_grad():
        bias.fill_(-1e4)  # "no object here", as sure as can be
        assert torch.equal(encoder.decode(sam_features, pictures, embeddings), logits)
        bias.copy_(before)


def test_objects_of_one_picture_are_decoded_independently(model: Sa2VA, batch: PairBatch):
    encoder = model.grounding_encoder
    sam_features = encoder.encode(batch.frames[0].g_pixel_values)
    embeddings = torch.randn(3, encoder.width)
    together = encoder.decode(sam_features, torch.tensor([1, 1, 0]), embeddings)
    for i, picture in enumerate([1, 1, 0]):
        alone = encoder.decode(sam_features, torch.tensor([picture]), embeddings[i : i + 1])
        assert torch.allclose(together[i], alone[0], atol=1e-4)


def test_the_tiny_preset_is_small_and_takes_full_size_inputs(model: Sa2VA):
    assert sum(p.numel() for p in model.parameters()) < 4_000_000
    assert model.grounding_encoder.sam2_model.image_size == 1024
    assert tuple(model.vision_model.config.image_size) == (448, 448)
    assert {name for name, _ in model.named_children()} == {
        "vision_model",
        "language_model",
        "grounding_encoder",
        "mlp1",
        "text_hidden_fcs",
    }


def test_presets_are_values(model: Sa2VA):
    with pytest.raises(UserError, match=r"unknown preset.*met huge.*wanted tiny"):
        build("huge")
    assert dataclasses.replace(preset_named("tiny")) == preset_named("tiny")
