"""Read, verify and batch Sa2VA shard sets.

    import shards

    samples = shards.open_set("shards/sav")   # map-style: len(samples), samples[0], DataLoader(samples, ...)
    report = shards.verify(["shards/sav"])    # shapes, dtypes, ranges, checksums

Reading needs numpy, backports.zstd and Pillow alone. `docs/API.md` documents what is exported here and shows loops of
one's own; `docs/FORMAT.md` specifies the format. All other modules of the package are internal.

The folder of this package may also hold shard sets: they are data, not part of the package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.collation import collate
    from shards.decoding import decode_sample, decoder
    from shards.errors import BadShard, UserError
    from shards.reader import ShardSet, read_samples
    from shards.recipe import Recipe
    from shards.remote import open_set
    from shards.verification import verify

__all__ = [
    "BadShard",
    "Recipe",
    "ShardSet",
    "UserError",
    "collate",
    "decode_sample",
    "decoder",
    "open_set",
    "read_samples",
    "verify",
]

_MODULES = {
    "BadShard": "errors",
    "Recipe": "recipe",
    "ShardSet": "reader",
    "UserError": "errors",
    "collate": "collation",
    "decode_sample": "decoding",
    "decoder": "decoding",
    "open_set": "remote",
    "read_samples": "reader",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    """Import an exported name when it is first used, so that `import shards` costs nothing."""
    if name not in _MODULES:
        raise AttributeError(f"module 'shards' has no attribute {name!r}")
    value = getattr(import_module(f"shards.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
