"""Compare the values of a model's `config.json` with the weights beside it, before a model is built.

A model with more layers, width or vocabulary than the files have would take memory and hours before it failed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from shards.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]

_COUNTS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_LANGUAGE_COUNTS = (*_COUNTS, "num_key_value_heads", "vocab_size", "head_dim", "max_position_embeddings")
_OPTIONAL_COUNTS = ("sliding_window",)
_NUMBERS = ("layer_norm_eps", "rms_norm_eps", "rope_theta", "initializer_range", "initializer_factor")
_TABLES = ("embed_tokens", "tok_embeddings")
_DIFFERS = "another size than that of the weights"
_LARGEST = 1 << 24
"""Largest value of any count; the only bound of those that are no weight's size, such as the length of a text."""


def check_settings(config: Mapping[str, Any], shapes: Shapes, where: str) -> None:
    """Check the two inner configurations of a Sa2VA or an InternVL.

    Args:
        config: the content of `config.json`.
        shapes: of the tensors beside it, by name.
        where: the file, for messages.

    Raises:
        UserError: a value of a wrong type or out of range, or another size than that of the weights.
    """
    _check_finite(config, where)
    for section, counts in (("vision_config", _COUNTS), ("llm_config", _LANGUAGE_COUNTS)):
        values = config.get(section)
        if not isinstance(values, dict):
            raise UserError(
                "not supported",
                where=f"{where}, {section}",
                met=repr(values)[:60],
                wanted="a JSON object",
                do="this Sa2VA joins InternVL at 448 x 448 with SAM 2",
            )
        _check_types(values, counts, f"{where}, {section}")
        kinds = values.get("architectures", [""])
        if kinds is not None and (not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds)):
            key = f"{where}, {section}.architectures"
            raise UserError("not a list of names", where=key, met=repr(kinds)[:60])
        _check_heads(values, shapes, f"{where}, {section}")
        for key, (size, tensor) in _sizes_of_weights(section, shapes).items():
            if key in values and values[key] != size:
                expected = f"{size}, as {tensor} has"
                raise UserError(_DIFFERS, where=f"{where}, {section}.{key}", met=str(values[key]), wanted=expected)


def _check_finite(value: Any, where: str) -> None:
    """Raise `UserError` for a number in `value` that is not finite: Python's JSON reader accepts NaN."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        key, found = waiting.pop()
        if isinstance(found, float) and not math.isfinite(found):
            raise UserError("not a finite number", where=f"{where}, {key}", met=str(found))
        if isinstance(found, dict | list):
            items = found.items() if isinstance(found, dict) else enumerate(found)
            waiting += [(f"{key}.{name}" if key else str(name), inner) for name, inner in items]


def _check_types(values: Mapping[str, Any], counts: tuple[str, ...], where: str) -> None:
    for key in (*counts, *_OPTIONAL_COUNTS):
        value = values.get(key)
        needed = value is not None or key in _COUNTS
        if needed and (type(value) is not int or not 1 <= value <= _LARGEST):
            expected = f"a whole number, 1 to {_LARGEST:,}"
            raise UserError("not a size", where=f"{where}.{key}", met=repr(value)[:60], wanted=expected)
    for key in _NUMBERS:
        value = values.get(key)
        if value is not None and (type(value) not in (int, float) or value < 0):
            raise UserError("not a number", where=f"{where}.{key}", met=repr(value)[:60], wanted="0 or more")


def _check_heads(values: Mapping[str, Any], shapes: Shapes, where: str) -> None:
    """Raise `UserError` unless heads divide the width, share keys and values evenly, and have the weights' width."""
    heads = values["num_attention_heads"]
    width = values["hidden_size"]
    if heads > width or (values.get("head_dim") is None and width % heads):
        key = f"{where}.num_attention_heads"
        expected = f"a divisor of hidden_size, {width}"
        raise UserError("heads that do not share the width", where=key, met=str(heads), wanted=expected)
    groups = values.get("num_key_value_heads") or heads  # None: as many
    if heads % groups:
        key = f"{where}.num_key_value_heads"
        expected = f"a divisor of num_attention_heads, {heads}"
        raise UserError("heads that are not shared evenly", where=key, met=str(groups), wanted=expected)
    if (size := values.get("head_dim")) is not None:
        for name in _matching(shapes, r"language_model\.model\.layers\.\d+\.self_attn\.q_proj\.weight(?:_int8)?$"):
            if shapes[name][0] != heads * size:
                value = f"{size} for each of {heads} heads"
                expected = f"{shapes[name][0]} together, as {name} has"
                raise UserError(_DIFFERS, where=f"{where}.head_dim", met=value, wanted=expected)


def _sizes_of_weights(section: str, shapes: Shapes) -> dict[str, tuple[int, str]]:
    """Read the values of a section's keys from the tensors: key -> (value, the tensor or file that has it).

    A tensor that is missing gives no value.
    """
    found: dict[str, tuple[int, str]] = {}
    vision = section == "vision_config"
    part = r"vision_model\.encoder\.layers?" if vision else r"language_model\.model\.layers"
    numbers = {match[1] for name in shapes if (match := re.match(rf"{part}\.(\d+)\.", name))}
    found["num_hidden_layers"] = len(numbers), "the file"
    first = r"\d+\.mlp\.fc1\." if vision else r"\d+\.(?:mlp\.gate_proj|feed_forward\.w1)\."
    for name in _matching(shapes, rf"{part}\.{first}weight(?:_int8)?$"):
        found["intermediate_size"] = shapes[name][0], name
        found["hidden_size"] = shapes[name][1], name
    for name in () if vision else _matching(shapes, rf"language_model\.model\.(?:{'|'.join(_TABLES)})\.weight$"):
        found["vocab_size"] = shapes[name][0], name
        found["hidden_size"] = shapes[name][1], name
    return found


def _matching(shapes: Shapes, pattern: str) -> Iterator[str]:
    """Yield the names of matrices that begin with `pattern`."""
    return (name for name, shape in shapes.items() if len(shape) == 2 and re.match(pattern, name))
