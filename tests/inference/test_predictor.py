"""Segment, describe and track: in batches and one by one, with tiles, regions and frames."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from inference.predictor import Predictor
from inference.tracking import Tracker
from pipeline import resize
from shards.errors import UserError
from shards.recipe import RECIPES
from trainer.model.generation import generate
from trainer.model.sa2va import Sa2VA
from trainer.released.loaded import LoadedModel

TEXTS = [
    "Please segment the cat in this image.",
    "Where?",
    "What is the cup in this image? Please respond with a mask.",
]


def spy(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[tuple]:
    """Record the arguments of every call of a method."""
    calls = []
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: (calls.append(args), original(*args, **kwargs))[1])
    return calls


def differing(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the share of pixels that differ. Those whose logit is 0 up to rounding may."""
    assert actual.shape == expected.shape
    return np.count_nonzero(actual != expected) / max(actual.size, 1)


@pytest.mark.parametrize("most_tiles", [1, 6])
def test_a_batch_gives_the_results_of_single_pictures(talker: Sa2VA, photos, most_tiles):
    predictor = Predictor(LoadedModel(talker), max_new_tokens=3, most_tiles=most_tiles)
    together = predictor.segment(photos, TEXTS)
    assert sum(len(answer.masks) for answer in together) > 3
    for photo, text, actual in zip(photos, TEXTS, together, strict=True):
        (alone,) = predictor.segment([photo], [text])
        assert actual.text == alone.text and actual.text.count("[SEG]") == len(actual.masks)
        assert actual.masks.dtype == bool and actual.masks.shape == alone.masks.shape == (
            len(actual.masks),
            *photo.shape[:2],
        )
        assert differing(actual.masks, alone.masks) < 1e-4
        assert all(0.01 < mask.mean() < 0.99 for mask in actual.masks)


def test_questions_in_batches_are_answered_alike_and_a_picture_is_encoded_once(talker: Sa2VA, photos, monkeypatch):
    predictor = Predictor(LoadedModel(talker), max_new_tokens=2)
    pictures = [photos[0], photos[1], photos[0], photos[0], photos[1]]
    texts = [f"Where is the {'very ' * n}small cat?" for n in (3, 0, 4, 1, 2)]
    expected = predictor.segment(pictures, texts)
    calls: list[tuple[str, int]] = []
    for owner, name in ((talker, "encode_image"), (talker, "run_language_model"), (talker.grounding_encoder, "encode")):
        original = getattr(owner, name)

        def counted(values, *more, name=name, original=original):
            calls.append((name, len(values)))
            return original(values, *more)

        monkeypatch.setattr(owner, name, counted)
    found = predictor.segment(pictures, texts, batch_size=2)
    assert [size for name, size in calls if name == "encode_image"] == [2]
    assert [size for name, size in calls if name == "encode"] == [1, 1]
    assert {size for name, size in calls if name == "run_language_model"} == {1, 2}
    for one, other in zip(found, expected, strict=True):
        assert one.text == other.text and differing(one.masks, other.masks) < 1e-4
    assert any(len(one.masks) for one in found)


def test_masks_are_the_model_s_own_composed_by_hand(talker: Sa2VA, photos):
    """Compute masks of one picture with the model's own methods; only the wording is the predictor's."""
    photo = photos[1]
    recipe = RECIPES["sa2va"]
    prompts = talker.prompts
    values = torch.from_numpy(resize.picture(photo, 448, recipe)).double() / 255
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    visual_tokens = talker.encode_image(((values - mean) / std).float()[None])
    ids = []
    prompt = prompts.ask("x", TEXTS[0]).ids
    states = None
    for _ in range(7):
        row = prompts.padded([prompts.ask("x", TEXTS[0])], talker.device)
        question = talker.embed_rows(row, visual_tokens, torch.tensor([0]))
        answer_embeddings = talker.embedding(torch.tensor([ids], dtype=torch.int64))
        length = len(prompt) + len(ids)
        states = talker.run_language_model(
            torch.cat([question, answer_embeddings], 1),
            torch.ones(1, length, dtype=torch.int64),
            torch.arange(length)[None],
        )
        if len(ids) < 6:
            ids.append(int(talker.language_model.lm_head(states[0, -1]).argmax()))
    places = [len(prompt) + i for i, token in enumerate(ids) if token == prompts.seg]
    sam_features = talker.encode_sam(torch.from_numpy(resize.picture(photo, 1024, recipe))[None])
    logits = talker.grounding_encoder.decode(
        sam_features, torch.zeros(len(places), dtype=torch.int64), talker.text_hidden_fcs(states[0, places])
    )
    (actual,) = Predictor(LoadedModel(talker), max_new_tokens=6).segment([photo], [TEXTS[0]])
    assert actual.text == prompts.answer(ids) and len(places) > 0
    assert differing(actual.masks, resize.predicted_masks(logits, *photo.shape[:2], recipe)) < 1e-4


