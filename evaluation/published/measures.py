"""The measures of published benchmarks, from masks and counts of pixels. Each names the source of its formula."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Bool = NDArray[np.bool_]
Float = NDArray[np.float64]
Int = NDArray[np.int64]

PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds of IoU for P@0.5 to P@0.9."""
_OF_DIAGONAL = 0.008
"""Tolerance of a boundary, as a share of the picture's diagonal (DAVIS)."""
_MATCH = 0.5
"""Least IoU and least similarity of texts of a recalled phrase (GLaMM)."""


class Part(Protocol):
    """A number that follows from N items, and from how often each of them counts."""

    @property
    def items(self) -> int:
        """N."""

    def values(self, counts: Float) -> Float:
        """Return the number for each of D samples with replacement: (D,); NaN where nothing is counted.

        Args:
            counts: (D, N), how often each item is in each sample.
        """


@dataclass(frozen=True)
class Ratio:
    """A sum over items divided by a sum over items."""

    numerator: Float
    """(N,), one value for each item."""
    denominator: Float
    """(N,); ones for a mean over all items."""

    @property
    def items(self) -> int:
        return len(self.numerator)

    def values(self, counts: Float) -> Float:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((counts @ self.numerator) / (counts @ self.denominator))


Measure = Sequence[Part]
"""A measure is the mean of its parts; most have one."""


def value_of(measure: Measure) -> float:
    """Return the value of a measure; NaN where it counts nothing."""
    return float(values_of(measure, np.ones((1, measure[0].items)))[0])


def values_of(measure: Measure, counts: Float) -> Float:
    """Return the value of a measure for each of D samples with replacement: (D,).

    Args:
        counts: (D, N), how often each item is in each sample.
    """
    return np.asarray(np.mean([part.values(counts) for part in measure], axis=0))


def mean_of(values: Float, among: Bool | None = None) -> tuple[Ratio]:
    """Return the measure that is the mean of values (N,), or of those `among` (N,) them."""
    kept = np.ones(len(values)) if among is None else among.astype(np.float64)
    return (Ratio(np.where(kept > 0, values, 0.0), kept),)


def count_pixels(answer: Bool, truth: Bool, ignored: Bool | None = None) -> tuple[int, int, int, int]:
    """Count the pixels of the intersection, the union, the truth and the answer.

    Args:
        answer: (H, W).
        truth: (H, W).
        ignored: (H, W), pixels that count neither for nor against an answer; None: there are none.
    """
    if ignored is not None:
        answer = answer & ~ignored
        truth = truth & ~ignored
    both = int(np.count_nonzero(answer & truth))
    areas = int(np.count_nonzero(truth)), int(np.count_nonzero(answer))
    return both, sum(areas) - both, *areas


def ious(counts: Int) -> Float:
    """Return intersection / (union + 1e-5) of items, 1 where the union is 0: (N,).

    LISA's `validate`, which Sa2VA's `RESDataset.evaluate` repeats.

    Args:
        counts: (N, 4), from `count_pixels`.
    """
    return np.where(counts[:, 1] == 0, 1.0, counts[:, 0] / (counts[:, 1] + 1e-5))


def referring_measures(counts: Int, no_target: bool = False) -> dict[str, Measure]:
    """Return the measures of referring segmentation of pictures by name.

    cIoU: sum of intersections / sum of unions; gIoU: mean of `ious` (Sa2VA's `RESDataset.evaluate`; LISA). P@0.5 to
    P@0.9: share of items whose IoU is at least the threshold (LAVT's `test.py`), among those with a target (ReLA's
    `refer_evaluation.py`). With `no_target` also N-acc, the share of items without a target whose answer is empty, and
    T-acc, the share of items with a target whose answer is not empty: N_acc and T_acc of the same file, in which a
    part of the model says what has no target.

    Args:
        counts: (N, 4), from `count_pixels`.
    """
    both, union, truth, answer = counts.T.astype(np.float64)
    targeted = truth > 0
    exact = both / np.maximum(union, 1)
    found: dict[str, Measure] = {"cIoU": (Ratio(both, union),), "gIoU": mean_of(ious(counts))}
    for least in PRECISIONS:
        found[f"P@{least}"] = mean_of((exact >= least).astype(np.float64), targeted)
    if no_target:
        found["N-acc"] = mean_of((answer == 0).astype(np.float64), ~targeted)
        found["T-acc"] = mean_of((answer > 0).astype(np.float64), targeted)
    return found


