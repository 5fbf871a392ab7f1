"""Bounds of the configuration's values: every number has a lower and an upper one, every text can be a name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shards.errors import UserError

_FLOAT32 = 3e38
"""Larger numbers are infinite in float32."""
_MANY = 10**9
"""Far more than any run does or any disk holds."""
_LONGEST, _LONGEST_NAME = 4096, 255
"""Bytes of a path, and of a name in it, on the file systems of Linux."""


@dataclass(frozen=True)
class Bound:
    """`low` <= value <= `high`; where `above`, low < value; where `below`, value < high; where `zero`, 0 too."""

    low: float
    high: float
    why: str = ""
    """The reason for the upper bound, for the message."""
    above: bool = False
    below: bool = False
    zero: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` lies within the bound; NaN never does."""
        high = value < self.high if self.below else value <= self.high
        low = value > self.low if self.above else value >= self.low
        return bool(low and high) or (self.zero and value == 0)

    def wanted(self, value: float) -> str:
        """Return the text that asks for a right value in place of `value`."""
        if self.low == 0 and self.high == 1 and not (self.above or self.below):
            return "0 to 1"
        if value > self.high or (self.below and value == self.high):
            return f"{'<' if self.below else '<='} {self.high:g}" + (f": {self.why}" if self.why else "")
        if self.above or self.low == 1:
            return f"> {0 if self.low == 1 else self.low:g}"
        return f">= {self.low:g}" + (", or 0" if self.zero else "")


def _count(high: float, why: str, low: int = 1) -> Bound:
    return Bound(low, high, why)


_SHARE = Bound(0, 1)
_RATE = Bound(0, _FLOAT32, "it is infinite in float32", above=True)
_WEIGHT = Bound(0, 1e6, "weights are relative to 1")
BOUNDS = {
    "lora.r": _count(4096, "few layers are wider, and a larger adapter holds more numbers than its layer"),
    "lora.alpha": _count(10**6, "it is a scale, alpha / r"),
    "lora.dropout": Bound(0, 1, "with 1 nothing is learnt", below=True),
    "data.fetches": _count(256, "a server refuses more connections from one machine"),
    "data.attempts": _count(1000, "with pauses of up to 30 s that is a working day"),
    "data.sources.*": _count(10_000, "each copy takes memory for all positions of its samples"),
    "data.holdout": _SHARE,
    "data.objects_per_sample": _count(4096, "a sample has no more"),
    "data.threads": _count(1024, "no machine has more cores"),
    "data.prefetch": _count(1024, "each batch takes memory", low=0),
    "eval.every": _count(_MANY, "no run has more steps"),
    "eval.samples": _count(_MANY, "no set has more"),
    "eval.show": _count(1000, "the report holds them all in one page", low=0),
    "checkpoint.every": _count(_MANY, "no run has more steps"),
    "checkpoint.keep": _count(10**6, "no disk holds more"),
    "mix.*.weight": Bound(0, 1e6, "weights are relative to 1", above=True),
    "lambda_mask": _WEIGHT,
    "lambda_dice": _WEIGHT,
    "lambda_lang": _WEIGHT,
    "lambda_anchor": _WEIGHT,
    "num_points": _count(1024 * 1024, "a mask has no more pixels"),
    "oversample_ratio": Bound(1, 16, "memory grows with it"),
    "importance_sample_ratio": _SHARE,
    "ema_decay": _SHARE,
    "max_caption_tokens": _count(8192, "pseudo captions are written one token after the other"),
    "caption_temperature": Bound(1e-3, 100, "captions are random words far below that", zero=True),
    "max_text_tokens": _count(32768, "no language model of Sa2VA reads more"),
    "corrupt_ratio": _SHARE,
    "gumbel_tau": Bound(1e-3, 1000, "the mixture is even far below that"),
    "gumbel_top_k": _count(10**6, "no vocabulary is larger"),
    "lr": _RATE,
    "rates.*": _RATE,
    "betas.*": Bound(0, 1, "a moment that forgets nothing never ends its sum", below=True),
    "eps": Bound(0, 1, "it stands beside the square root of a squared gradient"),
    "weight_decay": Bound(0, 1000, "rate times decay above 1 turns weights around"),
    "warmup_steps": _count(_MANY, "no run has more steps", low=0),
    "warmup_from": _SHARE,
    "steps": _count(_MANY, "no run does more"),
    "accumulation": _count(10**6, "no step takes more batches"),
    "batch_size": _count(65536, "no GPU holds more samples"),
    "clip": _RATE,
    "seed": _count(2**31 - 1, "numpy takes 32 bits, and the step and the process are added to it", low=0),
    "collective_timeout": Bound(1, 10**7, "that is four months"),
    "stall_notice": Bound(1, 10**7, "that is four months"),
}
"""Bounds of numbers, by key; * stands for a name or a position."""
PATHS = ("model.path", "model.internvl", "model.sam2", "data.shards.*", "data.cache", "resume", "output_dir")
"""Texts that name files."""


def check_leaves(container: Mapping[str, Any]) -> None:
    """Raise `UserError` unless every number and every text of a configuration can be what it stands for."""
    for key, pattern, value in _leaves(container, "", ""):
        if isinstance(value, str):
            _check_text(key, value, is_path=pattern in PATHS)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            bound = BOUNDS[pattern]
            if not bound.holds(value):
                raise UserError("out of range", where=key, met=_short(value), wanted=bound.wanted(value))


def _leaves(node: Any, key: str, pattern: str) -> Iterator[tuple[str, str, Any]]:
    """Key, pattern (see `BOUNDS`) and value of each leaf."""
    is_single = pattern.endswith(".*") and pattern != "mix.*"
    if is_single and (node is None or isinstance(node, Mapping | list)):
        raise UserError("wrong type", where=key, met=str(node)[:80], wanted="a single value")
    if isinstance(node, Mapping):
        for name, value in node.items():
            below = f"{pattern}.*" if pattern in ("mix", "rates", "data.sources") else f"{pattern}.{name}".lstrip(".")
            yield from _leaves(value, f"{key}.{name}".lstrip("."), below)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for position, value in enumerate(node):
            yield from _leaves(value, f"{key}[{position}]", f"{pattern}.*")
    else:
        yield key, pattern, node


def _check_text(key: str, value: str, is_path: bool) -> None:
    if not value.strip():
        do = "is a variable unset? Leave the key out, or give null where it may be nothing"
        raise UserError("empty value", where=key, met=repr(value), wanted="a text", do=do)
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        raise UserError("not UTF-8", where=key, met=ascii(value)[:80], wanted="a text") from None
    if "\0" in value:
        raise UserError("a NUL character", where=key, met=ascii(value)[:80], wanted="a text without one")
    longest = max(len(name.encode()) for name in value.split("/")) if is_path else 0
    if length > _LONGEST or longest > _LONGEST_NAME:
        met, wanted = f"{length} bytes", f"at most {_LONGEST}, and {_LONGEST_NAME} between slashes"
        raise UserError("too long", where=key, met=met, wanted=wanted)


def _short(value: float) -> str:
    return str(value) if abs(value) < 10**20 or not isinstance(value, int) else f"a number of {value.bit_length()} bits"
