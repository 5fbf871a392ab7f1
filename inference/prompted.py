"""Boxes and clicks become a mask, by SAM 2's own prompt encoder: a region without drawing it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference.predictor import Predictor, checked_picture
from pipeline import resize
from pipeline.resize import Bool, UInt8
from shards.errors import UserError
from trainer.model.grounding import IMAGE_SIZE, GroundingEncoder, SamFeatures

_NEGATIVE, _POSITIVE, _TOP_LEFT, _BOTTOM_RIGHT = range(4)
"""SAM 2's kinds of points."""

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels: left, top, right and bottom edge."""
Point = tuple[float, float]
"""x, y in pixels."""


_NUMBER = r"(?:\d+\.?\d*|\.\d+)"
_POINT = rf"{_NUMBER},{_NUMBER}"
_WRITTEN = re.compile(rf"({_POINT})(,{_POINT})?((?:[+-]{_POINT})*)", re.ASCII)


@dataclass(frozen=True)
class Prompt:
    """A box, or clicks, or both, in pixels of a picture."""

    box: Box | None = None
    points: Sequence[Point] = ()
    labels: Sequence[bool] = ()
    """For each point whether it lies on the object. Empty: all do."""

    def checked(self, height: int, width: int, name: str) -> Prompt:
        """Return this prompt with a label for each point.

        Raises:
            UserError: nothing is on the object, or a number is not finite or not in the picture.
        """
        labels = list(self.labels) or [True] * len(self.points)
        if len(labels) != len(self.points):
            met = f"{len(labels)} labels"
            raise UserError("points and labels differ in number", where=name, met=met, wanted=f"{len(self.points)}")
        if self.box is None and not any(labels):
            met = f"{len(labels)} points, none of them on the object" if labels else "neither"
            raise UserError("a region needs a box or a point on the object", where=name, met=met)
        for x, y in self.points:
            if not (0 <= x < width and 0 <= y < height):  # False for NaN
                wanted = f"0 <= X < {width}, 0 <= Y < {height}"
                raise UserError("a point outside the picture", where=name, met=f"{x:g},{y:g}", wanted=wanted)
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise UserError(
                    "a box that is empty or outside the picture",
                    where=name,
                    met=",".join(f"{value:g}" for value in self.box),
                    wanted=f"0 <= X0 < X1 <= {width}, 0 <= Y0 < Y1 <= {height}",
                )
        return Prompt(self.box, self.points, labels)


def parse_prompt(text: str, *, box: bool) -> Prompt:
    """Read a region as the command line writes it.

    Args:
        text: X,Y of a click, or X0,Y0,X1,Y1 of a box; then more clicks of the same region: +X,Y on it, -X,Y off it.
        box: whether it is a box.

    Raises:
        UserError: something else.

    >>> parse_prompt("30,40-250,90.5", box=False)
    Prompt(box=None, points=((30.0, 40.0), (250.0, 90.5)), labels=(True, False))
    """
    match = _WRITTEN.fullmatch(text.strip())
    if match is None or bool(match[2]) != box:
        form = "X0,Y0,X1,Y1" if box else "X,Y"
        raise UserError(
            "not a box" if box else "not a point",
            where="--box" if box else "--point",
            met=repr(text[:80]),
            wanted=f"{form} in pixels; more clicks of this region behind it: +X,Y on it, -X,Y off it",
        )
    clicks = re.findall(rf"([+-])({_POINT})", match[3])
    labels = tuple(sign == "+" for sign, _ in clicks)
    points = tuple(_numbers(point) for _, point in clicks)
    if box:
        x0, y0 = _numbers(match[1])
        x1, y1 = _numbers(match[2][1:])
        return Prompt((x0, y0, x1, y1), points, labels)
    return Prompt(None, (_numbers(match[1]), *points), (True, *labels))


def _numbers(point: str) -> Point:
    x, y = point.split(",")
    return float(x), float(y)


def uses_original_decoder(predictor: Predictor) -> bool:
    """Return whether `region_at` decodes with SAM 2's mask decoder as it was released.

    A model that has it beside the trained one uses it. With the trained decoder, regions may be worse than SAM 2's:
    Sa2VA's training taught it to follow a text's embedding, not clicks.
    """
    return predictor.model.grounding_encoder.original_mask_decoder is not None


def region_at(
    predictor: Predictor,
    picture: UInt8,
    *,
    box: Box | None = None,
    points: Sequence[Point] = (),
    labels: Sequence[bool] = (),
    name: str = "picture",
) -> Bool:
    """Return the region that a box or clicks mean: (H, W) bool. See `uses_original_decoder`.

    The result is that of `sam2`'s `SAM2ImagePredictor`, but for the resizing of the picture, which is this project's.
    One click alone is ambiguous: of three masks, the one with the highest predicted IoU is taken. For all other prompts
    the decoder makes one mask, as SAM 2 does when it segments videos.

    Args:
        predictor: its SAM 2 is asked.
        picture: (H, W, 3) uint8.
        box: x0, y0, x1, y1 in pixels of the picture.
        points: x, y of each click, in pixels.
        labels: for each click whether it is on the object; empty: all are.
        name: of the picture, for messages.

    Raises:
        UserError: no picture; neither a box nor a click on the object; numbers that are not in the picture.
    """
    height, width = checked_picture(picture, name).shape[:2]
    prompt = Prompt(box, points, labels).checked(height, width, name)
    return decode_region(predictor, encode_for_clicks(predictor, picture), prompt, height, width)


@torch.no_grad()
def encode_for_clicks(predictor: Predictor, picture: UInt8) -> SamFeatures:
    """Encode a picture (H, W, 3) for the decoder of `region_at`."""
    with predictor.precision():
        maps = predictor.sam_maps(resize.picture(picture, predictor.recipe.sam_size, predictor.recipe))
        return features_for_clicks(predictor, maps)


def features_for_clicks(predictor: Predictor, maps: list[Tensor]) -> SamFeatures:
    """Return the features of `GroundingEncoder.encode_maps` for the decoder of `region_at`."""
    encoder = predictor.model.grounding_encoder
    return encoder.features_for(_decoder(encoder), maps)


@torch.no_grad()
def decode_region(predictor: Predictor, features: SamFeatures, prompt: Prompt, height: int, width: int) -> Bool:
    """Return the region (height, width) bool of a checked prompt.

    Args:
        features: of the picture, see `encode_for_clicks`.
    """
    encoder = predictor.model.grounding_encoder
    sam = encoder.sam2_model
    coordinates = [*([prompt.box[:2], prompt.box[2:]] if prompt.box is not None else []), *prompt.points]
    kinds = [_TOP_LEFT, _BOTTOM_RIGHT] if prompt.box is not None else []
    kinds += [_POSITIVE if label else _NEGATIVE for label in prompt.labels]
    device = features.embedding.device
    scaled = torch.tensor(coordinates, dtype=torch.float32, device=device) / torch.tensor(
        [width, height], dtype=torch.float32, device=device
    )
    with predictor.precision():
        sparse, dense = sam.sam_prompt_encoder(
            points=((scaled * IMAGE_SIZE)[None], torch.tensor([kinds], dtype=torch.int32, device=device)),
            boxes=None,
            masks=None,
        )
        logits, predicted_iou, _, _ = _decoder(encoder)(
            image_embeddings=features.embedding + sam.no_mem_embed.view(1, -1, 1, 1),
            image_pe=sam.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=len(kinds) == 1,
            repeat_image=False,
            high_res_features=features.high,
        )
        best = int(predicted_iou[0].argmax())
        return resize.clicked_mask(logits[0, best].float(), height, width)


def _decoder(encoder: GroundingEncoder) -> Any:
    return encoder.original_mask_decoder or encoder.sam2_model.sam_mask_decoder
