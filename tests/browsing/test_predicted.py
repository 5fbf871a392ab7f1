"""Predictions beside the truth: lines that name samples and lines that do not, sorted; their masks."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from browsing.app import make_app
from browsing.collection import Collection
from browsing.predicted import PredictedFile, positions_of
from evaluation.published.predictions import Prediction, encode
from shards.reader import ShardSet

MASK = np.zeros((30, 40), np.bool_)
MASK[5:20, 10:35] = True


@pytest.fixture
def client(sets: Path, tmp_path: Path):
    shards = ShardSet(sets / "sav")
    lines = []
    for n, iou in enumerate((0.5, None, 0.125, 0.75)):
        about = {"set": "sav", "key": shards.key(n + 1), "objects": [0], "frame": 2} if n != 2 else {}
        numbers = {} if iou is None else {"iou": iou}
        lines.append(Prediction(f"i{n}", f"<b>q{n}</b>", "", (encode(MASK),) if n else (), numbers, about).to_line())
    lines.append(Prediction("i4", "", "", (), {}, {"set": "sav", "key": "no-such-key", "objects": "x"}).to_line())
    (tmp_path / "p.jsonl").write_bytes(b"".join(lines) + b'{"item": "torn')
    collection = Collection.open([sets])
    predicted = PredictedFile(tmp_path / "p.jsonl", collection)
    with TestClient(make_app(collection, {}, None, predicted), base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize(("sort", "items"), [("", "01234"), ("iou", "20314"), ("-iou", "30214")])
def test_lines_are_sorted_and_name_their_samples(client, sort, items):
    found = client.get("/predictions", params={"sort": sort}).json()
    assert [one["item"] for one in found["predictions"]] == [f"i{n}" for n in items]
    assert (found["total"], found["linked"]) == (5, 3)
    part = client.get("/predictions", params={"sort": sort, "begin": 1, "count": 2}).json()["predictions"]
    assert part == found["predictions"][1:3]
    of_item = {one["item"]: one for one in found["predictions"]}
    linked = of_item["i1"]
    assert (linked["set"], linked["position"], linked["frame"], linked["objects"]) == ("sav", 2, 2, "0")
    assert "set" not in of_item["i2"] and "set" not in of_item["i4"]


def test_masks_have_their_own_size_and_their_pixels(client):
    layer = Image.open(io.BytesIO(client.get("/predictions/1/mask").content), formats=["PNG"]).convert("RGBA")
    assert np.array_equal(np.asarray(layer)[..., 3] > 0, MASK)
    assert client.get("/predictions/5/mask").json() == {"error": "no such prediction; met 5"}


def test_what_is_no_prediction_is_one_line(sets, tmp_path):
    collection = Collection.open([sets / "sav"])
    for text, message in (('{"item": 3}\n', "not a prediction"), ("", "")):
        (tmp_path / "p.jsonl").write_text(text)
        app = make_app(collection, {}, None, PredictedFile(tmp_path / "p.jsonl", collection))
        with TestClient(app, base_url="http://localhost") as client:
            answer = client.get("/predictions").json()
            assert message in answer.get("error", "") and (message or answer["total"] == 0)
    with TestClient(make_app(collection, {}), base_url="http://localhost") as client:
        assert client.get("/predictions").status_code == 404
        assert json.loads(client.get("/api/sets").text)["predictions"] == ""


def test_positions_of_keys(sets):
    shards = ShardSet(sets / "sav")
    keys = [shards.key(5), "nothing", shards.key(0), "", shards.key(5), "\u00e9"]
    assert positions_of(shards, keys).tolist() == [5, -1, 0, -1, 5, -1]
