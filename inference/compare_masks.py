"""Compare the masks of a model before and after a change to it: with each other and, where known, with the truth."""

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
"""Masks are compared at the size of the mask decoder's logits: 256 x 256."""


@dataclass(frozen=True)
class Example:
    """A question about a picture, and the true mask where it is known."""

    name: str
    picture: UInt8
    """(H, W, 3) RGB."""
    text: str
    truth: Bool | None = None
    """(H, W)."""


@torch.no_grad()
def masks_of(loaded: LoadedModel, examples: Sequence[Example]) -> Bool:
    """Return the mask of each example: (n, 256, 256).

    The answer is fixed, "It is [SEG].", so masks differ only by the hidden state at `[SEG]`. SAM 2 runs in float32, the
    rest in the dtype of its weights. Pictures become tensors by the model's own recipe.
    """
    model = loaded.model
    recipe = recipe_of(loaded)
    prompts = model.prompts
    device = model.device
    sam = copy.deepcopy(model.grounding_encoder).float().eval()
    first = torch.zeros(1, dtype=torch.int64, device=device)
    masks = []
    for example in examples:
        normalised = normalise(resize.picture(example.picture, recipe.vision_size, recipe), recipe.mean, recipe.std)
        pixels = torch.from_numpy(normalised)[None].to(next(model.vision_model.parameters()))
        rows = prompts.padded([prompts.segment(example.name, example.text)], device)
        embeddings = model.embed_rows(rows, model.encode_image(pixels), first)
        states = model.run_language_model(embeddings, rows.attention, rows.positions)
        phrase_embeddings = model.text_hidden_fcs(states.flatten(0, 1)[rows.segs]).float()
        sam_pixels = torch.from_numpy(resize.picture(example.picture, recipe.sam_size, recipe))[None].to(device)
        logits = sam.decode(sam.encode(sam_pixels), first, phrase_embeddings)
        masks.append((logits[0] > 0).cpu().numpy())
    return np.stack(masks) if masks else np.zeros((0, SIDE, SIDE), np.bool_)


def iou(one: Bool, other: Bool) -> float:
    """Return the intersection over union of two masks; 1 if both are empty."""
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 1.0


@dataclass(frozen=True)
class ExampleIoU:
    """IoUs of one example; those with the truth are None where it is unknown."""

    name: str
    agreement: float
    """IoU of the mask before the change with the mask after it."""
    before: float | None
    """IoU of the mask before the change with the truth."""
    after: float | None
    """IoU of the mask after the change with the truth."""


@dataclass(frozen=True)
class Comparison:
    """IoUs of all examples, before and after a change to the model."""

    examples: Sequence[ExampleIoU]

    def table(self) -> str:
        """Return a text with a line per example, and one with the means."""
        columns = [[getattr(example, name) for example in self.examples] for name in ("agreement", "before", "after")]
        mean = ExampleIoU("mean", _mean(columns[0]) or 0.0, _mean(columns[1]), _mean(columns[2]))
        lines = [f"{'mask IoU':<32} {'before/after':>12} {'truth/before':>12} {'truth/after':>12} {'change':>8}"]
        for x in [*self.examples, mean]:
            change = "" if x.before is None or x.after is None else f"{x.after - x.before:+.4f}"
            values = " ".join(f"{'' if v is None else format(v, '.4f'):>12}" for v in (x.agreement, x.before, x.after))
            lines.append(f"{x.name[:32]:<32} {values} {change:>8}".rstrip())
        return "\n".join(lines)


def compare(examples: Sequence[Example], before: Bool, after: Bool) -> Comparison:
    """Compare two results of `masks_of` for `examples`; raises `UserError` if there are no examples."""
    if not examples:
        raise UserError("no examples to compare on", wanted="at least one")
    compared = []
    for example, one, other in zip(examples, before, after, strict=True):
        truth = None if example.truth is None else resize.mask(example.truth, SIDE)
        with_truth = [None if truth is None else iou(truth, mask) for mask in (one, other)]
        compared.append(ExampleIoU(example.name, iou(one, other), *with_truth))
    return Comparison(compared)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
