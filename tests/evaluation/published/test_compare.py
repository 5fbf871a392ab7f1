"""Comparing two files of predictions: intervals as of a plain bootstrap, and the items that changed most."""

from __future__ import annotations

import json

import numpy as np
import pytest

from evaluation.published.compare import bootstrap, compare
from evaluation.published.measures import referring_measures
from evaluation.published.predictions import Prediction, encode
from evaluation.published.run import benchmark
from shards.errors import UserError
from tests.evaluation.published.conftest import ITEMS, truth_of


def test_intervals_are_those_of_a_loop_over_draws():
    rng = np.random.default_rng(0)
    counts = [np.column_stack([rng.integers(0, 50, 40), rng.integers(50, 90, (40, 3))]) for _ in range(2)]
    counts[1][:, 2] = counts[0][:, 2] = rng.integers(0, 2, 40)
    found = bootstrap(*(referring_measures(one, no_target=True) for one in counts), draws=500, seed=3)
    drawn = np.random.default_rng(3).integers(0, 40, (500, 40))
    ciou = [one[row, 0].sum() / one[row, 1].sum() for row in drawn for one in counts]
    giou = [np.mean([both / (either + 1e-5) for both, either in one[row, :2]]) for row in drawn for one in counts]
    for name, values in (("cIoU", ciou), ("gIoU", giou)):
        differences = sorted(b - a for a, b in zip(values[::2], values[1::2], strict=True))
        low, high = np.interp([0.025 * 499, 0.975 * 499], range(500), differences)
        assert (found[name].low, found[name].high) == pytest.approx((low, high), abs=1e-12)
        assert found[name].difference == found[name].second - found[name].first
    assert found["T-acc"].difference == found["T-acc"].low == found["T-acc"].high == 0


def test_an_interval_covers_the_true_difference_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        iou = rng.beta(4, 2, 60), rng.beta(4, 2, 60)
        counts = [np.column_stack([1e6 * one, np.full((60, 3), 1e6)]).astype(int) for one in iou]
        found = bootstrap(*map(referring_measures, counts), draws=300, seed=seed)["gIoU"]
        covered += found.low <= 0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def write(folder, shifts: dict[str, int]):
    folder.mkdir()
    masks = {item: np.roll(truth_of(ITEMS[item]), by, 1) for item, by in shifts.items()}
    lines = [Prediction(item, "", "[SEG]", (encode(mask),)).to_line() for item, mask in masks.items()]
    (folder / "predictions.jsonl").write_bytes(b"".join(lines))
    return folder / "predictions.jsonl"


def test_two_files_are_compared_on_the_items_of_both(root, tmp_path):
    items = [*ITEMS]
    first = write(tmp_path / "a", dict.fromkeys(items, 5) | {items[4]: 30})
    second = write(tmp_path / "b", dict.fromkeys(items[:-1], 5) | {items[0]: 60, items[4]: 0})
    with pytest.raises(UserError, match="give --on, --split and --root"):
        compare(first, second, tmp_path / "out")
    list(benchmark(["refcoco"], root, first.parent, predictions=first))
    said = compare(first, second, tmp_path / "out", draws=200)
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    change = _iou(items[0], 60) - _iou(items[0], 5) + _iou(items[4], 0) - _iou(items[4], 30)
    assert found["items"] == 6 and found["measures"]["gIoU"]["difference"] == pytest.approx(change / 6, abs=1e-8)
    assert found["measures"]["gIoU"]["low"] < change / 6 < found["measures"]["gIoU"]["high"]
    assert "1 items that A alone answers" in said and "6 items, 200 draws, seed 0" in said
    page = (tmp_path / "out" / "compare.html").read_text()
    better, worse = page.split("<h2>")[1:]
    assert better.count("<figure>") == worse.count("<figure>") == 1
    assert items[4] in better and items[0] in worse and page.count("<img") == 2 * 3
    again = compare(second, first, tmp_path / "back", name="refcoco", split="val", root=root, draws=200)
    back = json.loads((tmp_path / "back" / "compare.json").read_text())["measures"]["gIoU"]
    assert back["low"] == pytest.approx(-found["measures"]["gIoU"]["high"]) and again


def _iou(item: str, by: int) -> float:
    truth = truth_of(ITEMS[item])
    moved = np.roll(truth, by, 1)
    return (truth & moved).sum() / (truth | moved).sum()
