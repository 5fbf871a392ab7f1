"""Captions of regions: what is asked, how answers are measured, and a model's own answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from evaluation.published.compare import compare
from evaluation.published.datasets import opened, region_caption
from evaluation.published.datasets.named import BENCHMARKS
from evaluation.published.datasets.region_caption import caption_of, words_shared
from evaluation.published.measures import Ratio
from evaluation.published.predictions import Prediction, read_predictions
from evaluation.published.run import Asking, benchmark
from inference.predictor import Predictor
from tests.evaluation.published.conftest import (
    ITEMS,
    NAME,
    OBJECTS,
    PHOTOS,
    SENTENCES,
    refs_of,
    truth_of,
    write_refer,
)
from tests.joined import Joined, command_line
from trainer.released.loaded import LoadedModel

QUESTION = "<image>\nPlease give me a short description of the region in the picture marked by region1."
TEXTS = {f"{n + 500}:{10 * n + k}": text for n, texts in SENTENCES.items() for k, text in enumerate(texts)}


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("raw")
    pictures = root / "train2014"
    pictures.mkdir()
    for number, photo in PHOTOS.items():
        Image.fromarray(photo).save(pictures / NAME.format(number), quality=90)
    write_refer(root, "refcocog", refs_of("val"), "refs(umd).p")
    return root


def test_every_sentence_of_an_object_is_an_item(raw):
    with opened(BENCHMARKS["region-caption"], raw, "val") as found:
        truths = [(one, found.read(one)) for one in found.asked]
    items = {item.id: (item, truth) for one, truth in truths for item in one.items}
    assert items.keys() == TEXTS.keys()
    for key, (item, truth) in items.items():
        assert item.question == QUESTION and item.phrase == TEXTS[key].lower().strip(".!")
        np.testing.assert_array_equal(truth.regions[key], truth_of(ITEMS[key]))


def test_an_answer_becomes_the_caption_that_is_measured():
    said = "Region1:\nThe region marked by <p> a cat </p> [SEG] shows this cat  that is black.'"
    assert caption_of(said) == "a cat th cat that black."
    assert words_shared("A cat, a cat", "the CAT") == 2 * 1 / (2 + 2) and words_shared("", "x") == 0


def write(folder: Path, texts: dict[str, str]) -> Path:
    folder.mkdir()
    lines = [Prediction(item, "", text, ()).to_line() for item, text in texts.items()]
    (folder / "predictions.jsonl").write_bytes(b"".join(lines))
    return folder / "predictions.jsonl"


def test_captions_without_java_have_a_page(raw, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    file = write(tmp_path / "a", TEXTS)
    (said,) = benchmark(["region-caption"], raw, file.parent, predictions=file)
    assert "METEOR and CIDEr are not measured: " in said
    assert f"the split has {len(TEXTS)} items here and 4,896 as published" in said
    assert json.loads((file.parent / "results.json").read_text())["measures"] == {}
    page = (file.parent / "report.html").read_text()
    assert "the animal with whiskers" in page and "words shared 100.00" in page
    assert '<p>Colours: <b class="right">region</b>.</p>' in page


def test_captions_are_measured_and_compared(raw, tmp_path, monkeypatch):
    def measures(answers: list[str], truths: list[list[str]]) -> dict:
        right = [float([answer] == truth) for answer, truth in zip(answers, truths, strict=True)]
        return {"METEOR": [Ratio(np.array(right), np.ones(len(right)))]}

    monkeypatch.setattr(region_caption, "missing", lambda: "")
    monkeypatch.setattr(region_caption, "caption_measures", measures)
    sent = {key: text.lower().strip(".!") for key, text in TEXTS.items()}
    first, *others = sent
    files = write(tmp_path / "a", sent), write(tmp_path / "b", dict.fromkeys(others, "cat") | {"9:9": "x"})
    (said,) = benchmark(["region-caption"], raw, files[0].parent, predictions=files[0])
    without_is = sum("is" not in text for text in sent.values())  # Sa2VA's script removes "is"
    found = json.loads((files[0].parent / "results.json").read_text())["measures"]
    assert found == {"METEOR": pytest.approx(without_is / len(sent))} and "METEOR" in said
    compare(*files, tmp_path / "out", draws=50)
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    right = sum("is" not in text for key, text in sent.items() if key != first)
    assert found["items"] == len(others)
    assert found["measures"]["METEOR"]["difference"] == pytest.approx((1 - right) / len(others))


def test_a_region_without_a_cell_is_not_asked_about_and_the_run_says_so(raw, model_folder, tmp_path, monkeypatch):
    """It has 2 x 2 pixels, of which the recipe of the released models makes no cell."""
    monkeypatch.setattr("shutil.which", lambda name: None)
    root = Path(shutil.copytree(raw, tmp_path / "raw"))
    file = root / "refcocog" / "instances.json"
    body = json.loads(file.read_text())
    small = next(one for one in body["annotations"] if one["id"] == 31)
    mask = np.zeros(PHOTOS[3].shape[:2], np.uint8)
    mask[100:102, 100:102] = 1
    small["segmentation"]["counts"] = coco.encode(np.asfortranarray(mask))["counts"].decode()
    file.write_text(json.dumps(body))
    asking = Asking(str(model_folder), tiles=1, max_new_tokens=2, batch_size=8, device="cpu", recipe="sa2va")
    for _ in range(2):  # the second time nothing is to be done
        (said,) = benchmark(["region-caption"], root, tmp_path / "out", asking=asking)
        assert "left out: 1 without an answer" in said
    folder = tmp_path / "out" / "region-caption-val"
    assert read_predictions(folder / "predictions.jsonl").of_item.keys() == {n for n in ITEMS if ITEMS[n] != 31}
    assert json.loads((folder / "results.json").read_text())["counts"]["left_out"] == {"without an answer": 1}


@pytest.mark.slow
def test_two_processes_and_a_killed_one_give_the_answers_of_the_model(raw, model_folder, talker, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")  # Java takes long
    options = ("--max-new-tokens", "4", "--tiles", "1", "--batch-size", "2", "--device", "cpu")
    arguments = ["benchmark", "--on", "region-caption", "--root", str(raw), "--model", str(model_folder), *options]
    asking = Asking(str(model_folder), tiles=1, max_new_tokens=4, batch_size=2, device="cpu")
    list(benchmark(["region-caption"], raw, tmp_path / "one", asking=asking))
    folder = tmp_path / "one" / "region-caption-val"
    found = read_predictions(folder / "predictions.jsonl").of_item
    predictor = Predictor(LoadedModel(talker), max_new_tokens=4)
    pictures = {n: np.asarray(Image.open(raw / "train2014" / NAME.format(place))) for n, (place, _) in OBJECTS.items()}
    expected = {n: predictor.describe([pictures[n]], [truth_of(n)[None]], [QUESTION])[0] for n in OBJECTS}
    assert {key: one.answer for key, one in found.items()} == {key: expected[n] for key, n in ITEMS.items()}
    assert not any(one.masks for one in found.values())

    lines = (folder / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    copy = tmp_path / "two" / "region-caption-val"
    copy.mkdir(parents=True)
    (copy / "run.json").write_bytes((folder / "run.json").read_bytes())
    (copy / "predictions.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:30])  # as a kill leaves it
    run = Joined(2, command_line, [*arguments, "--out", str(tmp_path / "two")], log=tmp_path / "log")
    assert run.wait() == [0, 0]
    again = read_predictions(copy / "predictions.jsonl")
    assert again.of_item == found and not again.repeated
