"""Follow objects through a video: one pass of SAM 2's image encoder per frame serves all of them.

In memory are the frame at hand, the frames that prompt, and for each object SAM 2's memory of the last 7 frames and of
those that prompt: 6.3 MB in bfloat16 in the released models. Nothing grows with the number of frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from inference.tracking import Tracker, frames_seen
from pipeline import resize
from pipeline.resize import Bool, UInt8
from trainer.model.grounding import SamFeatures

if TYPE_CHECKING:
    from inference.predictor import Predictor

MOST_OBJECTS = 64
"""Most objects of several questions that go through a video together; those of one question always do."""
_AT_ONCE = 16
"""Objects that SAM 2 computes at once."""

Read = Callable[[int], UInt8]
"""Returns the frame of a number, from 0: (H, W, 3) RGB."""


@dataclass(frozen=True)
class SeenFrame:
    """A frame of a video that the language model sees, kept to prompt SAM 2 with."""

    pixels: UInt8
    """(3, 1024, 1024)."""
    size: tuple[int, int]
    """The frame's height and width."""


def read_seen(predictor: Predictor, read: Read, count: int) -> tuple[UInt8, dict[int, SeenFrame]]:
    """Read those of a video's `count` frames that the language model sees.

    Returns:
        Their views (B, 3, 448, 448), and the frames by number; both in order.
    """
    recipe = predictor.recipe
    seen = {}
    views = []
    for i in frames_seen(count, predictor.video_frames, predictor.frames_seen):
        frame = read(i)
        views.append(resize.picture(frame, recipe.vision_size, recipe))
        seen[i] = SeenFrame(resize.picture(frame, recipe.sam_size, recipe), (frame.shape[0], frame.shape[1]))
    return np.stack(views), seen


def groups_of(objects: Sequence[int], most: int) -> list[range]:
    """Return the numbers of the questions that go through a video together, in order.

    A group has at most `most` objects, and a question that has more by itself is a group of its own.

    Args:
        objects: number of objects of each question.

    >>> groups_of([3, 0, 5, 9, 0, 1], most=8)
    [range(0, 3), range(3, 5), range(5, 6)]
    """
    groups: list[range] = []
    inside = 0
    for question, count in enumerate(objects):
        if groups and inside + count <= most:
            groups[-1] = range(groups[-1].start, question + 1)
            inside += count
        else:
            groups.append(range(question, question + 1))
            inside = count
    return groups


def follow(
    predictor: Predictor, read: Read, count: int, seen: Mapping[int, SeenFrame], embeddings: Tensor
) -> Iterator[Bool]:
    """Yield the masks (N, H, W) of N objects for each frame of a video, at the frame's size.

    Args:
        count: number of frames.
        seen: the frames that prompt.
        embeddings: (N, C), one per object, from the language model.
    """
    followed = _Followed(predictor, count, embeddings)
    logits = {i: followed.prompt(i, frame) for i, frame in seen.items()} if len(embeddings) else {}
    for i in range(count):
        if i in logits:
            yield followed.masks(logits.pop(i), *seen[i].size)
        else:
            yield followed.step(i, read(i))


class _Followed:
    """N objects in a video, side by side: no object changes what is computed for another."""

    def __init__(self, predictor: Predictor, count: int, embeddings: Tensor) -> None:
        encoder = predictor.model.grounding_encoder
        self._predictor = predictor
        self._encoder = encoder
        self._original = predictor.propagate == "sam2"
        tuned: Any = encoder.sam2_model.sam_mask_decoder
        self._tuned = tuned
        self._propagator: Any = encoder.original_mask_decoder if self._original else tuned
        self._parts = [part for part in embeddings.split(_AT_ONCE) if len(part)]
        memory = predictor.memory_dtype
        self._trackers = [Tracker(encoder, count, memory, original_decoder=self._original) for _ in self._parts]

    @torch.no_grad()  # around a step: around the generator it would apply to the caller's code too
    def prompt(self, i: int, frame: SeenFrame) -> list[Tensor]:
        """Segment a frame that the language model sees; return logits (n, 256, 256) of each part of the objects."""
        with self._predictor.precision():
            maps = self._predictor.sam_maps(frame.pixels)
            tuned = self._encoder.features_for(self._tuned, maps)
            if not self._original:
                pairs = zip(self._trackers, self._parts, strict=True)
                return [tracker.prompt(i, tuned, part) for tracker, part in pairs]
            own = self._encoder.features_for(self._propagator, maps)
            pairs = zip(self._trackers, self._parts, strict=True)
            return [self._prompt_with_masks(tracker, i, frame, tuned, own, part) for tracker, part in pairs]

    def _prompt_with_masks(
        self, tracker: Tracker, i: int, frame: SeenFrame, tuned: SamFeatures, own: SamFeatures, part: Tensor
    ) -> Tensor:
        first = torch.zeros(len(part), dtype=torch.int64, device=part.device)
        logits = self._encoder.decode(tuned, first, part)
        masks = resize.mask_prompts(logits, *frame.size, self._predictor.recipe.sam_size)
        return tracker.prompt_with_masks(i, own, masks)

    @torch.no_grad()
    def step(self, i: int, frame: UInt8) -> Bool:
        """Segment a frame from the memory of others: (N, H, W)."""
        height, width = frame.shape[:2]
        if not self._parts:
            return np.empty((0, height, width), np.bool_)
        recipe = self._predictor.recipe
        with self._predictor.precision():
            maps = self._predictor.sam_maps(resize.picture(frame, recipe.sam_size, recipe))
            features = self._encoder.features_for(self._propagator, maps)
            return self.masks([tracker.follow(i, features) for tracker in self._trackers], height, width)

    def masks(self, logits: Sequence[Tensor], height: int, width: int) -> Bool:
        """Return masks (N, height, width) of the logits of all parts."""
        return np.concatenate([resize.predicted_masks(part, height, width, self._predictor.recipe) for part in logits])
