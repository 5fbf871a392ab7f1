"""The items of each dataset, and the truth of each: as the raw files state it."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.published.datasets import opened
from evaluation.published.datasets.named import BENCHMARKS
from evaluation.published.datasets.referring import QUESTION
from evaluation.published.predictions import Prediction, Predictions, encode, one_picture, question_of
from evaluation.published.run import open_benchmarks
from evaluation.published.scoring import counted, notes_of, score
from shards.errors import UserError
from tests.evaluation.published.conftest import ITEMS, NAME, PHOTOS, SENTENCES, truth_of


def items_of(root: Path, name: str, split: str = "val"):
    """Return (item, truth of it, ignored pixels) of all items by their ids."""
    with opened(BENCHMARKS[name], root, split) as found:
        truths = [(picture.items, found.read(picture)) for picture in found.asked]
    return {item.id: (item, truth.masks.get(item.id), truth.ignored) for items, truth in truths for item in items}


def test_every_sentence_of_a_ref_is_an_item(root):
    found = items_of(root, "refcoco")
    assert found.keys() == ITEMS.keys()
    for item, mask, _ in found.values():
        np.testing.assert_array_equal(mask, truth_of(ITEMS[item.id]))
    asked = {item.question for item, _, _ in found.values()}
    texts = [text.lower().strip(".!") for texts in SENTENCES.values() for text in texts]
    assert asked == {f"<image>\n Please segment {text} in this image." for text in texts}


def test_a_sentence_may_spell_the_mark_of_a_picture(talker):
    question = QUESTION.format("an <image> on <image> paper")
    assert question_of(question) == "Please segment an <image> on <image> paper in this image."
    prompts = talker.prompts
    asked = prompts.decode(prompts.ask("x", one_picture(question)).ids)
    plain = prompts.decode(prompts.ask("x", QUESTION.format("THIS")).ids)
    assert asked == plain.replace("THIS", "an <image> on <image> paper")


def test_an_expression_is_the_union_of_its_objects_without_crowds(root, tmp_path):
    found = items_of(root, "grefcoco")
    assert {key: item.phrase for key, (item, _, _) in found.items()} == {
        **{"1:1": "cat and its eye", "2:2": "a dog", "3:3": "woman"}
    }
    np.testing.assert_array_equal(found["1:1"][1], truth_of(11) | truth_of(12))
    assert not found["2:2"][1].any() and found["2:2"][1].shape == PHOTOS[2].shape[:2]
    file = shutil.copytree(root, tmp_path / "raw") / "grefcoco/instances.json"
    body = json.loads(file.read_text())
    body["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(body))
    np.testing.assert_array_equal(items_of(tmp_path / "raw", "grefcoco")["1:1"][1], truth_of(12))


def test_reasonseg_asks_the_first_sentence_or_phrase_and_ignores_pixels(tmp_path):
    folder = tmp_path / "val"
    folder.mkdir()

    def shape(label: str, top: int, bottom: int, left: int, right: int) -> dict:
        corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
        return {"label": label, "shape_type": "polygon", "points": corners}

    target, ignored = shape("target", 10, 60, 20, 90), shape("ignore", 40, 120, 80, 200)
    for name, texts, is_sentence in (("a", [" What sleeps? ", "Who purrs?"], True), ("b", ["the cat"], False)):
        Image.fromarray(PHOTOS[1]).save(folder / f"{name}.jpg")
        content = {"text": texts, "is_sentence": is_sentence, "shapes": [target, ignored]}
        (folder / f"{name}.json").write_text(json.dumps(content))
    found = items_of(tmp_path, "reasonseg")
    assert {key: item.question for key, (item, _, _) in found.items()} == {
        "val/a.jpg#1": "<image>\n What sleeps? Please output segmentation mask.",
        "val/b.jpg#1": "<image>\n What is the cat in this image? Please output segmentation mask.",
    }
    expected = np.zeros(PHOTOS[1].shape[:2], int)
    expected[40:121, 80:201] = 2
    expected[10:61, 20:91] = 1  # the smaller shape is over the larger one
    for _, mask, pixels in found.values():
        np.testing.assert_array_equal(mask, expected == 1)
        np.testing.assert_array_equal(pixels, expected == 2)
    answer = expected > 0  # all of it is right or ignored
    with opened(BENCHMARKS["reasonseg"], tmp_path, "val") as opened_split:
        of_item = {key: Prediction(key, "", "", (encode(answer),)) for key in found}
        assert score(opened_split, Predictions(of_item, 0), "x").values["cIoU"] == 1


def test_what_cannot_be_measured_is_counted(root, tmp_path):
    raw = shutil.copytree(root, tmp_path / "raw")
    (raw / "images/mscoco/images/train2014" / NAME.format(2)).unlink()
    file = raw / "refcoco/instances.json"
    body = json.loads(file.read_text())
    body["annotations"][1]["segmentation"] = []  # its left eye
    file.write_text(json.dumps(body))
    of_item = {key: Prediction(key, "", "", (encode(truth_of(number)),)) for key, number in ITEMS.items()}
    with opened(BENCHMARKS["refcoco"], raw, "val") as found:
        predictions = Predictions(of_item | {"9:9": Prediction("9:9", "", "", ())}, 2)
        scored = score(found, predictions, "x")
        counts = counted(found, scored, predictions)
    assert scored.values["gIoU"] == pytest.approx(1, abs=1e-8)
    assert (counts["items"], counts["measured"], counts["unknown_lines"]) == (5, 4, 3)
    assert counts["left_out"] == {"whose object has no usable mask": 1, "pictures with no such file": 1}
    notes = notes_of(counts)
    assert "left out: 1 whose object has no usable mask" in notes and "left out: 1 pictures with no such file" in notes


def test_the_folder_of_sa2vas_data_is_a_root(root, tmp_path):
    nested = tmp_path / "ref_seg/refcoco"
    shutil.copytree(root / "refcoco", nested)
    shutil.copytree(root / "images/mscoco/images/train2014", nested / "coco2014/train2014")
    assert items_of(tmp_path, "refcoco").keys() == ITEMS.keys()


def test_all_takes_what_is_there(root, tmp_path, capsys):
    with ExitStack() as stack:
        found = [(one.benchmark.name, one.split) for one in open_benchmarks(["all"], root, None, stack)]
    assert found == [("refcoco", "val"), ("grefcoco", "val")]
    assert capsys.readouterr().err.count("not measured: ") == len(BENCHMARKS) - 2
    with pytest.raises(UserError, match="no data of a benchmark"):
        open_benchmarks(["all"], tmp_path, None, ExitStack())
