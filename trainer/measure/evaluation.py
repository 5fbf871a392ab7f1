"""Losses and metrics of held-out samples, and panels that show predictions for some."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from trainer.config import Config
from trainer.data.batch import Batch, ConversationBatch, PairBatch
from trainer.data.loader import Loader
from trainer.measure.panels import AnyPanel, panels
from trainer.modes import autocast
from trainer.objectives.judging import Judged
from trainer.objectives.step import Step

_AREAS = ("overlap", "union")
_NOT_BY_KIND = ("mask_loss", "bce", "dice_loss", "dice", "precision", "recall")
"""Means that would make the line of an evaluation long."""
_Sums = dict[tuple[str, str], tuple[float, int]]
"""Sum and number of the values of a name, by kind of conversation ("" for objects) and name."""
_Shown = dict[tuple[str, bool], list[AnyPanel]]
"""Panels by kind of conversation ("" for objects), and by whether they show a video."""


def evaluate(
    accelerator: Accelerator, step: Step, loader: Loader, objective: str, config: Config
) -> tuple[dict[str, float], list[AnyPanel]]:
    """Means over held-out samples, the same for any number of processes; in the main process, pictures.

    Means are those of `Judged.values`; with masks also `mask_loss`, BCE + Dice, and `ciou`, all overlaps over all
    unions. Where there are conversations of several kinds, most means of each kind too, such as `referring/iou`. A
    value that nothing has is left out.

    Args:
        loader: yields the held-out samples with the objective's `panel_fields()`.

    Returns:
        The means by name, and panels of `eval.show` objects or conversations, of all kinds in turn, and of pictures and
        videos in turn; none on other processes.
    """
    shown: _Shown = {}
    sums: _Sums = {}
    for batch in loader.epoch(0):  # the same samples each time
        with autocast(accelerator.device, config.mixed_precision):
            judged = step.judge(batch, objective)
        if accelerator.is_main_process:
            _show(shown, batch, judged, objective, config.eval.show)
        if not batch.is_padding:
            for key, value in by_kind(batch, judged):
                known = ~value.isnan()
                total, number = sums.get(key, (0.0, 0))
                # Python's floats: Apple's GPUs have no float64.
                sums[key] = (total + float(value[known].sum()), number + int(known.sum()))
    of_all: list[_Sums] = gather_object([sums])
    kinds = sorted({kind for one in of_all for kind, _ in one})
    means = _means(of_all, kinds)
    if len(kinds) > 1:
        of_kinds = [(kind, name, mean) for kind in kinds for name, mean in _means(of_all, [kind]).items()]
        means |= {f"{kind}/{name}": mean for kind, name, mean in of_kinds if name not in _NOT_BY_KIND}
    in_turn = chain.from_iterable(zip_longest(*shown.values()))
    return means, [panel for panel in in_turn if panel is not None][: config.eval.show]


def by_kind(batch: Batch, judged: Judged) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """Yield the values of each kind of conversation with its kind and their name; the kind of objects is ""."""
    if not isinstance(batch, ConversationBatch):
        yield from ((("", name), value) for name, value in judged.values.items())
        return
    kinds = [talk.kind for talk in batch.conversations]
    for kind in dict.fromkeys(kinds):
        for name, value in judged.values.items():
            of_kind = torch.tensor([other == kind for other in kinds], device=value.device)
            yield (kind, name), value[of_kind[judged.rows[name]]]


def _means(of_all: Sequence[Mapping[tuple[str, str], tuple[float, int]]], kinds: Sequence[str]) -> dict[str, float]:
    """Means of the values of some kinds over all processes."""
    totals: dict[str, float] = {}
    numbers: dict[str, int] = {}
    for one in of_all:
        for (kind, name), (total, number) in one.items():
            if kind in kinds:
                totals[name] = totals.get(name, 0.0) + total
                numbers[name] = numbers.get(name, 0) + number
    means = {name: totals[name] / number for name, number in numbers.items() if number and name not in _AREAS}
    if "bce" in means:
        means = {"mask_loss": means["bce"] + means["dice_loss"], **means}
        means["ciou"] = totals["overlap"] / max(totals["union"], 1)
    return means


def _show(shown: _Shown, batch: Batch, judged: Judged, objective: str, most: int) -> None:
    """Add panels of a batch to those of their groups, at most `most` of each."""
    if isinstance(batch, ConversationBatch):
        groups = [(talk.kind, len(talk.frames) > 1) for talk in batch.conversations]
    else:
        assert isinstance(batch, PairBatch)
        groups = [("", False)] * len(batch.objects)
    if all(len(shown.get(group, [])) >= most for group in groups):
        return
    for group, panel in zip(groups, panels(batch, judged, objective), strict=True):
        of_group = shown.setdefault(group, [])
        if len(of_group) < most:
            of_group.append(panel)
