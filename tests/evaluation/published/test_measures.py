"""Measures: equal to naive loops, and to numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from skimage.morphology import disk

from evaluation.published.measures import (
    average_precision_50,
    boundary,
    boundary_similarity,
    count_pixels,
    dilate,
    iou_matrix,
    paired_iou,
    pixel_accuracy,
    recalled_phrases,
    referring_measures,
    region_similarity,
    revos_measures,
    robustness,
    value_of,
    values_of,
    video_measures,
)


def mask(text: str) -> np.ndarray:
    """Rows of `.` and `#`."""
    return np.array([[letter == "#" for letter in row] for row in text.split()])


def some_masks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(5, H, W): two of noise, an empty one, a full one and a rectangle."""
    masks = rng.random((5, height, width)) < np.array([0.1, 0.6, 0, 2, 0])[:, None, None]
    masks[4, : height // 2 + 1, width // 3 :] = True
    return masks


def values(measures) -> dict[str, float]:
    return {name: value_of(measure) for name, measure in measures.items()}


def test_pixels_are_counted_where_they_are_not_ignored():
    answer, truth, ignored = mask("##.. ##.."), mask(".##. ...."), mask("..## #...")
    assert count_pixels(answer, truth) == (1, 5, 2, 4)
    assert count_pixels(answer, truth, ignored) == (1, 3, 1, 3)


def test_referring_by_hand():
    counts = np.array([(6, 10, 8, 8), (0, 7, 7, 0), (0, 4, 0, 4), (0, 0, 0, 0), (9, 9, 9, 9)])
    found = values(referring_measures(counts, no_target=True))
    assert found["cIoU"] == 15 / 30
    assert found["gIoU"] == pytest.approx((6 / 10.00001 + 0 + 0 + 1 + 9 / 9.00001) / 5, rel=1e-14)
    assert (found["P@0.5"], found["P@0.6"], found["P@0.7"]) == (2 / 3, 2 / 3, 1 / 3)  # of the three with a target
    assert (found["N-acc"], found["T-acc"]) == (1 / 2, 2 / 3)
    assert "N-acc" not in referring_measures(counts)
    nothing = values(referring_measures(np.zeros((1, 4), int), no_target=True))
    assert nothing["gIoU"] == nothing["N-acc"] == 1 and math.isnan(nothing["cIoU"]) and math.isnan(nothing["T-acc"])


def test_a_measure_of_samples_with_replacement_is_the_measure_of_the_repeated_items():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 50, (7, 4))
    counts[:, 1] += counts[:, 0]
    drawn = rng.integers(0, 7, (5, 7))
    times = np.stack([np.bincount(row, minlength=7) for row in drawn]).astype(float)
    for name, measure in referring_measures(counts).items():
        expected = [value_of(referring_measures(counts[row])[name]) for row in drawn]
        np.testing.assert_allclose(values_of(measure, times), expected, rtol=1e-13)


def test_the_boundary_differs_from_a_right_or_lower_neighbour_inside_the_picture():
    rng = np.random.default_rng(1)
    for height, width in ((1, 1), (1, 6), (7, 1), (9, 12)):
        for one in some_masks(rng, height, width):
            expected = np.zeros_like(one)
            for y in range(height):
                for x in range(width):
                    last = (y == height - 1, x == width - 1)
                    around = [(0, 1), (1, 0), (1, 1)] if not any(last) else [(0, 1)] if not last[1] else [(1, 0)]
                    inside = [(y + a, x + b) for a, b in around if not all(last)]
                    expected[y, x] = any(one[place] != one[y, x] for place in inside)
            np.testing.assert_array_equal(boundary(one), expected)


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 9])
def test_dilation_is_that_of_a_disk(radius):
    rng = np.random.default_rng(2)
    for one in some_masks(rng, 7, 13) & (rng.random((5, 7, 13)) < 0.2):
        padded = np.zeros((7 + 2 * radius, 13 + 2 * radius), bool)
        for y, x in zip(*np.nonzero(one), strict=True):
            padded[y : y + 2 * radius + 1, x : x + 2 * radius + 1] |= disk(radius).astype(bool)
        np.testing.assert_array_equal(dilate(one, radius), padded[radius : radius + 7, radius : radius + 13])


def test_videos_by_hand():
    square = np.zeros((40, 60), bool)
    square[10:20, 10:30] = True
    moved = np.roll(square, 1, 1)  # by no more than the tolerance ceil(0.008 * 72.1) = 1
    far = np.roll(square, 25, 1)
    empty = np.zeros_like(square)
    answers = np.stack([square, moved, far, empty, square, empty])
    truths = np.stack([square, square, square, empty, empty, square])
    assert region_similarity(answers, truths).tolist() == [1, 190 / 210, 0, 1, 0, 0]
    assert boundary_similarity(answers, truths).tolist() == [1, 1, 0, 1, 0, 0]
    twice = np.stack([square, np.roll(square, 3, 1)])  # its upper and lower sides overlap
    edge = {(y, x) for y in range(9, 20) for x in range(9, 30) if y in (9, 19) or x in (9, 29)}
    near = {(y + a, x + b) for y, x in edge for a, b in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))}
    share = sum((y, x + 3) in near for y, x in edge) / len(edge)
    assert boundary_similarity(twice[1:], twice[:1])[0] == pytest.approx(share, rel=1e-14)
    found = values(video_measures(np.array([0.2, 0.4]), np.array([0.6, 0.7])))
    assert found == pytest.approx({"J": 0.3, "F": 0.65, "J&F": 0.475})


