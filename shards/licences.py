"""Which sources' pictures and annotations may be passed on, as far as their owners say it for all of them at once.

It is no legal advice. What is not known to be free for everybody counts as not to be passed on.
"""

from __future__ import annotations

from dataclasses import dataclass

from shards.errors import UserError

_COCO = "COCO's photographs are under the licence of each on Flickr, and some of these forbid derivatives"


@dataclass(frozen=True)
class Licence:
    """Whether the data of a source may be passed on, and why."""

    name: str
    """As people write it, with the owner."""
    hub: str = ""
    """Its identifier on the Hugging Face hub, such as "cc-by-4.0"; "" if it has none there."""
    forbids: str = ""
    """Why a set of the source is not passed on without a permission; "" if anybody may."""


_OF_COCO = Licence("annotations and photographs of several owners", forbids=_COCO)
_UNKNOWN = Licence("unknown", forbids="its licence is not known here")
LICENCES: dict[str, Licence] = {
    "sav": Licence("SA-V, CC BY 4.0 (Meta)", "cc-by-4.0"),
    "sav-video": Licence("SA-V, CC BY 4.0 (Meta)", "cc-by-4.0"),
    "openimages": Licence(
        "Open Images: annotations CC BY 4.0 (Google), photographs CC BY 2.0 (their authors, whom the files of Open "
        "Images name by the id in `path`)",
        "cc-by-4.0",
    ),
    "mevis": Licence("MeViS, CC BY-NC-SA 4.0", "cc-by-nc-sa-4.0"),
    "sa1b": Licence("SA-1B Research License (Meta)", forbids="the SA-1B Research License forbids it"),
    "gcg": Licence(
        "annotations and photographs of several owners",
        forbids="GranDf's photographs are SA-1B's, whose licence forbids it",
    ),
    "gcg-grandf": Licence(
        "GranDf, with photographs of SA-1B", forbids="the photographs are SA-1B's, whose licence forbids it"
    ),
    "gcg-flickr30k": Licence(
        "Flickr30k, with photographs of Flickr's users",
        forbids="Flickr30k is handed out for research alone, to people who ask for it",
    ),
    **dict.fromkeys(("gcg-openpsg", "gcg-refcocog", "coco", "lvis"), _OF_COCO),
    **dict.fromkeys(("refcoco", "refcoco+", "refcocog", "grefcoco"), _OF_COCO),
    **dict.fromkeys(("osprey", "osprey-conversation", "osprey-description"), _OF_COCO),
    "dam": Licence(
        "Describe Anything, non-commercial (NVIDIA), with photographs of several owners",
        forbids="some of its photographs are SA-1B's, whose licence forbids it",
    ),
    "llava": Licence(
        "conversations and photographs of several owners",
        forbids="its photographs belong to several owners with conditions of their own; " + _COCO,
    ),
    "revos": Licence(
        "ReVOS, CC BY-NC-SA 4.0, with videos of several owners",
        forbids="its videos are those of other datasets, each with conditions of its own",
    ),
}
"""By the source's name. A source that is not here has an unknown licence, as people's own have."""


def licence_of(source: str) -> Licence:
    """Return the licence of a source; an unknown one, which forbids passing it on, for a name that is not listed."""
    return LICENCES.get(source, _UNKNOWN)


def check_licence(source: str, where: str) -> None:
    """Raise `UserError` where a set of this source is not passed on without a permission.

    Args:
        where: the set, for the message.
    """
    if why := licence_of(source).forbids:
        do = "give --i-may if you have the right to pass this set on"
        raise UserError("not passed on", where=where, met=f"source {source}: {why}", do=do)