def region_similarity(answers: Bool, truths: Bool) -> Float:
    """Return J of each frame: IoU, 1 where both are empty (DAVIS' `db_eval_iou`): (F,).

    Args:
        answers: (F, H, W).
        truths: (F, H, W).
    """
    union = np.count_nonzero(answers | truths, axis=(1, 2))
    both = np.count_nonzero(answers & truths, axis=(1, 2))
    return np.where(union == 0, 1.0, both / np.maximum(union, 1))


def boundary(mask: Bool) -> Bool:
    """Return the boundary of a mask (H, W): pixels that differ from their right, lower or lower right neighbour.

    In the last row and column only the neighbour inside the picture counts; the last pixel is no boundary. DAVIS'
    `_seg2bmap`, after Martin's `seg2bmap` (Berkeley, 2003).
    """
    edges = np.zeros_like(mask)
    across = mask[:, 1:] ^ mask[:, :-1]
    down = mask[1:] ^ mask[:-1]
    edges[:, :-1] = across
    edges[:-1] |= down
    edges[:-1, :-1] |= mask[1:, 1:] ^ mask[:-1, :-1]
    edges[:-1, -1] = down[:, -1]
    edges[-1, :-1] = across[-1]
    return edges


def dilate(mask: Bool, radius: int) -> Bool:
    """Return the pixels that are at most `radius` away from a pixel of the mask (H, W).

    The structuring element is that of `skimage.morphology.disk`: x^2 + y^2 <= radius^2. Each of its rows is a run,
    so a difference of running sums says whether a row of the mask has a pixel in it.
    """
    height, width = mask.shape
    sums = np.zeros((height, width + 2 * radius + 1), np.int32)
    np.cumsum(mask, axis=1, out=sums[:, radius + 1 : radius + 1 + width])
    sums[:, radius + 1 + width :] = sums[:, radius + width, None]
    dilated = np.zeros_like(mask)
    for down in range(min(radius, height - 1) + 1):
        half = math.isqrt(radius * radius - down * down)
        ends = sums[:, radius + half + 1 : radius + half + 1 + width]
        near = ends != sums[:, radius - half : radius - half + width]
        dilated[down:] |= near[: height - down]
        dilated[: height - down] |= near[down:]
    return dilated


def boundary_similarity(answers: Bool, truths: Bool) -> Float:
    """Return F of each frame: the F measure of boundaries (DAVIS' `db_eval_boundary`): (F,).

    Precision is the share of the answer's boundary that is within ceil(0.008 diagonals) of the truth's, recall the
    reverse. Both empty: 1; one empty: 0.

    Args:
        answers: (F, H, W).
        truths: (F, H, W).
    """
    radius = math.ceil(_OF_DIAGONAL * np.linalg.norm(answers.shape[1:]))
    return np.array([_boundary_f(*pair, radius) for pair in zip(answers, truths, strict=True)])


def _boundary_f(answer: Bool, truth: Bool, radius: int) -> float:
    ours = boundary(answer)
    others = boundary(truth)
    lengths = np.count_nonzero(ours), np.count_nonzero(others)
    if not all(lengths):
        return float(not any(lengths))
    precision = np.count_nonzero(ours & dilate(others, radius)) / lengths[0]
    recall = np.count_nonzero(others & dilate(ours, radius)) / lengths[1]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def video_measures(j: Float, f: Float) -> dict[str, tuple[Ratio]]:
    """Return J, F and J&F, the mean of both, over expressions (DAVIS; MeViS' `eval_mevis.py`).

    Args:
        j: (N,), J of each expression: the mean over its frames.
        f: (N,), F of each expression.
    """
    return {"J": mean_of(j), "F": mean_of(f), "J&F": mean_of((j + f) / 2)}


def pixel_accuracy(answers: Bool, truths: Bool) -> Float:
    """Return A of each frame: the share of equal pixels (R2VOS; ReVOS' `get_r2vos_accuracy`): (F,).

    Args:
        answers: (F, H, W).
        truths: (F, H, W).
    """
    return np.asarray((answers == truths).mean(axis=(1, 2)))