def test_accuracy_and_robustness_by_hand():
    answers, truths = np.stack([mask("##.. ####")] * 2), np.stack([mask("##.. ##.."), mask("#### ####")])
    foregrounds = np.stack([mask("##.. ##.."), mask(".... ....")])
    assert pixel_accuracy(answers, truths).tolist() == [6 / 8, 6 / 8]
    assert robustness(answers, truths, foregrounds).tolist() == pytest.approx([0.5, 1], abs=1e-6)
    assert robustness(answers, ~answers, foregrounds).tolist() == [0, 0]


def test_revos_averages_the_two_types():
    numbers = {
        name: np.array([0.1, 0.3, 0.8, 0.9]) + step for step, name in ((0.0, "J"), (0.1, "F"), (0, "A"), (0, "R"))
    }
    found = values(revos_measures(numbers, np.array([0, 0, 1, 2])))
    assert found["referring J"] == pytest.approx(0.2) and found["reasoning F"] == pytest.approx(0.9)
    assert found["overall J&F"] == pytest.approx((0.25 + 0.85) / 2)
    assert found["overall A"] == pytest.approx(0.5)


def test_phrases_are_paired_greedily_one_to_one():
    truths = [mask("####...."), mask("....####"), mask("..##....")]
    answers = [mask("###....."), mask("..##...."), mask("........")]
    matrix = iou_matrix(truths, answers)
    np.testing.assert_allclose(matrix, [[3 / 4, 1 / 2, 0], [0, 0, 0], [1 / 4, 1, 0]])
    assert paired_iou(matrix) == (1 + 3 / 4) / 2  # the best pair first, then what is left
    assert paired_iou(matrix[:, 2:]) == paired_iou(matrix[:0]) == 0
    alike = np.ones((3, 3))
    assert recalled_phrases(matrix, alike) == 2
    alike[0, 0] = 0.4
    assert recalled_phrases(matrix, alike) == 1
    alike[2, 1] = 0.4  # the best pair fails: as in the official code the search ends there
    alike[0, 0] = 1
    assert recalled_phrases(matrix, alike) == 0


def test_average_precision_by_hand():
    def encoded(*rows: str) -> list[dict]:
        masks = [coco.encode(np.asfortranarray(mask(row).view(np.uint8))) for row in rows]
        return [{**one, "counts": one["counts"].decode()} for one in masks]

    truths = {"a": encoded("####....", "....####"), "b": encoded("##......"), "c": []}

    def value(answers: dict, truths: dict) -> float:
        return value_of([average_precision_50(answers, truths)])

    assert value(truths, truths) == 1
    assert value({}, truths) == 0 and math.isnan(value(truths, {"c": []}))
    # One of three is found, by the second of three answers: precision 1/2 up to recall 1/3, then 0.
    answers = {"a": encoded("#.......", "...#####"), "c": encoded("##......")}
    assert value(answers, truths) == pytest.approx(34 / 101 / 2)


def test_average_precision_of_samples_is_that_of_cocoeval(capsys):
    rng = np.random.default_rng(5)

    def encoded(count: int) -> list[dict]:
        masks = np.zeros((count, 8, 30), bool)
        for one in masks:
            left, width = rng.integers(0, 22), rng.integers(3, 8)
            one[:, left : left + width] = True
        return [coco.encode(np.asfortranarray(one.view(np.uint8))) for one in masks]

    names = [f"{n}" for n in range(30)]  # "10" is before "2"
    truths = {name: encoded(rng.integers(0, 4)) for name in names}
    answers = {name: [*encoded(rng.integers(0, 3)), *truths[name][:2]] for name in names}
    measured = [average_precision_50(answers, truths)]
    for draw in range(6):
        counts = rng.multinomial(30, np.full(30, 1 / 30)) if draw else np.ones(30, int)
        copies = sorted(name for name, count in zip(names, counts, strict=True) for _ in range(count))
        expected = _coco_ap50([answers[name] for name in copies], [truths[name] for name in copies])
        assert values_of(measured, counts[None].astype(float))[0] == pytest.approx(expected, abs=1e-12)


def _coco_ap50(answers: list[list[dict]], truths: list[list[dict]]) -> float:
    """Return AP50 as COCOeval says it, of pictures in this order."""
    results, annotations = [], []
    for image, (given, true) in enumerate(zip(answers, truths, strict=True), 1):
        results += [{"image_id": image, "category_id": 1, "segmentation": one, "score": 1.0} for one in given]
        annotations += [{"image_id": image, "category_id": 1, "segmentation": one, "iscrowd": 0} for one in true]
    for number, one in enumerate(annotations, 1):
        one |= {"id": number, "area": float(coco.area(one["segmentation"]))}
    images = [{"id": n, "height": 8, "width": 30} for n in range(1, len(answers) + 1)]
    truth = COCO()
    truth.dataset = {"info": {}, "images": images, "categories": [{"id": 1}], "annotations": annotations}
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(results), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[1])
