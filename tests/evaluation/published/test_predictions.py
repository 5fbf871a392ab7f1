"""The file of predictions: strict lines, torn ones repaired, each item once, shared by processes that may be killed."""

from __future__ import annotations

import json
import multiprocessing as mp

import numpy as np
import pytest

from evaluation.published.predictions import Prediction, PredictionFile, encode, read_predictions, union_of
from shards.errors import UserError

FORKS = mp.get_context("fork")


def prediction(number: int, *masks: np.ndarray, answer: str = "It is [SEG].") -> Prediction:
    return Prediction(f"i{number}", "Where is it?", answer, tuple(map(encode, masks)), {"tokens": 3})


def test_predictions_are_read_as_they_were_written(tmp_path):
    rng = np.random.default_rng(0)
    masks = rng.random((3, 7, 9)) < 0.3
    file = PredictionFile(tmp_path / "p.jsonl")
    some = [prediction(1, *masks), prediction(2, answer='a\n"\u2028\ud800'), prediction(1, answer="again")]
    file.append(some[:2])
    file.append(some[2:])
    found = read_predictions(file.path)
    assert [*found.of_item.values()] == some[:2] and not found.repeated
    np.testing.assert_array_equal(found.of_item["i1"].decoded(7, 9), masks)
    np.testing.assert_array_equal(union_of(found.of_item["i1"], 7, 9, "p"), masks[0] | masks[1] | masks[2])
    assert not union_of(found.of_item["i2"], 7, 9, "p").any() and not union_of(None, 7, 9, "p").any()
    with pytest.raises(UserError, match=r"^p, item i1: mask and picture differ in size; met size \[7, 9\]"):
        union_of(found.of_item["i1"], 9, 7, "p")


def test_a_line_of_another_program_may_have_further_keys_and_needs_no_numbers(tmp_path):
    line = {"item": "7", "question": "", "answer": "", "masks": [], "model": "another"}
    (tmp_path / "p.jsonl").write_text(f"{json.dumps(line)}\n\n{json.dumps(line)}")
    found = read_predictions(tmp_path / "p.jsonl")
    assert found.of_item == {"7": Prediction("7", "", "", ())} and found.repeated == 1


@pytest.mark.parametrize("torn", [b'{"item": "i2", "ques', b"\xff", b'{"item": "i2"}', b"{"])
def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path, torn):
    path = tmp_path / "p.jsonl"
    first = prediction(1).to_line()
    path.write_bytes(first + torn)
    assert [*read_predictions(path).of_item] == ["i1"]
    file = PredictionFile(path)
    assert file.answered == {"i1"}
    file.append([prediction(3)])
    assert path.read_bytes() == first + prediction(3).to_line()


def test_a_last_line_that_lacks_its_end_alone_is_kept(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(prediction(1).to_line()[:-1])
    PredictionFile(path).append([prediction(1, answer="again"), prediction(2)])
    assert path.read_bytes() == prediction(1).to_line() + prediction(2).to_line()


@pytest.mark.parametrize(
    "line, fault",
    [
        ("[]", r"met \[\], which is no object"),
        ("{", "met Expecting"),
        ('{"item": "a", "item": "a"}', "the key 'item' stands twice"),
        ('{"item": 3}', "met item 3"),
        ('{"item": "a", "question": "", "answer": ""}', "met no masks"),
        ('{"item": "", "question": "", "answer": "", "masks": []}', "an item's id of 0 characters"),
        ('{"item": "a", "question": "", "answer": "", "masks": [{"size": [4, true], "counts": ""}]}', "met mask 1: "),
        ('{"item": "a", "question": "", "answer": "", "masks": [{"size": [4, 4]}]}', "met mask 1: "),
        ('{"item": "a", "question": "", "answer": "", "masks": [], "numbers": {"x": NaN}}', "NaN is no JSON"),
        ('{"item": "a", "question": "", "answer": "", "masks": [], "numbers": {"x": "1"}}', "met numbers"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, fault):
    path = tmp_path / "p.jsonl"
    path.write_bytes(prediction(1).to_line() + line.encode() + b"\n" + prediction(2).to_line())
    with pytest.raises(UserError, match=f"p.jsonl, line 2: not a prediction; .*{fault}"):
        read_predictions(path)
    with pytest.raises(UserError, match=r"p\.jsonl, line 2: not a prediction"):
        PredictionFile(path)


def test_no_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no predictions"):
        read_predictions(tmp_path / "none.jsonl")


def _append_all(path, first: int) -> None:
    file = PredictionFile(path)
    for number in range(40):
        file.append([prediction(number, answer=f"{first} " + "x" * 5000)])


def test_processes_that_append_the_same_items_leave_each_once(tmp_path):
    path = tmp_path / "p.jsonl"
    processes = [FORKS.Process(target=_append_all, args=(path, n)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert path.read_bytes().count(b"\n") == 40
    assert len(read_predictions(path).of_item) == 40
