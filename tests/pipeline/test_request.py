"""A request is all that a set's bytes follow from, beside the raw data: frozen, checked, picklable."""

import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from pipeline.request import Request, make_request
from pipeline.sources import source_named
from shards.errors import UserError
from shards.recipe import RECIPES


def test_choices_have_their_defaults():
    request = make_request("refcoco", split="val", frames=None)
    assert dict(request.choices) == {**source_named("refcoco").choices, "split": "val"}
    assert request.root == Path("data/refcoco")
    assert Request(source_named("refcoco"), Path("data/refcoco"), choices={"split": "val"}) == request


def test_a_recipe_is_named_and_changed():
    assert make_request("sav").recipe == RECIPES["default"]
    assert make_request("sav", recipe="sa2va", prompt_pooling="area").recipe.prompt_pooling == "area"


def test_it_is_frozen_and_picklable():
    request = make_request("coco", Path("raw"), codec="raw", limit=3, split="val")
    copy = pickle.loads(pickle.dumps(request))
    assert (copy.root, copy.codec, copy.limit, copy.choices) == (Path("raw"), "raw", 3, request.choices)
    with pytest.raises(FrozenInstanceError):
        request.codec = "zstd"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "imagenet"}, "unknown source"),
        ({"source": "sav", "recipe": "mine"}, "unknown recipe"),
        ({"source": "sav", "prompt_pooling": "max"}, "unknown pooling"),
        ({"source": "sav", "frames": 5}, "not an option of this source"),
    ],
)
def test_what_does_not_exist_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        make_request(**arguments)
