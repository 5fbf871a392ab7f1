"""Choose the frames of a video that become a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from functools import cache

from pipeline.faults import Fault, unusable
from shards.errors import BadInput

ShownObjects = Callable[[int], Set[str]]


def choose_frames(
    count: int, k: int, shown: ShownObjects, objects: Set[str], faults: Callable[[], Sequence[Fault]] = list
) -> list[int]:
    """Return at most `k` of `count` frames, in order, evenly spread, each showing at least one object.

    The video is cut into k equal stretches. Each gives the frame nearest to its middle that shows all objects; where
    none does, the one that shows most objects that no chosen frame shows, then most objects, then the nearest. Where a
    stretch shows no object, the frames that show one are cut into k stretches instead.

    Args:
        shown: returns the objects that frame n shows. It is called for as few frames as the rule allows.
        faults: returns objects whose masks are broken or missing, with the reason. Called if no frame shows an object.

    Raises:
        BadInput: no frame shows an object.
    """
    shown = cache(shown)
    chosen = _spread(range(count), k, shown, objects)
    if None in chosen:
        showing = [n for n in range(count) if shown(n)]
        if not showing and (found := faults()):
            raise unusable("object", found)
        if not showing:
            raise BadInput("no visible object", met=f"{count} frames without one", wanted="an object in a frame")
        chosen = _spread(showing, k, shown, objects)
    return [n for n in chosen if n is not None]


def spread_frames(count: int, k: int) -> list[int]:
    """Return at most `k` of `count` frames, at least one, in order: those in the middle of k equal stretches."""
    return choose_frames(count, k, lambda n: frozenset(), frozenset())


def _spread(frames: Sequence[int], k: int, shown: ShownObjects, objects: Set[str]) -> list[int | None]:
    k = min(k, len(frames))
    chosen: list[int | None] = []
    covered: set[str] = set()
    for i in range(k):
        stretch = range(i * len(frames) // k, (i + 1) * len(frames) // k)
        middle = (2 * i + 1) * len(frames) // (2 * k)
        best = None
        best_score = (0, 0)
        for place in sorted(stretch, key=lambda place: (abs(place - middle), place)):
            here = shown(frames[place])
            if (score := (len(here - covered), len(here))) > best_score:
                best = frames[place]
                best_score = score
            if here >= objects:
                best = frames[place]
                break
        if best is not None:
            covered |= shown(best)
        chosen.append(best)
    return chosen or [None]