def robustness(answers: Bool, truths: Bool, foregrounds: Bool) -> Float:
    """Return R of each frame: 1 - wrong pixels of the answer / (pixels of all objects + 1e-6), at least 0: (F,).

    R2VOS; ReVOS' `get_r2vos_robustness`.

    Args:
        answers: (F, H, W).
        truths: (F, H, W).
        foregrounds: (F, H, W), all objects of each frame.
    """
    wrong = np.count_nonzero(answers & ~truths, axis=(1, 2))
    return np.maximum(1 - wrong / (np.count_nonzero(foregrounds, axis=(1, 2)) + 1e-6), 0.0)


def revos_measures(values: Mapping[str, Float], types: Int) -> dict[str, Measure]:
    """Return J, F, J&F, A and R of ReVOS' referring and reasoning expressions, and overall, the mean of the two.

    `tools/eval/eval_revos.py` of Sa2VA. It rounds each expression's percentages to two digits first; this does not.
    "all A" and "all R" are the means over all expressions, those of no object among them, which the script leaves out.

    Args:
        values: (N,) each: "J", "F", "A" and "R" of each expression.
        types: (N,), `type_id` of each: 0 referring, 1 reasoning, 2 of no object.
    """
    found = typed_measures(values, types, ("referring", "reasoning"))
    return {**found, "all A": mean_of(values["A"]), "all R": mean_of(values["R"])}


def typed_measures(values: Mapping[str, Float], types: Int, names: tuple[str, str]) -> dict[str, Measure]:
    """Return measures of the expressions of types 0 and 1, and overall, the mean of the two.

    `tools/eval/eval_revos.py` and `eval_ref_sav.py` of Sa2VA, without rounding.

    Args:
        values: (N,) each: "J", "F" and others of each expression; J&F is added.
        types: (N,), `type_id` of each.
        names: of the two types.
    """
    every = {"J": values["J"], "F": values["F"], "J&F": (values["J"] + values["F"]) / 2, **values}
    found: dict[str, Measure] = {}
    for measure, of_items in every.items():
        parts = [mean_of(of_items, types == kind) for kind in (0, 1)]
        for name, part in zip(names, parts, strict=True):
            found[f"{name} {measure}"] = part
        found[f"overall {measure}"] = [*parts[0], *parts[1]]
    return found


def iou_matrix(answers: Sequence[Bool], truths: Sequence[Bool]) -> Float:
    """Return the IoU of each answer (H, W) with each truth (H, W): (A, T); 0 for two empty masks."""
    found = np.zeros((len(answers), len(truths)))
    for i, answer in enumerate(answers):
        for j, truth in enumerate(truths):
            both, union, _, _ = count_pixels(answer, truth)
            found[i, j] = both / max(union, 1)
    return found


def greedy_pairs(matrix: Float) -> list[tuple[int, int]]:
    """Pair rows and columns one to one, the largest value first; pairs of value 0 are left out.

    Of equal values the first in reading order wins, as numpy's `argmax` decides (GLaMM's `compute_miou`).
    """
    left = matrix.copy()
    pairs = []
    while left.size and left.max() > 0:
        i, j = divmod(int(left.argmax()), left.shape[1])
        pairs.append((i, j))
        left[i] = 0
        left[:, j] = 0
    return pairs


def paired_iou(matrix: Float) -> float:
    """Return the mean IoU of the greedy pairs of a picture, 0 without a pair (GLaMM's `compute_miou`)."""
    pairs = greedy_pairs(matrix)
    return float(np.mean([matrix[pair] for pair in pairs])) if pairs else 0.0


def recalled_phrases(matrix: Float, similarity: Float) -> int:
    """Return how many true phrases of a picture are recalled (GLaMM's `find_best_matches`).

    Pairs are taken greedily by IoU until one has an IoU or a similarity of texts below 0.5; it ends the search.

    Args:
        matrix: (T, A), IoU of true and answered masks.
        similarity: (T, A), of their phrases: cosine of text embeddings.
    """
    for number, (i, j) in enumerate(pairs := greedy_pairs(matrix)):
        if matrix[i, j] < _MATCH or similarity[i, j] < _MATCH:
            return number
    return len(pairs)


