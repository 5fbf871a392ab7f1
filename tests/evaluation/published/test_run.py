"""The verb benchmark: predictions of any program, and a model's own, in one process and in several that are killed."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cli
from evaluation.published.answering import digest_of, make_groups
from evaluation.published.datasets import Asked, Item
from evaluation.published.predictions import Prediction, encode, read_predictions
from evaluation.published.run import Asking, benchmark
from inference.predictor import Predictor
from shards.errors import UserError
from tests.evaluation.published.conftest import ITEMS, NAME, OBJECTS, SENTENCES, truth_of
from tests.joined import Joined, command_line
from trainer.released.loaded import LoadedModel


def shifted(mask: np.ndarray, by: int) -> np.ndarray:
    return np.roll(mask, by, axis=1)


@pytest.fixture
def predicted(tmp_path) -> tuple[Path, dict[str, np.ndarray]]:
    """A file of predictions for all items but one, and the union of each; one item has no mask, one has two."""
    unions = {item: shifted(truth_of(number), n) for n, (item, number) in enumerate(ITEMS.items())}
    lines = []
    for n, (item, mask) in enumerate(unions.items()):
        half = mask.copy()
        half[: mask.shape[0] // 2] = False
        masks = [(mask,), (), (half, mask & ~half)][n if n < 3 else 0]
        lines.append(Prediction(item, "?", "[SEG]" * len(masks), tuple(map(encode, masks))).to_line())
    unions[[*unions][1]][:] = False
    file = tmp_path / "theirs" / "predictions.jsonl"
    file.parent.mkdir()
    file.write_bytes(b"".join(lines[:-1]))
    return file, dict([*unions.items()][:-1])


def test_predictions_of_another_program_are_measured(root, predicted):
    file, unions = predicted
    (said,) = benchmark(["refcoco"], root, file.parent, predictions=file)
    truths = {item: truth_of(number) for item, number in ITEMS.items()}
    both = [int((unions[item] & truths[item]).sum()) for item in unions]
    either = [int((unions[item] | truths[item]).sum()) for item in unions]
    ious = [a / b for a, b in zip(both, either, strict=True)]
    results = json.loads((file.parent / "results.json").read_text())
    assert results["measures"]["cIoU"] == sum(both) / sum(either)
    assert results["measures"]["gIoU"] == pytest.approx(np.mean(ious), abs=1e-8)
    for least in (0.5, 0.9):
        assert results["measures"][f"P@{least}"] == np.mean([iou >= least for iou in ious])
    counts = {"items": 7, "published_items": 10834, "measured": 6, "pictures": 3, "unknown_lines": 0}
    assert results["counts"].items() >= counts.items()
    assert results["counts"]["left_out"] == {"without an answer": 1}
    for note in ("7 items here and 10,834 as published", "left out: 1 without an answer", f"{100 * np.mean(ious):.2f}"):
        assert note in said
    page = (file.parent / "report.html").read_text()
    assert page.count("<img") == 3 * 2 * 6 and "the cup of coffee" in page
    assert '<b class="right">right</b>, <b class="missed">missed</b>, <b class="wrong">wrong</b>.</p>' in page
    assert page.index("the animal with whiskers") < page.index("<h2>Best")  # the one without a mask is the worst


def test_no_target_is_right_without_a_mask(root, tmp_path):
    file = tmp_path / "predictions.jsonl"
    cat = truth_of(11) | truth_of(12)
    answers = {"1:1": (encode(cat),), "2:2": (), "3:3": ()}
    file.write_bytes(b"".join(Prediction(item, "", "", masks).to_line() for item, masks in answers.items()))
    assert len([*benchmark(["grefcoco"], root, tmp_path, predictions=file)]) == 1
    measures = json.loads((tmp_path / "results.json").read_text())["measures"]
    assert measures["cIoU"] == cat.sum() / (cat.sum() + truth_of(31).sum())
    assert measures["gIoU"] == pytest.approx(2 / 3, abs=1e-8)
    assert (measures["N-acc"], measures["T-acc"], measures["P@0.5"]) == (1, 0.5, 0.5)


@pytest.mark.parametrize(
    "change, fault",
    [
        ({"names": ["refcoc"]}, "--on: no such benchmark; met refcoc"),
        ({"split": "train"}, "refcoco: no such split; met train; wanted val or testA or testB"),
        ({"asking": Asking("none")}, "exactly one of --model and --from"),
        ({"names": ["refcoco+"]}, "no such file"),
        ({"names": ["grefcoco"]}, "none of grefcoco val"),
    ],
)
def test_a_mistake_is_one_line(root, predicted, change, fault):
    file, _ = predicted
    given = {"names": ["refcoco"], "root": root, "out": file.parent, "predictions": file, **change}
    with pytest.raises(UserError, match=re.escape(fault)):
        list(benchmark(given.pop("names"), given.pop("root"), given.pop("out"), **given))


def test_a_mask_of_another_size_names_its_item(root, tmp_path):
    file = tmp_path / "predictions.jsonl"
    (item, *_) = ITEMS
    file.write_bytes(Prediction(item, "", "", (encode(truth_of(21)),)).to_line())
    with pytest.raises(UserError, match=rf"predictions\.jsonl, item {item}: mask and picture differ in size"):
        list(benchmark(["refcoco"], root, tmp_path, predictions=file))


def test_groups_have_one_number_of_tiles_and_fill_a_batch():
    def picture(name: str, count: int, size: tuple[int, int]) -> Asked:
        return Asked(name, tuple(Item(f"{name}{n}", "", "") for n in range(count)), size)

    wide, tall = (300, 900), (900, 300)
    pictures = [picture("a", 2, wide), picture("b", 1, (500, 500)), picture("c", 3, tall), picture("d", 9, tall)]
    groups = make_groups([*pictures, picture("e", 1, wide)], 4, 6)
    assert [[one.path for one in group] for group in groups] == [["b"], ["a", "c"], ["d"], ["e"]]


OPTIONS = ("--max-new-tokens", "3", "--tiles", "2", "--batch-size", "2", "--device", "cpu")


def arguments(root: Path, model: Path, out: Path) -> list[str]:
    return ["benchmark", "--on", "refcoco", "--root", str(root), "--model", str(model), "--out", str(out), *OPTIONS]


@pytest.fixture(scope="module")
def expected(root, talker) -> dict[str, Prediction]:
    """The answer to each item, asked by itself, without the code of benchmarks."""
    predictor = Predictor(LoadedModel(talker), most_tiles=2, max_new_tokens=3)
    answers = {}
    pictures = root / "images/mscoco/images/train2014"
    texts = {f"{n + 500}:{10 * n + k}": (n, text) for n, texts in SENTENCES.items() for k, text in enumerate(texts)}
    for item, (number, text) in texts.items():
        pixels = np.asarray(Image.open(pictures / NAME.format(OBJECTS[number][0])))
        question = f"<image>\n Please segment {text.lower().strip('.!')} in this image."
        (found,) = predictor.segment([pixels], [question])
        answers[item] = Prediction(item, question[9:], found.text, tuple(map(encode, found.masks)))
    return answers


def assert_same(found: dict[str, Prediction], expected: dict[str, Prediction]) -> None:
    """Check that answers are equal, but for pixels whose logit is 0 up to rounding."""
    assert found.keys() == expected.keys()
    for item, one in found.items():
        other = expected[item]
        assert (one.question, one.answer, len(one.masks)) == (other.question, other.answer, len(other.masks))
        height, width = truth_of(ITEMS[item]).shape
        masks, others = one.decoded(height, width), other.decoded(height, width)
        assert np.count_nonzero(masks != others) < 1e-4 * max(masks.size, 1)


@pytest.mark.slow
def test_one_process_two_and_killed_ones_give_the_same_answers(
    root, model_folder, talker, expected, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("sys.argv", ["cli.py", *arguments(root, model_folder, tmp_path / "one")])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    folder = tmp_path / "one" / "refcoco-val"
    found = read_predictions(folder / "predictions.jsonl").of_item
    assert_same(found, expected)
    assert any(answer.masks for answer in found.values())
    settings = json.loads((folder / "run.json").read_text())
    assert settings["model_digest"] == digest_of(talker) and settings["tiles"] == 2
    said = capsys.readouterr()
    assert "refcoco, val: " in said.out and "items/s; peak memory" in said.out and "7/7" in said.err
    results = json.loads((folder / "results.json").read_text())

    several = tmp_path / "several"
    run = Joined(2, command_line, arguments(root, model_folder, several), log=tmp_path / "log2")
    file = several / "refcoco-val" / "predictions.jsonl"
    while not (file.exists() and file.stat().st_size):
        assert any(process.is_alive() for process in run.processes)
        time.sleep(0.01)
    for process in run.processes:
        process.kill()
        process.join()
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[0][:100])  # as a kill in the middle of a line leaves it
    run = Joined(2, command_line, arguments(root, model_folder, several), log=tmp_path / "log3")
    assert run.wait() == [0, 0]
    assert file.read_bytes().count(b"\n") == len(ITEMS) and read_predictions(file).repeated == 0
    assert_same(read_predictions(file).of_item, found)
    assert (tmp_path / "log3").read_text().count("cIoU") == 1
    again = json.loads((file.parent / "results.json").read_text())
    assert again["measures"] == pytest.approx(results["measures"], abs=1e-3)


def test_a_model_that_does_not_exist_is_said_before_the_data_is_read(tmp_path):
    with pytest.raises(UserError, match="none: no such folder; wanted a model folder"):
        next(benchmark(["refcoco"], tmp_path / "no data either", tmp_path / "out", asking=Asking("none")))


@pytest.mark.slow
def test_answers_of_other_settings_are_not_mixed(root, model_folder, tmp_path):
    def run(**more) -> list[str]:
        asking = Asking(str(model_folder), **{"tiles": 1, "max_new_tokens": 2, "device": "cpu", **more})
        return [*benchmark(["refcoco"], root, tmp_path, asking=asking, limit=2)]

    (said,) = run()
    assert "only the first items were asked" in said
    assert len(read_predictions(tmp_path / "refcoco-val" / "predictions.jsonl").of_item) == 2
    with pytest.raises(UserError, match="answers of another run; met max_new_tokens 2; wanted max_new_tokens 3"):
        run(max_new_tokens=3)
    (tmp_path / "refcoco-val" / "run.json").unlink()
    with pytest.raises(UserError, match=r"answers of an unknown model; met no run\.json"):
        run()
