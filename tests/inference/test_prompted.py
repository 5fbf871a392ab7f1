"""Boxes and clicks become the masks that the `sam2` package itself makes of them."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sam2.sam2_image_predictor import SAM2ImagePredictor

from inference.predictor import Predictor
from inference.prompted import Prompt, parse_prompt, region_at, uses_original_decoder
from pipeline import resize
from shards.errors import UserError
from trainer.model.sa2va import Sa2VA
from trainer.released.loaded import LoadedModel


@pytest.fixture(scope="module")
def clicked(talker: Sa2VA) -> dict[bool, Predictor]:
    """A model with both mask decoders, which differ and tell their masks apart; and the same without SAM 2's own."""
    model = copy.deepcopy(talker)
    original = model.grounding_encoder.add_original_decoder()
    torch.manual_seed(1)
    for decoder in (original, model.grounding_encoder.sam2_model.sam_mask_decoder):
        torch.nn.init.normal_(decoder.iou_prediction_head.layers[-1].weight)
        for mlp in decoder.output_hypernetworks_mlps:
            torch.nn.init.normal_(mlp.layers[-1].weight, std=0.5)
    trained_alone = copy.deepcopy(model)
    trained_alone.grounding_encoder.original_mask_decoder = None
    return {True: Predictor(LoadedModel(model)), False: Predictor(LoadedModel(trained_alone))}


PROMPTS = {
    "a click": (None, [(30, 40)], [True]),
    "a box": ((10, 20.5, 200, 150), [], []),
    "clicks on and off": (None, [(30, 40), (250, 90), (100, 199.5)], [True, False, True]),
    "a box with clicks": ((0, 0, 300, 200), [(30, 40), (250, 90)], [True, False]),
    "a box with one click off": ((50, 60, 300, 200), [(60, 70)], [False]),
}


@pytest.mark.parametrize("both", [True, False], ids=["original decoder", "trained decoder"])
def test_regions_are_those_of_sam_2_s_image_predictor(clicked, photos, both: bool):
    """On the picture that this project resizes: SAM 2's predictor is told the size of the original."""
    predictor = clicked[both]
    encoder = predictor.model.grounding_encoder
    sam = copy.deepcopy(encoder.original_sam() if both else encoder.sam2_model)
    sam.image_encoder.neck.position_encoding = encoder.positions  # `sam2` asks for the sizes of their maps
    assert uses_original_decoder(predictor) is both
    photo = photos[0][:200, :300].copy()
    official = SAM2ImagePredictor(sam)
    official.set_image(resize.picture(photo, 1024, predictor.recipe).transpose(1, 2, 0).copy())
    official._orig_hw = [photo.shape[:2]]
    chat = predictor.chat(photo)
    chosen = set()
    found = []
    for box, points, labels in PROMPTS.values():
        masks, scores, _ = official.predict(
            point_coords=np.array(points, np.float32) if points else None,
            point_labels=np.array(labels, np.int32) if points else None,
            box=None if box is None else np.array(box, np.float32),
            multimask_output=box is None and len(points) == 1,
        )
        region = chat.region_at(box=box, points=points, labels=labels)
        chosen.add((len(masks), int(scores.argmax())))
        assert region.dtype == bool and region.shape == (200, 300) and 0 < region.mean() < 1
        assert np.count_nonzero(region != (masks[scores.argmax()] > 0)) <= 6  # pixels whose logit is 0 up to rounding
        found.append(region)
    assert all(np.count_nonzero(one != other) > 20 for one, other in pairwise(found))
    assert any(count == 3 and best for count, best in chosen)  # the choice is not always the first
    box, points, labels = PROMPTS["a box with clicks"]
    assert np.array_equal(region_at(predictor, photo, box=box, points=points, labels=labels), found[3])


def test_the_decoder_as_released_is_preferred(clicked, photos):
    one, other = (region_at(clicked[both], photos[1], points=[(5, 5)]) for both in (True, False))
    assert (one != other).mean() > 0.01


@pytest.mark.parametrize(
    "prompt, message",
    [
        ({}, "needs a box or a point on the object; met neither"),
        ({"points": [(1, 1)], "labels": [False]}, "met 1 points, none of them on the object"),
        ({"points": [(1, 1)], "labels": [True, True]}, "differ in number; met 2 labels; wanted 1"),
        ({"points": [(300, 1)]}, r"a point outside the picture; met 300,1; wanted 0 <= X < 300, 0 <= Y < 512"),
        ({"points": [(1, -0.5)]}, "a point outside the picture; met 1,-0.5"),
        ({"points": [(math.nan, 1)]}, "a point outside the picture; met nan,1"),
        ({"points": [(1, math.inf)]}, "a point outside the picture; met 1,inf"),
        ({"box": (10, 10, 10, 20)}, r"a box that is empty or outside.*met 10,10,10,20"),
        ({"box": (20, 10, 10, 20)}, "a box that is empty or outside"),
        ({"box": (0, 0, 301, 20)}, r"wanted 0 <= X0 < X1 <= 300, 0 <= Y0 < Y1 <= 512"),
        ({"box": (0, 0, math.nan, 20)}, "a box that is empty or outside"),
        ({"box": (0, 0, 9, 9), "points": [(999, 1)]}, "a point outside the picture"),
    ],
)
def test_prompts_that_mean_nothing_are_one_line(predictor: Predictor, photos, prompt, message):
    with pytest.raises(UserError, match=rf"me\.png: .*{message}"):
        region_at(predictor, photos[1], name="me.png", **prompt)


def test_a_video_has_no_clicks(predictor: Predictor, photos):
    with pytest.raises(UserError, match="belong to a picture; met a video"):
        predictor.chat(photos[:2]).region_at(points=[(1, 1)])


@pytest.mark.parametrize(
    "text", ["", "1,2,3", "1;2", "-1,2", "nan,1", "1,2+3", "1,2*3,4", "1e3,2", "1,2,3,4,5", "\u0661,2", "1,2 3,4"]
)
@pytest.mark.parametrize("box", [True, False])
def test_what_is_no_prompt_on_the_command_line(text: str, box: bool):
    with pytest.raises(UserError, match=r"--box: not a box" if box else r"--point: not a point"):
        parse_prompt(text, box=box)


def test_prompts_as_the_command_line_writes_them():
    assert parse_prompt(" .5,40.+7,8-250,90.5", box=False) == Prompt(
        None, ((0.5, 40.0), (7.0, 8.0), (250.0, 90.5)), (True, True, False)
    )
    assert parse_prompt("1,2,3,4", box=True) == Prompt((1, 2, 3, 4))
    assert parse_prompt("1,2,3,4-5,6", box=True) == Prompt((1, 2, 3, 4), ((5, 6),), (False,))
    for text, box in (("1,2,3,4", False), ("1,2", True)):
        with pytest.raises(UserError, match="not a"):
            parse_prompt(text, box=box)
