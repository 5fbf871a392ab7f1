"""A page with a tiny model that says what the test wants, and masks what its random weights mask."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from inference.predictor import Predictor
from serving.limits import Limits
from serving.server import serving
from tests.inference.conftest import photos, talker  # noqa: F401 (fixtures)
from tests.models import composed_once  # noqa: F401 (a fixture)
from trainer.model.sa2va import Sa2VA
from trainer.released.loaded import LoadedModel

ANSWER = "<p>A cat</p> [SEG] with <p>an <b>eye</b> & ear</p> [SEG]."
PLAIN = "A cat with an <b>eye</b> & ear."
LIMITS = Limits(upload=2_000_000, sessions=8, letters=300, regions=3, frames=3)


class Scripted(torch.nn.Module):
    """Says the same tokens again and again, after `pause` seconds each: logits (B, V) of states (B, D)."""

    def __init__(self, ids: list[int], vocabulary: int) -> None:
        super().__init__()
        self.ids = ids
        self.vocabulary = vocabulary
        self.said = 0
        self.pause = 0.0

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        logits = states.new_zeros(len(states), self.vocabulary)
        logits[:, self.ids[self.said % len(self.ids)]] = 1
        self.said += 1
        time.sleep(self.pause)
        return logits


def answer_ids(model: Sa2VA) -> list[int]:
    """Return the tokens of `ANSWER`."""
    return [*model.prompts.encode(ANSWER), model.prompts.end_tokens[0]]


@pytest.fixture(scope="session")
def speaker(talker: Sa2VA) -> Predictor:  # noqa: F811
    """Answers `ANSWER` to everything."""
    model = copy.deepcopy(talker)
    ids = answer_ids(model)
    model.language_model.lm_head = Scripted(ids, model.language_model.lm_head.out_features)
    return Predictor(LoadedModel(model), recipe="default", max_new_tokens=len(ids))


@pytest.fixture
def endless(speaker: Predictor, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """The head of `speaker`, which says "and and and" for more than a minute."""
    head = speaker.model.language_model.lm_head
    assert isinstance(head, Scripted)
    monkeypatch.setattr(head, "ids", speaker.model.prompts.encode("and "))
    monkeypatch.setattr(head, "said", 0)
    monkeypatch.setattr(head, "pause", 0.05)
    monkeypatch.setattr(speaker, "max_new_tokens", 1500)
    return head


@pytest.fixture(scope="module")
def address(speaker: Predictor) -> Iterator[str]:
    """The address of a page with `speaker`."""
    with serving(speaker, limits=LIMITS) as url:
        yield url


@pytest.fixture(scope="session")
def cat(photos, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A photograph, 451 x 300."""
    path = tmp_path_factory.mktemp("cat") / "cat.png"
    Image.fromarray(photos[0]).save(path)
    return path
