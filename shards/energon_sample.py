"""The samples that Megatron-Energon gives of a set that `cli.py energon` has prepared. Needs megatron-energon."""

from __future__ import annotations

from typing import Any

import numpy as np
from megatron.energon import Sample, edataclass
from numpy.typing import NDArray

from shards.decoding import decode_sample


@edataclass
class SegmentationSample(Sample):
    """One sample of a set."""

    meta: dict[str, Any]
    """Its JSON."""
    arrays: dict[str, NDArray[np.generic]]
    """Its fields by name, such as "masks1", as `docs/FORMAT.md` promises them."""


def load_sample(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a `SegmentationSample`; `stored` has the bytes of its members. Raises `BadShard`."""
    decoded = decode_sample(stored)
    del decoded["__key__"]
    return {"meta": decoded.pop("meta"), "arrays": decoded}
