"""Grounded captions: measures of predictions, text similarity by a model in a folder, and a model's own answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertModel, BertTokenizerFast

from evaluation.published.compare import compare
from evaluation.published.datasets import Options, gcg
from evaluation.published.datasets.gcg import QUESTION, caption_of, phrases_of
from evaluation.published.measures import Ratio
from evaluation.published.predictions import Prediction, encode, read_predictions
from evaluation.published.run import Asking, benchmark
from evaluation.published.texts import TextModel
from shards.errors import UserError
from tests.evaluation.published.conftest import PHOTOS
from tests.pipeline.sources.videos import run_lengths

NAMES = {"sa_1": 1, "sa_2": 2}
WORDS = ("a", "cat", "its", "eye", "cup", "spoon", "the", "table")
PHRASES = {"sa_1": ["a cat", "its eye"], "sa_2": ["the cup", "a spoon", "table"]}


def boxes(name: str) -> list[np.ndarray]:
    """Return one mask for each phrase of a picture; they do not overlap."""
    masks = np.zeros((len(PHRASES[name]), *PHOTOS[NAMES[name]].shape[:2]), bool)
    for n, mask in enumerate(masks):
        mask[20:100, 60 * n : 60 * n + 50] = True
    return list(masks)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("gcg")
    pictures, files = root / "glamm_data/images/grandf/val_test", root / "glamm_data/annotations/gcg_val_test"
    pictures.mkdir(parents=True)
    files.mkdir(parents=True)
    captions, masks = [], []
    for name, number in NAMES.items():
        Image.fromarray(PHOTOS[number]).save(pictures / f"{name}.jpg")
        captions.append({"id": number, "image_id": name, "caption": f"This is {name}.", "labels": PHRASES[name]})
        for mask in boxes(name):
            masks.append({"id": len(masks), "image_id": name, "category_id": 1, "segmentation": run_lengths(mask)})
    images = [{"id": name} for name in NAMES]
    (files / "val_gcg_coco_caption_gt.json").write_text(json.dumps({"images": images, "annotations": captions}))
    (files / "val_gcg_coco_mask_gt.json").write_text(json.dumps({"images": images, "annotations": masks}))
    return root


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=13, initializer_range=1.0, **sizes)).save_pretrained(folder)
    return folder


def measure(
    root: Path, folder: Path, answers: dict[str, tuple[list[str], list[np.ndarray]]], **more
) -> tuple[dict, str]:
    lines = []
    for name, (phrases, masks) in answers.items():
        text = "There: " + " and ".join(f"<p> {phrase} </p> [SEG]" for phrase in phrases)
        lines.append(Prediction(name, "", text, tuple(map(encode, masks))).to_line())
    (folder / "predictions.jsonl").write_bytes(b"".join(lines))
    (said,) = benchmark(["gcg"], root, folder, predictions=folder / "predictions.jsonl", **more)
    return json.loads((folder / "results.json").read_text())["measures"], said


def test_grounded_captions_are_measured(raw, bert, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)  # captions need Java
    right = {name: (PHRASES[name], boxes(name)) for name in NAMES}
    found, said = measure(raw, tmp_path, right, options=Options(bert))
    assert found == pytest.approx({"mIoU": 1, "recall": 1, "AP50": 1}) and "METEOR and CIDEr are not measured: " in said
    half = boxes("sa_1")[1].copy()
    half[:60] = False
    shifted = np.roll(boxes("sa_2")[0], 30, axis=1)  # 20 of 80 columns in common with the first, 20 + 10 others
    answers = {"sa_1": (PHRASES["sa_1"], [boxes("sa_1")[0], half]), "sa_2": (["the cup"], [shifted])}
    found, said = measure(raw, tmp_path, answers)
    best = max(float((shifted & box).sum() / (shifted | box).sum()) for box in boxes("sa_2"))
    assert found["mIoU"] == pytest.approx(((1 + 0.5) / 2 + best) / 2)
    assert found["recall"] is None and "recall is not measured: give --text-model" in said
    found, _ = measure(raw, tmp_path, answers, options=Options(bert))
    assert found["recall"] == 2 / 5  # both of the first picture, none of the second's three
    assert "This is sa_1." in (tmp_path / "report.html").read_text()


def test_captions_are_measured_where_the_package_is(raw, tmp_path, monkeypatch):
    given = []

    def measures(answers: list[str], truths: list[list[str]]) -> dict:
        given.append((answers, truths))
        return {"METEOR": [Ratio(np.array([0.25, 0.75]), np.ones(2))]}

    monkeypatch.setattr(gcg, "missing", lambda: "")
    monkeypatch.setattr(gcg, "caption_measures", measures)
    found, said = measure(raw, tmp_path, {name: (PHRASES[name], boxes(name)) for name in NAMES})
    assert found["METEOR"] == 0.5 and "50.00" in said
    captions = ["There: a cat and its eye", "There: the cup and a spoon and table"]
    assert given == [(captions, [["This is sa_1."], ["This is sa_2."]])]


def test_all_measures_of_two_models_are_compared(raw, bert, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)  # captions need Java
    answers = {name: (PHRASES[name], boxes(name)) for name in NAMES}
    worse = answers | {"sa_2": (["the cup", "x", "x"], boxes("sa_2"))}
    files = []
    for name, given in (("a", answers), ("b", worse), ("c", worse | {"sa_2": (["the cup"], boxes("sa_2")[:1])})):
        (tmp_path / name).mkdir()
        measure(raw, tmp_path / name, given)
        files.append(tmp_path / name / "predictions.jsonl")

    def differences(other: Path) -> dict:
        compare(files[0], other, tmp_path / "out", draws=40, options=Options(bert))
        found = json.loads((tmp_path / "out/compare.json").read_text())["measures"]
        return {key: value["difference"] for key, value in found.items()}

    recalled = TextModel(bert).similarity(PHRASES["sa_2"], ["the cup", "x", "x"]).diagonal()
    lost = 3 - int(np.cumprod(recalled >= 0.5).sum())
    assert differences(files[1]) == pytest.approx({"mIoU": 0, "recall": -lost / 5, "AP50": 0}) and lost
    # Three of five are found, all of them right: precision 1 up to recall 3/5, of 101 levels 61.
    assert differences(files[2]) == pytest.approx({"mIoU": 0, "recall": -2 / 5, "AP50": 61 / 101 - 1})


def test_a_mask_without_a_phrase_counts_nothing_of_its_picture(raw, bert, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)  # captions need Java
    answers = {"sa_1": (["a cat"], boxes("sa_1")), "sa_2": (PHRASES["sa_2"], boxes("sa_2"))}
    assert measure(raw, tmp_path, answers, options=Options(bert))[0]["recall"] == 3 / 5


def test_similarity_is_the_cosine_of_mean_states(bert):
    texts, others = ["a cat", "its eye cup"], ["a cat", "the table", "spoon"]
    found = TextModel(bert).similarity(texts, others)
    model, tokenizer = BertModel.from_pretrained(bert).eval(), BertTokenizerFast.from_pretrained(bert)
    with torch.no_grad():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1) for text in texts + others]
    for i in range(2):
        for j in range(3):
            cosine = torch.nn.functional.cosine_similarity(states[i], states[2 + j]).item()
            assert found[i, j] == pytest.approx(cosine, abs=1e-5)
    assert found[0, 0] == pytest.approx(1) and abs(found[1, 1]) < 0.99


def test_a_folder_without_a_text_model_is_one_line(raw, tmp_path):
    with pytest.raises(UserError, match="no text model"):
        measure(raw, tmp_path, {}, options=Options(tmp_path))


def test_an_answer_is_taken_apart():
    answer = "'<p> A cat </p> [SEG] looks at\n <p>m\ne</p> [SEG].'"
    assert phrases_of(answer) == ["A cat", "me"] and caption_of(answer) == "A cat looks at me ."


@pytest.mark.slow
def test_a_model_describes_each_picture(raw, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)  # captions need Java
    asking = Asking(str(model_folder), max_new_tokens=3, device="cpu", tiles=1)
    assert len([*benchmark(["gcg"], raw, tmp_path, asking=asking)]) == 1
    found = read_predictions(tmp_path / "gcg-val/predictions.jsonl").of_item
    assert found.keys() == NAMES.keys()
    question = QUESTION.removeprefix("<image>\n")
    assert {one.question for one in found.values()} == {question}
    with pytest.raises(UserError, match="answers of another run; met questions"):
        list(benchmark(["gcg"], raw, tmp_path, asking=asking, options=Options(blanks=True)))
    assert len([*benchmark(["gcg"], raw, tmp_path / "b", asking=asking, options=Options(blanks=True), limit=1)]) == 1
    (one,) = read_predictions(tmp_path / "b/gcg-val/predictions.jsonl").of_item.values()
    assert one.question != question and " ".join(one.question.split()) == question
