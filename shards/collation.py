"""Samples into a batch, for `torch.utils.data.DataLoader`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shards.errors import BadShard
from shards.format import Field


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join B samples of a set, with M objects in all, for `DataLoader(collate_fn=shards.collate)`. It needs torch.

    Returns:
        Under the names of the samples' fields, for each frame k (no number in samples of one frame):

        - `pixel_values{k}` (B, 3, 448, 448) float32, normalised,
        - `g_pixel_values{k}` (B, 3, 1024, 1024) uint8,
        - `prompt_masks{k}` (M, 16, 16) bool and `masks{k}` (M, 1024, 1024) bool, the objects of all samples one after
          the other,

        and `image_of_object` (M,) int64, the sample that each object belongs to, `keys` list[str] (B), `meta`
        list[dict] (B).

    Raises:
        BadShard: the samples do not have the same fields, since they have different numbers of frames.
    """
    import torch

    fields = [name for name in samples[0] if name not in ("__key__", "meta")]
    for sample in samples:
        if sample.keys() != samples[0].keys():
            raise BadShard(
                "samples of different fields in one batch",
                where=sample["__key__"],
                met=", ".join(name for name in sample if name not in ("__key__", "meta")),
                wanted=", ".join(fields),
                do="batch samples of the same number of frames, or read the fields of the first frame alone",
            )
    batch: dict[str, Any] = {"keys": [sample["__key__"] for sample in samples], "meta": [s["meta"] for s in samples]}
    for name in fields:
        join = np.stack if Field.parse(name).is_picture else np.concatenate
        batch[name] = torch.from_numpy(join([sample[name] for sample in samples]))
    counts = [len(sample["meta"]["objects"]) for sample in samples]
    batch["image_of_object"] = torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts))
    return batch