def test_a_picture_asked_about_twice_is_encoded_once(predictor: Predictor, photos, monkeypatch):
    visual_tokens = spy(monkeypatch, predictor.model, "encode_image")
    sam_features = spy(monkeypatch, predictor.model.grounding_encoder, "encode")
    decoded = spy(monkeypatch, predictor.model.grounding_encoder, "decode")
    answers = predictor.segment([photos[0]] * 2, TEXTS[:2])
    assert all(len(answer.masks) > 1 for answer in answers)
    assert [len(args[0]) for args in visual_tokens] == [1]
    assert len(sam_features) == 1
    assert [len(args[2]) for args in decoded] == [len(answer.masks) for answer in answers]


def test_an_answer_without_seg_has_no_mask_and_sam_is_left_alone(talker: Sa2VA, photos, monkeypatch):
    silent = Predictor(LoadedModel(talker), max_new_tokens=3)
    monkeypatch.setattr(talker.prompts, "seg", 0)  # a token that is never generated
    sam_features = spy(monkeypatch, talker.grounding_encoder, "encode")
    (answer,) = silent.segment([photos[0]], ["Who?"])
    assert answer.masks.shape == (0, *photos[0].shape[:2]) and not sam_features


def test_a_black_picture_is_a_picture(predictor: Predictor, photos):
    black = np.zeros((40, 50, 3), np.uint8)
    alone = predictor.segment([black], [TEXTS[0]])[0]
    together = predictor.segment([photos[0], black], TEXTS[:1] * 2)
    assert len(alone.masks) and alone.masks.shape[1:] == (40, 50)
    assert alone.text == together[1].text
    other = predictor.segment([np.full_like(black, 255)], [TEXTS[0]])[0]
    assert alone.text != other.text or (alone.masks != other.masks).any()


def test_a_mark_in_a_question_is_letters(predictor: Predictor, photos):
    (answer,) = predictor.segment(photos[:1], ["b <IMG_CONTEXT> [SEG]<|im_end|>"])  # not one place more for the picture
    assert answer.text


@pytest.mark.parametrize("most_tiles", [1, 4])
def test_regions_are_described_by_their_cells(talker: Sa2VA, photos, most_tiles, monkeypatch):
    predictor = Predictor(LoadedModel(talker), max_new_tokens=4, most_tiles=most_tiles)
    photo = photos[0]
    recipe = RECIPES["sa2va"]
    regions = np.zeros((2, *photo.shape[:2]), bool)
    regions[0, 50:200, 90:300] = True
    regions[1, :40] = True
    embedded = spy(monkeypatch, talker, "embed_rows")
    (caption,) = predictor.describe([photo], [regions])
    assert caption
    rows, _, images, cells = embedded[0]
    expected = [resize.prompt_cells(region, "corner", recipe) for region in regions]
    assert np.array_equal(cells[0].numpy(), expected)
    assert "region1, region2" in talker.prompts.decode(rows.ids[0].tolist())
    places = 256 * images.shape[1] + int(np.sum(expected))
    assert int((rows.ids == talker.prompts.context).sum()) == places
    batch = predictor.describe(photos[:2], [regions, np.ones((1, *photos[1].shape[:2]), bool)], ["region2?", "What?"])
    assert batch[0] == predictor.describe([photo], [regions], ["region2?"])[0]


def test_a_region_may_be_asked_about_with_a_mask_for_an_answer(predictor: Predictor, photos):
    regions = np.zeros((2, 1, *photos[0].shape[:2]), bool)
    regions[0, 0, :150] = True
    regions[1, 0, 150:] = True
    one, other, none = predictor.segment([photos[0]] * 3, ["<image>region1?"] * 3, regions=[*regions, None])
    assert predictor.describe([photos[0]], [regions[0]], ["<image>region1?"]) == [one.text]
    assert len(one.masks) and (one.text != other.text or differing(one.masks, other.masks) > 0)
    assert one.text != none.text or differing(one.masks, none.masks) > 0