_RECALLS = np.linspace(0, 1, 101)
"""Levels of recall at which COCOeval reads the precision."""


@dataclass(frozen=True)
class AveragePrecision:
    """AP of masks without classes and scores, from the matches of each picture (COCOeval's `accumulate`).

    All answers have the score 1, so the value depends on their order: pictures in the order of their ids as texts, as
    in GLaMM's evaluation; of a picture that a sample holds twice, all answers once and then once more.
    """

    ids: Sequence[str]
    """N ids of pictures."""
    matched: Sequence[Bool]
    """For each picture (A,): whether each of its answers is paired with a true mask."""
    truths: Int
    """(N,), number of true masks of each picture."""

    @property
    def items(self) -> int:
        return len(self.ids)

    def values(self, counts: Float) -> Float:
        order = np.array(sorted(range(len(self.ids)), key=self.ids.__getitem__), np.int64)
        lengths = np.array([len(self.matched[n]) for n in order], np.int64)
        starts = np.cumsum(lengths) - lengths
        flags = np.concatenate([np.zeros(0, np.bool_), *(self.matched[n] for n in order)])
        true = self.truths[order]
        found = [self._value(flags, starts, lengths, true, row) for row in counts[:, order].astype(np.int64)]
        return np.array(found, np.float64)

    @staticmethod
    def _value(flags: Bool, starts: Int, lengths: Int, truths: Int, counts: Int) -> float:
        total = int(counts @ truths)
        if not total:
            return math.nan
        pictures = np.repeat(np.arange(len(counts)), counts)
        sizes = lengths[pictures]
        before = np.cumsum(sizes) - sizes
        places = np.repeat(starts[pictures] - before, sizes) + np.arange(int(sizes.sum()))
        ranks = np.flatnonzero(flags[places]) + 1  # of the right answers, among all
        right = np.arange(1, len(ranks) + 1)
        precision = right / (ranks + np.spacing(1))
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        reached = np.searchsorted(right / total, _RECALLS)
        return float(precision[reached[reached < len(ranks)]].sum() / len(_RECALLS))


def average_precision_50(
    answers: Mapping[str, Sequence[Mapping[str, Any]]], truths: Mapping[str, Sequence[Mapping[str, Any]]]
) -> AveragePrecision:
    """Return AP50 of masks without classes and scores, paired by pycocotools' COCOeval; NaN without a true mask.

    Args:
        answers: masks of each picture by its id, as COCO's compressed run lengths.
        truths: the same, of all pictures that are measured. The items are in its order.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, picture in enumerate(truths, 1):
        place = {"image_id": number, "category_id": 1}
        for mask in [*truths[picture], *answers.get(picture, ())][:1]:
            images.append({"id": number, "height": mask["size"][0], "width": mask["size"][1]})
        for mask in truths[picture]:
            inner = {"segmentation": dict(mask), "area": float(coco.area(dict(mask))), "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **place, **inner})
        results += [{**place, "segmentation": dict(mask), "score": 1.0} for mask in answers.get(picture, ())]
    matched = {number: np.zeros(0, np.bool_) for number in range(1, len(truths) + 1)}
    if results and annotations:
        matched |= _matched_at_50(images, annotations, results)
    elif results:
        matched |= {number: np.zeros(len(answers.get(key, ())), np.bool_) for number, key in enumerate(truths, 1)}
    return AveragePrecision([*truths], [*matched.values()], np.array([len(masks) for masks in truths.values()]))


def _matched_at_50(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], results: list[dict[str, Any]]
) -> dict[int, Bool]:
    """Return by the number of a picture whether COCOeval pairs each of its answers at an IoU of 0.5."""
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": images,
        "categories": [{"id": 1, "name": "object"}],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        truth.createIndex()
        measured = COCOeval(truth, truth.loadRes(results), "segm")
        measured.params.iouThrs = np.array([_MATCH])
        measured.params.areaRng = measured.params.areaRng[:1]
        measured.params.areaRngLbl = measured.params.areaRngLbl[:1]
        measured.evaluate()
    return {one["image_id"]: one["dtMatches"][0] > 0 for one in measured.evalImgs if one is not None}
