"""Randomness that belongs to a sample, not to a process.

Whatever a step draws for an object (corruption, Gumbel noise, points) follows from seed, epoch, sample and object
alone (and from which copy it is, where a source is repeated). So it does not depend on how many processes share a
batch, nor on what was drawn before a restart.
"""

from __future__ import annotations

import hashlib
from collections import Counter

import torch

from trainer.data.batch import Batch


def object_generators(batch: Batch, seed: int) -> list[torch.Generator]:
    """One generator (CPU) for each of the M objects of a batch."""
    seen: Counter[int] = Counter()
    generators = []
    for sample in batch.image_of_object.tolist():
        name = f"{seed}/{batch.position['epoch']}/{batch.keys[sample]}/{seen[sample]}"
        seen[sample] += 1
        if copy := batch.copies[sample]:  # a sample that stands several times in an epoch is drawn for anew
            name += f"/copy {copy}"
        digest = hashlib.sha256(name.encode()).digest()
        generators.append(torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1))
    return generators


def uniform(generators: list[torch.Generator], *shape: int) -> torch.Tensor:
    """(M, *shape) float32 in [0, 1), on the CPU."""
    return torch.stack([torch.rand(shape, generator=g) for g in generators])


def choice(generator: torch.Generator, options: int) -> int:
    """An index below `options`."""
    return int(torch.randint(options, (), generator=generator))
