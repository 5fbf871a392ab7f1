"""Held-out pictures that look like pictures that are trained on, found in the sets' tables of pictures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from shards.errors import UserError
from shards.groups import Group
from shards.overlap import DISTANCE, Overlap, Pictures, find_overlap
from shards.pictures_table import NO_STRUCTURE, PICTURES
from shards.program import command
from shards.reader import ShardSet
from shards.remote import RemoteShardSet
from shards.twins import seconds
from trainer.data.holdout import held_out_parts

MOST_SECONDS = 5.0
"""A search that would take longer than this on one core, about, is left to the user."""
_EXAMPLES = 2


@dataclass(frozen=True)
class NearTwins:
    """Findings about pictures that are on both sides of the held-out part."""

    found: list[str] = field(default_factory=list)
    """A line, where there are any."""
    unknown: list[str] = field(default_factory=list)
    """Lines about what was not looked for, and why."""


def near_twins(sets: Sequence[ShardSet], share: float, by: Group, sources: Collection[str] | None = None) -> NearTwins:
    """Look for pictures that are held out, and equal or nearly equal to one that is trained on.

    Args:
        sets, share, by: as for `held_out_parts`.
        sources: the sources that are read; None: all.
    """
    result = NearTwins()
    if not share:
        return result
    both = []
    for shards, part in zip(sets, held_out_parts(sets, share, by), strict=True):
        if sources is not None and shards.manifest.source not in sources:
            continue
        if (pictures := _pictures(shards, result.unknown)) is not None:
            both.append((pictures, part))
    if not both:
        return result
    pictures = Pictures.joined([one for one, _ in both])
    held = pictures.of_samples([part for _, part in both])
    trained = pictures.of_samples([~part for _, part in both])
    hashes = [np.unique(side.hashes[side.hashes != NO_STRUCTURE]) for side in (held, trained)]
    needed = seconds(hashes[0], hashes[1], DISTANCE)
    if needed > MOST_SECONDS:
        text = f"{len(held):,} held-out pictures are not compared with {len(trained):,} that are trained on"
        do = f"cut the sets with {command('split')}, and compare the parts with {command('overlap')}"
        result.unknown.append(f"{text}: it would take about {needed:,.0f} s; {do}")
        return result
    overlap = find_overlap(held, trained, DISTANCE)
    if overlap.twins_a:
        result.found.append(_line(overlap, held, trained))
    return result


def _pictures(shards: ShardSet, unknown: list[str]) -> Pictures | None:
    """Return the pictures of a set; add a line to `unknown` where it has no table of them."""
    text = "near twins of its held-out pictures are not looked for"
    if isinstance(shards, RemoteShardSet):
        unknown.append(f"{shards.url}: {text}: {PICTURES} is not read from URLs")
        return None
    try:
        return Pictures.read(shards)
    except UserError as error:
        unknown.append(f"{shards.folder}: {text}: {error.what}; {error.do}")
        return None


def _line(overlap: Overlap, held: Pictures, trained: Pictures) -> str:
    examples = []
    for a, b in zip(overlap.a[:_EXAMPLES].tolist(), overlap.b[:_EXAMPLES].tolist(), strict=True):
        one, other = held[a], trained[b]
        examples.append(f"{one.key} ({one.shards.folder}) and {other.key} ({other.shards.folder})")
    text = f"{overlap.twins_a:,} of {len(held):,} held-out pictures are equal or nearly equal to one that is trained on"
    return f"{text}, such as {', '.join(examples)}; docs/OVERLAP.md"
