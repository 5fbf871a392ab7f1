"""The example of a conversation runs with a tiny model, and says what `Chat` does."""

from __future__ import annotations

import pytest
from PIL import Image

from examples.conversation import CAPTION, main
from inference.loading import load
from inference.predictor import Predictor
from tests.inference.conftest import composed_once, photos, talker  # noqa: F401 (fixtures)
from trainer.released.folder import save_model


@pytest.mark.slow
def test_the_example_talks_about_a_picture(talker, photos, tmp_path, capsys):  # noqa: F811
    save_model(talker, tmp_path / "mine")
    picture = photos[0][:200]
    Image.fromarray(picture).save(tmp_path / "cat.png")
    main(str(tmp_path / "mine"), str(tmp_path / "cat.png"), "120,80", max_new_tokens=2)
    said = capsys.readouterr().out
    chat = Predictor(load(str(tmp_path / "mine")), max_new_tokens=2).chat(picture)
    first = chat.ask(CAPTION)
    region = chat.region_at(points=[(120, 80)])
    second = chat.ask("What is region1?", region[None])
    third = chat.ask("And where is it?")
    masks = "".join(f"  (no phrase): [{mask.sum()}] pixels\n" for mask in first.masks)
    assert len(first.masks) == 2 and said.startswith(f"{first.plain}\n{masks}region1: {region.sum()} pixels\n... ")
    assert said.endswith(f"\n{second.plain}\n{third.plain}\n")
