"""Predictions with tensors that carry a pretended device; see tests/devices.py."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest

from inference.predictor import Predictor
from tests.devices import PretendedDevice, pretended_gpu, register  # noqa: F401 (a fixture)
from trainer.model.sa2va import Sa2VA
from trainer.released.loaded import LoadedModel


@pytest.mark.slow
def test_prediction(gpu: PretendedDevice, talker: Sa2VA, photos: list[np.ndarray]):
    """The answers and masks are those of the CPU, within rounding: attention is computed another way."""
    models = [talker, deepcopy(talker).to(register())]
    here, away = (Predictor(LoadedModel(model), max_new_tokens=3, most_tiles=1) for model in models)
    photo = photos[0][::4, ::4].copy()
    asked = [photo], ["Please segment it."]
    [expected] = here.segment(*asked)
    [answer] = away.segment(*asked)
    assert answer.text == expected.text and len(answer.masks) == len(expected.masks) > 0
    assert (answer.masks != expected.masks).mean() < 1e-3
    region = np.zeros((1, *photo.shape[:2]), bool)
    region[:, 10:50, 10:50] = True
    assert away.describe([photo], [region]) == here.describe([photo], [region])
    track = away.track([photo] * 6, "Please segment it.")  # SAM 2's memory makes the masks of one of the 6 frames
    assert track.objects > 0 and len([*track.masks]) == 6


@pytest.mark.slow
def test_a_conversation(gpu: PretendedDevice, talker: Sa2VA, photos: list[np.ndarray]):
    """Keys and values are kept on the device, and so are the features for clicks."""
    photo = photos[0][::4, ::4].copy()
    region = np.zeros((1, *photo.shape[:2]), bool)
    region[:, 10:50, 10:50] = True
    found = []
    for model in (talker, deepcopy(talker).to(register())):
        chat = Predictor(LoadedModel(model), max_new_tokens=2).chat(photo)
        replies = [chat.ask("Where?"), chat.ask("And?"), chat.ask("region1?", region)]
        clicked = chat.region_at(box=(9, 9, 60, 50), points=[(20, 20)], labels=[False])
        found.append(([reply.text for reply in replies], [reply.reused for reply in replies], clicked))
    (texts, reused, clicked), (texts_away, reused_away, clicked_away) = found
    assert texts == texts_away and reused == reused_away and (clicked != clicked_away).mean() < 1e-3