def test_regions_that_cannot_be_described(talker: Sa2VA, photos):
    height, width = photos[0].shape[:2]
    official = Predictor(LoadedModel(talker), max_new_tokens=1)
    filling = Predictor(LoadedModel(talker), max_new_tokens=1, recipe="default")
    tiny = np.zeros((1, height, width), bool)
    tiny[0, 3, 3] = True
    with pytest.raises(UserError, match=r"cat\.jpg: region1 has no cell.*met 1 pixels.*default fills"):
        official.describe(photos[:1], [tiny], names=["cat.jpg"])
    assert len(filling.describe(photos[:1], [tiny])) == 1
    for predictor in (official, filling):
        with pytest.raises(UserError, match="no cell"):
            predictor.describe(photos[:1], [np.zeros_like(tiny)])
        for wrong in (tiny[:, :-1], tiny[0], tiny[:0], tiny.astype(np.uint8)):
            with pytest.raises(UserError, match="do not fit"):
                predictor.describe(photos[:1], [wrong])


def passes(monkeypatch: pytest.MonkeyPatch, model: Sa2VA) -> list[int]:
    """Record the batch size of every pass of SAM 2's image encoder."""
    sizes = []
    encoder = model.grounding_encoder.sam2_model.image_encoder
    original = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda pixels: (sizes.append(len(pixels)), original(pixels))[1])
    return sizes


@pytest.mark.slow
@pytest.mark.parametrize("choice, shown", [("first", [0, 1, 2]), ("uniform", [0, 2, 4])])
def test_the_frames_that_are_seen_prompt_and_the_others_follow(talker: Sa2VA, photos, monkeypatch, choice, shown):
    predictor = Predictor(LoadedModel(talker), max_new_tokens=4, video_frames=choice)
    frames = [np.roll(photos[0][:200], 5 * i, 1) for i in range(5)]
    frames[-1] = frames[-1][:100].copy()
    monkeypatch.setattr("inference.tracking.FRAMES_SEEN", 3)
    viewed = spy(monkeypatch, predictor.model, "encode_image")
    embedded = spy(monkeypatch, predictor.model, "embed_rows")
    prompted = spy(monkeypatch, Tracker, "prompt")
    followed = spy(monkeypatch, Tracker, "follow")
    encoded = passes(monkeypatch, talker)
    track = predictor.track(frames, TEXTS[0])
    rows, visual_tokens, images, _ = embedded[0]
    assert len(visual_tokens) == 3 and images.tolist() == [[0, 1, 2]]
    assert predictor.model.prompts.decode(rows.ids[0].tolist()).count("</img>\n<img>") == 2
    expected = [resize.picture(frames[i], 448, predictor.recipe) for i in shown]
    assert torch.equal(viewed[0][0], predictor._normalise(torch.from_numpy(np.stack(expected))))
    assert not encoded  # masks are computed when they are iterated
    masks = list(track.masks)
    assert track.objects == track.text.count("[SEG]") > 1
    assert [m.shape for m in masks] == [(track.objects, *frame.shape[:2]) for frame in frames]
    assert [args[1] for args in prompted] == shown
    assert [args[1] for args in followed] == [i for i in range(5) if i not in shown]
    assert encoded == [1] * 5  # once per frame, whatever the number of objects
    assert torch.is_grad_enabled()


@pytest.mark.slow
def test_sam_2_follows_the_masks_of_the_trained_decoder(talker: Sa2VA, photos, monkeypatch):
    """The masks of the frames that are seen are a picture's, and the others' are SAM 2's own, prompted with them."""
    model = copy.deepcopy(talker)
    decoder = model.grounding_encoder.add_original_decoder()
    decoder.pred_obj_score_head.layers[-1].bias.fill_(1e4)  # always visible, so that masks are not all empty
    decoder.output_upscaling[3].weight.mul_(-1)  # unlike the trained decoder
    monkeypatch.setattr("inference.tracking.FRAMES_SEEN", 2)
    predictor = Predictor(LoadedModel(model), max_new_tokens=4)
    assert (predictor.video_frames, predictor.propagate) == ("uniform", "sam2")
    frames = [np.roll(photos[0][:200], 5 * i, 1) for i in range(3)]
    states = spy(monkeypatch, model.text_hidden_fcs, "forward")
    encoded = passes(monkeypatch, model)
    track = predictor.track(frames, TEXTS[0])
    first, middle, last = track.masks
    assert track.objects > 1 and encoded == [1] * 3
    embeddings = model.text_hidden_fcs(states[0][0])
    encoder = model.grounding_encoder
    pixels = [torch.from_numpy(resize.picture(frame, 1024, predictor.recipe))[None] for frame in frames]
    tracker = Tracker(encoder, 3, original_decoder=True)
    for i, shown in ((0, first), (2, last)):
        one_picture = torch.zeros(len(embeddings), dtype=torch.int64)
        logits = encoder.decode(encoder.encode(pixels[i]), one_picture, embeddings)
        # Through SAM 2, which keeps a mask at 256 x 256, random masks lose their finest parts.
        assert differing(shown, resize.predicted_masks(logits, 200, 451, predictor.recipe)) < 0.1
        features = encoder.features_for(decoder, encoder.encode_maps(pixels[i]))
        kept = tracker.prompt_with_masks(i, features, resize.mask_prompts(logits, 200, 451, 1024))
        assert differing(shown, resize.predicted_masks(kept, 200, 451, predictor.recipe)) < 1e-3
    logits = tracker.follow(1, encoder.features_for(decoder, encoder.encode_maps(pixels[1])))
    assert differing(middle, resize.predicted_masks(logits, 200, 451, predictor.recipe)) < 1e-3
    assert 0 < middle.mean() < 1 and differing(middle, first) > 0.01


