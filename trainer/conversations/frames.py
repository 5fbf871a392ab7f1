"""The frames of a video that a row shows."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from trainer.conversations.visit import Visit


def draw_frames(visit: Visit, objects: Iterable[int]) -> tuple[int, ...]:
    """Draw `options.frames` frames of a video, in order, other ones in each visit; (0,) for a picture, () for none.

    As in Sa2VA's training they are drawn without replacement where the video has more than one frame beyond them, else
    with replacement. A single frame is one that shows as many of `objects` as any frame does.
    """
    count = visit.sample.frames
    most = visit.options.frames
    if count < 2:
        return (0,) * count
    if most == 1:
        shown = (visit.sample.cells[:, [*objects]] > 0).sum(axis=1)
        return (visit.draws.choice([frame for frame in range(count) if shown[frame] == shown.max()]),)
    if count > most + 1:
        return tuple(sorted(visit.draws.sample(range(count), most)))
    return tuple(sorted(visit.draws.choices(range(count), k=most)))


def draw_one_of_each_part(visit: Visit) -> tuple[int, ...]:
    """Divide a video into `options.frames` parts and draw a frame of each; all frames where there are no more.

    So Sa2VA's training shows the videos that it asks questions about.
    """
    count = visit.sample.frames
    most = visit.options.frames
    if count <= most:
        return tuple(range(count))
    starts = [count * part // most for part in range(most + 1)]
    return tuple(visit.draws.randrange(start, end) for start, end in pairwise(starts))
