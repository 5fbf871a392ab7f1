"""Masks of one model before and after a change to it, on pictures, texts and, where there is one, the truth."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from inference.recipes import recipe_of
from pipeline import resize
from pipeline.resize import Bool, UInt8
from shards.codec import normalise
from shards.errors import UserError
from trainer.released.loaded import LoadedModel

SIDE = 256
"""Masks are compared as the mask decoder gives them: 256 x 256."""


@dataclass(frozen=True)
class Example:
    """What is asked of a picture."""

    name: str
    picture: UInt8
    """(H, W, 3) RGB."""
    text: str
    truth: Bool | None = None
    """(H, W)."""


@torch.no_grad()
def masks_of(loaded: LoadedModel, examples: Sequence[Example]) -> Bool:
    """(n, 256, 256): the mask of each example, one at a time.

    The answer is given, "It is [SEG].", so that masks differ only by the state at `[SEG]`. SAM 2 runs in float32, the
    rest in the precision of its weights. Pictures become tensors by the model's own recipe.
    """
    model = loaded.model
    chosen = recipe_of(loaded)
    prompts, device = model.prompts, model.device
    sam = copy.deepcopy(model.grounding_encoder).float().eval()
    first = torch.zeros(1, dtype=torch.int64, device=device)
    masks = []
    for example in examples:
        visual_tokens = normalise(resize.picture(example.picture, chosen.vision_size, chosen), chosen.mean, chosen.std)
        pixels = torch.from_numpy(visual_tokens)[None].to(next(model.vision_model.parameters()))
        rows = prompts.pack([prompts.segment(example.name, example.text)], device)
        embeddings = model.embed_rows(rows, model.encode_image(pixels), first)
        states = model.run_language_model(embeddings, rows.attention, rows.positions)
        language = model.text_hidden_fcs(states[rows.ids == prompts.seg]).float()
        sam_features = sam.encode(
            torch.from_numpy(resize.picture(example.picture, chosen.sam_size, chosen))[None].to(device)
        )
        masks.append((sam.decode(sam_features, first, language)[0] > 0).cpu().numpy())
    return np.stack(masks) if masks else np.zeros((0, SIDE, SIDE), np.bool_)


def iou(one: Bool, other: Bool) -> float:
    """Intersection over union of two masks; 1 where both are empty."""
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 1.0


@dataclass(frozen=True)
class Line:
    """One example; IoU with the truth is None where there is none."""

    name: str
    agreement: float
    """IoU of the mask before with the mask after."""
    before: float | None
    """IoU of the mask before with the truth."""
    after: float | None


@dataclass(frozen=True)
class Comparison:
    """Masks before and after."""

    lines: Sequence[Line]

    def table(self) -> str:
        """As text: a line an example, and their means."""
        columns = [[getattr(line, name) for line in self.lines] for name in ("agreement", "before", "after")]
        mean = Line("mean", _mean(columns[0]) or 0.0, _mean(columns[1]), _mean(columns[2]))
        lines = [f"{'mask IoU':<32} {'before/after':>12} {'truth/before':>12} {'truth/after':>12} {'change':>8}"]
        for x in [*self.lines, mean]:
            change = "" if x.before is None or x.after is None else f"{x.after - x.before:+.4f}"
            values = " ".join(f"{'' if v is None else format(v, '.4f'):>12}" for v in (x.agreement, x.before, x.after))
            lines.append(f"{x.name[:32]:<32} {values} {change:>8}".rstrip())
        return "\n".join(lines)


def compare(examples: Sequence[Example], before: Bool, after: Bool) -> Comparison:
    """Of what `masks_of` gave for `examples` twice; raises `UserError` where there are no examples."""
    if not examples:
        raise UserError("no examples to compare on", wanted="at least one")
    lines = []
    for example, one, other in zip(examples, before, after, strict=True):
        truth = None if example.truth is None else resize.mask(example.truth, SIDE)
        with_truth = [None if truth is None else iou(truth, mask) for mask in (one, other)]
        lines.append(Line(example.name, iou(one, other), *with_truth))
    return Comparison(lines)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
