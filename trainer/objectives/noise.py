"""Random generators per object or mask instead of per process.

All that a step draws for an object (corruption, Gumbel noise, points) depends only on seed, epoch, sample and number of
the object, or of the mask, in the sample, and on the copy where a source is repeated. So it depends neither on the
number of processes nor on what was drawn before a restart.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch

from trainer.data.batch import Batch, PairBatch


def object_generators(batch: PairBatch, seed: int) -> list[torch.Generator]:
    """One generator on the CPU for each of a batch's M objects."""
    return sample_generators(batch, batch.image_of_object.tolist(), seed)


def sample_generators(batch: Batch, samples: Sequence[int], seed: int) -> list[torch.Generator]:
    """Generators on the CPU, one for each of `samples`: the sample that an object, or a mask, belongs to.

    Those of one sample differ by their number within it.
    """
    drawn: Counter[int] = Counter()
    generators = []
    for sample in samples:
        name = f"{seed}/{batch.position['epoch']}/{batch.keys[sample]}/{drawn[sample]}"
        drawn[sample] += 1
        if copy := batch.copies[sample]:  # the copies of a repeated sample draw differently
            name += f"/copy {copy}"
        digest = hashlib.sha256(name.encode()).digest()
        generators.append(torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1))
    return generators


def uniform(generators: list[torch.Generator], *shape: int) -> torch.Tensor:
    """Draw (M, *shape) float32 in [0, 1), on the CPU."""
    return torch.stack([torch.rand(shape, generator=g) for g in generators])


def random_index(generator: torch.Generator, options: int) -> int:
    """Draw an index below `options`."""
    return int(torch.randint(options, (), generator=generator))
