"""Samples into a batch, for `torch.utils.data.DataLoader`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shards.errors import BadShard
from shards.format import Field, frame_fields
from shards.recipe import Recipe

_RECIPE = Recipe()
"""Its sizes, which every readable set has."""


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join B samples of a set, with M objects in all, for `DataLoader(collate_fn=shards.collate)`. It needs torch.

    Returns:
        Under the names of the samples' fields, for each frame k (no number in samples of one frame):

        - `pixel_values{k}` (B, 3, 448, 448) float32, normalised,
        - `g_pixel_values{k}` (B, 3, 1024, 1024) uint8,
        - `prompt_masks{k}` (M, 16, 16) bool and `masks{k}` (M, 1024, 1024) bool, the objects of all samples one after
          the other; a sample without objects adds none,

        and `image_of_object` (M,) int64, the sample that each object belongs to, `keys` list[str] (B), `meta`
        list[dict] (B).

    Raises:
        BadShard: the samples do not have the same fields: they have different numbers of frames, or only some of them
            have `g_pixel_values`.
    """
    import torch

    batch: dict[str, Any] = {"keys": [sample["__key__"] for sample in samples], "meta": [s["meta"] for s in samples]}
    for name in _common(samples, pictures=True):
        batch[name] = torch.from_numpy(np.stack([sample[name] for sample in samples]))
    with_objects = [sample for sample in samples if sample["meta"]["objects"]]
    for name in _common(with_objects, pictures=False):
        batch[name] = torch.from_numpy(np.concatenate([sample[name] for sample in with_objects]))
    if not with_objects:
        for field in frame_fields(len(samples[0]["meta"]["frames"])):
            if not field.is_picture:
                batch[str(field)] = torch.zeros(field.shape(_RECIPE, 0), dtype=torch.bool)
    counts = [len(sample["meta"]["objects"]) for sample in samples]
    batch["image_of_object"] = torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts))
    return batch


def _common(samples: Sequence[dict[str, Any]], pictures: bool) -> list[str]:
    """Return the names of the samples' pictures, or of their masks and prompts; raises `BadShard` where they differ."""
    names = [[n for n in s if n not in ("__key__", "meta") and Field.parse(n).is_picture == pictures] for s in samples]
    for sample, found in zip(samples, names, strict=True):
        if {*found} != {*names[0]}:
            raise BadShard(
                "samples of different fields in one batch",
                where=sample["__key__"],
                met=", ".join(found) or "none",
                wanted=", ".join(names[0]) or "none",
                do="batch samples of the same number of frames, or read the fields of the first frame alone",
            )
    return names[0] if names else []