def answer_with_counted_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a model generate as many `[SEG]` as its question says in words, and else the likeliest token that is none."""
    numbers = {"none": 0, "one": 1, "two": 2}

    def counted(model, rows, embeddings, max_tokens, pick, ended, **more):
        texts = [model.prompts.decode(ids) for ids in rows.ids]
        asked = [next(numbers[word] for word in numbers if f"{word} of" in text) for text in texts]

        def pick_counted(logits, step, of):
            logits[:, model.prompts.seg] = -torch.inf
            marked = torch.tensor([step < number for number in asked])[of]
            return torch.where(marked, model.prompts.seg, pick(logits, step, of))

        return generate(model, rows, embeddings, max_tokens, pick_counted, ended, **more)

    monkeypatch.setattr("inference.predictor.generate", counted)


@pytest.mark.slow
@pytest.mark.parametrize("propagate", ["tuned", "sam2"])
def test_questions_about_a_video_are_answered_as_one_after_the_other(talker: Sa2VA, photos, monkeypatch, propagate):
    """In one pass over the frames, or in several where few objects may go through the video together."""
    model = copy.deepcopy(talker)
    if propagate == "sam2":
        decoder = model.grounding_encoder.add_original_decoder()
        decoder.pred_obj_score_head.layers[-1].bias.fill_(1e4)
    monkeypatch.setattr("inference.tracking.FRAMES_SEEN", 1)
    answer_with_counted_marks(monkeypatch)
    predictor = Predictor(LoadedModel(model), max_new_tokens=3, propagate=propagate)
    frames = [np.roll(photos[0][:200], 30 * i, 1) for i in range(3)]
    texts = ["none of them, please", "two of the cats", "one of all that there are in this video"]
    states = spy(monkeypatch, model.text_hidden_fcs, "forward")
    predictor.track(frames, texts[1])
    layer = model.text_hidden_fcs[0]
    layer.weight.mul_(50)  # so that questions differ
    layer.bias.copy_(-layer.weight @ states[0][0].mean(0))
    alone = [predictor.track(frames, text) for text in texts]
    expected = [list(track.masks) for track in alone]
    viewed = spy(monkeypatch, model, "encode_image")
    encoded = passes(monkeypatch, model)
    (tracks,) = predictor.track_many(frames, texts, batch_size=2)
    together = list(tracks.masks)
    assert encoded == [1] * 3 and [len(args[0]) for args in viewed] == [1]
    assert (tracks.questions, tracks.objects) == (range(3), (0, 2, 1))
    assert tracks.texts == tuple(track.text for track in alone)
    for i in range(3):
        assert [mask.shape[0] for mask in together[i]] == [0, 2, 1]
        for found, wanted in zip(together[i], expected, strict=True):
            assert differing(found, wanted[i]) < 1e-4
        assert differing(together[i][1][:1], together[i][2]) > 1e-3  # questions differ
    monkeypatch.setattr("inference.following.MOST_OBJECTS", 2)
    first, second = predictor.track_many(frames, texts, batch_size=2)
    assert (first.questions, second.questions) == (range(2), range(2, 3))
    assert all(differing(masks[0], of_all[2]) < 1e-4 for masks, of_all in zip(second.masks, together, strict=True))
    assert [track.objects for track in predictor.track_many(frames, texts, first_only=True)] == [(0, 1, 1)]


@pytest.mark.parametrize(
    "config, asked, expected",
    [
        ({}, None, "uniform"),
        ({"video_frames": "first"}, None, "first"),
        ({"video_frames": "first", "video_frames_number": 3}, "uniform", "uniform"),
    ],
)
def test_which_frames_of_a_video_are_seen(talker: Sa2VA, photos, monkeypatch, config, asked, expected):
    for key, value in config.items():
        monkeypatch.setitem(talker.architecture.config, key, value)
    predictor = Predictor(LoadedModel(talker), video_frames=asked, max_new_tokens=1)
    assert predictor.video_frames == expected
    viewed = spy(monkeypatch, talker, "encode_image")
    predictor.track([photos[0][:60]] * 7, "Where?")
    assert [len(args[0]) for args in viewed] == [config.get("video_frames_number", 5)]


def test_a_prompted_frame_is_segmented_as_a_picture_is(talker: Sa2VA, photos):
    predictor = Predictor(LoadedModel(talker), max_new_tokens=4)
    track = predictor.track(photos[:1], TEXTS[0])
    (answer,) = predictor.segment(photos[:1], TEXTS[:1])
    assert track.text == answer.text
    (masks,) = track.masks
    assert differing(masks, answer.masks) < 1e-4


def test_a_video_without_frames_or_objects(predictor: Predictor, photos, monkeypatch):
    with pytest.raises(UserError, match="no frames"):
        predictor.track([], "x")
    monkeypatch.setattr(predictor.model.prompts, "seg", 0)
    track = predictor.track(photos[:2], "x")
    assert track.objects == 0 and [m.shape for m in track.masks] == [(0, *p.shape[:2]) for p in photos[:2]]


def test_bfloat16_gives_nearly_the_same(talker: Sa2VA, photos, monkeypatch):
    half = Predictor(LoadedModel(copy.deepcopy(talker).to(torch.bfloat16)), max_new_tokens=1)
    (actual,) = half.segment(photos[:1], TEXTS[:1])
    (expected,) = Predictor(LoadedModel(talker), max_new_tokens=1).segment(photos[:1], TEXTS[:1])
    assert len(actual.masks) and (actual.masks[0] != expected.masks[0]).mean() < 0.05
    monkeypatch.setattr("inference.tracking.FRAMES_SEEN", 1)  # a frame takes a CPU five seconds
    track = half.track([photos[0][:200]] * 2, TEXTS[0])
    assert len(list(track.masks)) == 2


def test_the_official_normalisation_is_passed_to_the_encoder(talker: Sa2VA, photos, monkeypatch):
    for official in (False, True):
        calls = spy(monkeypatch, talker.grounding_encoder, "encode")
        Predictor(LoadedModel(talker), max_new_tokens=2, official_normalisation=official).segment(photos[:1], TEXTS[:1])
        assert [args[1] for args in calls] == [official]


@pytest.mark.parametrize("number", [0, 100, True, "5"])
def test_a_number_of_frames_that_no_model_sees(talker: Sa2VA, monkeypatch, number):
    monkeypatch.setitem(talker.architecture.config, "video_frames_number", number)
    with pytest.raises(UserError, match=f"video_frames_number: frames of a video; met {number!r}; wanted 1 to 99"):
        Predictor(LoadedModel(talker))


def test_settings_and_pictures_are_checked(talker: Sa2VA, predictor: Predictor):
    for most_tiles in (0, 13):
        with pytest.raises(UserError, match="1 to 12"):
            Predictor(LoadedModel(talker), most_tiles=most_tiles)
    assert predictor.memory_dtype == torch.bfloat16
    assert Predictor(LoadedModel(talker), memory_dtype="float32").memory_dtype == torch.float32
    with pytest.raises(UserError, match="unknown dtype of memories"):
        Predictor(LoadedModel(talker), memory_dtype="float64")
    with pytest.raises(UserError, match="unknown recipe"):
        Predictor(LoadedModel(talker), recipe="best")
    with pytest.raises(UserError, match="unknown frames of a video"):
        Predictor(LoadedModel(talker), video_frames="last")
    with pytest.raises(UserError, match="unknown propagation"):
        Predictor(LoadedModel(talker), propagate="sam")
    with pytest.raises(UserError, match=r"--propagate sam2: the model has no mask decoder of SAM 2's own.*--sam2"):
        Predictor(LoadedModel(talker), propagate="sam2")
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(UserError, match="x: no picture"):
            predictor.segment([wrong], ["a"], ["x"])
