"""The folder of Sa2VA's training data: one set of each dataset in it. `docs/datasets/sa2va-training.md`"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.dataset import RawDataset
from pipeline.estimate import Estimate
from pipeline.plan import Plan
from pipeline.request import Request, make_request
from pipeline.run import RunSummary, TaskSummary
from pipeline.sources import source_named
from shards.errors import UserError
from shards.printable import printable

NAME = "sa2va-training"
FRAMES = 16
"""Frames that are stored of a video by default: a training draws 5 of them, other ones each epoch."""
MISSING = "missing"
FAILED = "failed"


@dataclass(frozen=True)
class Part:
    """A dataset of the folder."""

    source: str
    folder: str
    """Its root, relative to the folder."""
    file: str
    """Annotation file in its root: the dataset is there if this file is."""


PARTS = (
    Part("refcoco", "ref_seg/refcoco", "refs(unc).p"),
    Part("refcoco+", "ref_seg/refcoco+", "refs(unc).p"),
    Part("refcocog", "ref_seg/refcocog", "refs(umd).p"),
    Part("revos", "video_datas/revos", "meta_expressions_train_.json"),
    Part("mevis", "video_datas/mevis", "train/meta_expressions.json"),
    Part("ref-youtube-vos", "video_datas/rvos", "meta_expressions/train/meta_expressions.json"),
    Part("ref-sav", "video_datas", "Ref-SAV.json"),
    Part("gcg-grandf", "glamm_data", "annotations/GranDf_HA_GCG_train.json"),
    Part("gcg-openpsg", "glamm_data", "annotations/OpenPsgGCG_train.json"),
    Part("gcg-refcocog", "glamm_data", "annotations/RefCOCOg_GCG_train.json"),
    Part("gcg-flickr30k", "glamm_data", "annotations/flickr_mergedGT_GCG_train.json"),
    Part("osprey-conversation", "osprey-724k", "Osprey-724K/osprey_conversation.json"),
    Part("osprey-description", "osprey-724k", "Osprey-724K/osprey_detail_description.json"),
    Part("llava", "llava_data", "LLaVA-Instruct-150K/llava_v1_5_mix665k.json"),
    Part("videoqa", "video_datas/chat_univi", "video_chat.json"),
)

Result = RunSummary | TaskSummary | tuple[RawDataset, Plan] | Estimate


@dataclass(frozen=True)
class Outcome:
    """What became of a dataset."""

    source: str
    state: str
    samples: int | None = None
    bytes: int | None = None
    detail: str = ""
    """Path that was looked for, or what went wrong."""


def for_each_part(root: Path, make: Callable[[Request], Result], **options: Any) -> list[Outcome]:
    """Call `make` with the request of each dataset that is there. One that fails does not stop the others.

    Args:
        root: the folder that holds `ref_seg`, `video_datas` and so on.
        make: writes, plans or estimates one set; may raise `UserError`.
        options: of `make_request`. `frames` and `mask_slack` go to the sources that have them.

    Raises:
        UserError: an option that belongs to one dataset; none of the datasets is there.
    """
    for name in ("split", "split_by", "void"):
        if options.pop(name, None) is not None:
            raise UserError("not an option of this source", where=NAME, met="--" + name.replace("_", "-"))
    if not any((root / part.folder / part.file).exists() for part in PARTS):
        folders = ", ".join(dict.fromkeys(part.folder.partition("/")[0] for part in PARTS))
        raise UserError(
            "none of Sa2VA's training data here",
            where=str(root),
            wanted=f"{folders}, with such files as {PARTS[0].folder}/{PARTS[0].file}",
            do="give --root",
        )
    return [_outcome(root, part, make, options) for part in PARTS]


def _outcome(root: Path, part: Part, make: Callable[[Request], Result], options: dict[str, Any]) -> Outcome:
    file = root / part.folder / part.file
    if not file.exists():
        return Outcome(part.source, MISSING, detail=f"no {file}")
    try:
        return _described(part.source, make(_request(root, part, options)))
    except UserError as error:
        tqdm.write(printable(f"{part.source} failed: {error}"), file=sys.stderr)
        return Outcome(part.source, FAILED, detail=str(error))


def _request(root: Path, part: Part, options: dict[str, Any]) -> Request:
    choices = source_named(part.source).choices
    frames = options.get("frames") or FRAMES
    return make_request(
        part.source,
        root / part.folder,
        **{
            **options,
            "frames": frames if "frames" in choices else None,
            "mask_slack": options.get("mask_slack") if "mask_slack" in choices else None,
        },
    )


def _described(source: str, result: Result) -> Outcome:
    if isinstance(result, RunSummary):
        written = sum(shard.bytes for shard in result.manifest.shards)
        state = "written" if result.written_now else "already there"
        return Outcome(source, state, result.manifest.samples, written)
    if isinstance(result, TaskSummary):
        return Outcome(source, f"task {result.share.index} of {result.share.count} done", result.samples)
    if isinstance(result, Estimate):
        return Outcome(source, "estimated", round(result.samples.total), round(result.bytes.total))
    plan = result[1]
    return Outcome(source, "would be written", plan.inputs, plan.inputs * plan.sample_bytes)


def failure(outcomes: list[Outcome]) -> UserError | None:
    """Return the error that names the datasets that failed; None where none did."""
    failed = [outcome.source for outcome in outcomes if outcome.state == FAILED]
    if not failed:
        return None
    there = sum(outcome.state != MISSING for outcome in outcomes)
    return UserError(
        f"{len(failed)} of {there} datasets failed",
        met=", ".join(failed),
        do="see above; the same command goes on with them and keeps what is written",
    )
