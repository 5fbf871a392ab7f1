"""Compare two models on the same items: differences of measures with their intervals, and what changed most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.published.datasets import OpenBenchmark, Options, opened
from evaluation.published.datasets.named import BENCHMARKS
from evaluation.published.measures import Measure, value_of, values_of
from evaluation.published.predictions import Predictions, read_predictions
from evaluation.published.report import SHOWN, Answered, Section, write_page
from evaluation.published.run import RESULTS
from evaluation.published.scoring import percent, score, with_whole
from inference.pictures import write_json
from shards.errors import UserError
from shards.output_folder import make_output_folder
from shards.printable import printable
from shards.strict_json import parse_json
from shards.tables import add_row, plain_table, table_text

DRAWS = 20_000
COMPARISON = "compare.json"
PAGE = "compare.html"
_PLAIN = Options()
_TAIL = 0.025  # outside of the interval, on each side
_AT_ONCE = 1 << 21  # items of draws that are drawn at once
_HEADS = ("A", "B", "B - A", "95 % from", "to", "")


@dataclass(frozen=True)
class Difference:
    """A measure of two models on the same items."""

    first: float
    second: float
    difference: float
    """Of the second from the first."""
    low: float
    """Lower end of the 95 % interval of the difference."""
    high: float

    @property
    def verdict(self) -> str:
        """What the interval says; "" where it holds 0."""
        return "B is better" if self.low > 0 else "A is better" if self.high < 0 else ""

    def cells(self) -> list[str]:
        """Return the values in percent, and the verdict."""
        return [*(percent(value) for value in asdict(self).values()), self.verdict]


def bootstrap(
    first: Mapping[str, Measure], second: Mapping[str, Measure], draws: int = DRAWS, seed: int = 0
) -> dict[str, Difference]:
    """Return the difference of each measure with its 95 % interval, by paired bootstrap over items.

    Each draw takes N of the N items with replacement, the same for both; the interval holds the middle 95 % of the
    differences (Efron and Tibshirani, "An Introduction to the Bootstrap", the percentile interval).

    Args:
        first: measures of the same N items.
        second: the same for the other model.
    """
    number = next(iter(first.values()))[0].items
    rng = np.random.default_rng(seed)
    found: dict[str, list[Any]] = {name: [] for name in first}
    step = max(1, _AT_ONCE // number)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        places = rng.integers(0, number, (rows, number)) + number * np.arange(rows)[:, None]
        counts = np.bincount(places.ravel(), minlength=rows * number).reshape(rows, number).astype(np.float64)
        for name, differences in found.items():
            differences.append(values_of(second[name], counts) - values_of(first[name], counts))
    compared = {}
    for name, differences in found.items():
        known = np.concatenate(differences)
        known = known[~np.isnan(known)]  # a draw may hold no item that the measure counts
        low, high = np.quantile(known, (_TAIL, 1 - _TAIL)) if len(known) else (np.nan, np.nan)
        values = value_of(first[name]), value_of(second[name])
        compared[name] = Difference(*values, values[1] - values[0], float(low), float(high))
    return compared


def compare(
    first: Path,
    second: Path,
    out: Path,
    *,
    name: str | None = None,
    split: str | None = None,
    root: Path | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    options: Options = _PLAIN,
) -> str:
    """Compare two files of predictions on the items that both answer; write compare.json and compare.html.

    Args:
        out: the folder of both.
        name: key of `BENCHMARKS`. This, `split` and `root` are by default what the results beside `first` say.
        options: of single benchmarks.

    Returns:
        The differences as a table.

    Raises:
        UserError: no such benchmark, data or predictions; no item that both answer.
    """
    known = _known(first)
    name = str(name or known.get("benchmark", "none"))
    split = split or known.get("split")
    place = root or known.get("root")
    if name not in BENCHMARKS or not isinstance(split, str) or not isinstance(place, str | Path):
        do = f"give --on, --split and --root, or files with {RESULTS} beside them"
        raise UserError("which benchmark", where=str(first), met=name, wanted=" or ".join(BENCHMARKS), do=do)
    with opened(BENCHMARKS[name].with_options(options), Path(place), split) as found:
        of_both = [_answered(label, file, found) for label, file in (("A", first), ("B", second))]
        answered, notes = _common([one for one, _ in of_both], found)
        notes = [*dict.fromkeys([*found.notes, *(note for _, more in of_both for note in more)]), *notes]
        measures = [one.scored.measures for one in answered]
        if not all(measures):
            raise UserError("nothing to compare", where=name, met="; ".join(notes))
        compared = bootstrap(measures[0], measures[1], draws, seed)
        title = f"{name}, {split}: A = {first}, B = {second}"
        notes.append(f"{len(answered[0].scored.items):,} items, {draws:,} draws, seed {seed}")
        make_output_folder(out)
        values = {
            **{"benchmark": name, "split": split, "first": str(first), "second": str(second), "draws": draws},
            **{"seed": seed, "items": len(answered[0].scored.items), "notes": notes},
            "measures": {key: _finite(asdict(value)) for key, value in compared.items()},
        }
        write_json(out / COMPARISON, values)
        rows = [(key, value.cells()) for key, value in compared.items()]
        write_page(out / PAGE, title, found, answered, _most_changed(answered), _HEADS, rows, notes)
    grid = plain_table(title)
    for head in ("measure", *_HEADS):
        grid.add_column(head, justify="left" if head in ("measure", "") else "right")
    for key, cells in rows:
        add_row(grid, (key, *cells))
    return "\n".join([table_text(grid, 140), *map(printable, notes), f"see {out / PAGE}"])


def _known(predictions: Path) -> dict[str, Any]:
    """Return the results beside predictions; {} without them."""
    file = predictions.parent / RESULTS
    try:
        values = parse_json(file.read_bytes()) if file.is_file() else {}
    except ValueError as error:
        raise UserError("not the results of a benchmark", where=str(file), met=str(error)) from None
    return values if isinstance(values, dict) else {}


def _answered(label: str, file: Path, found: OpenBenchmark) -> tuple[Answered, list[str]]:
    """Measure predictions item by item; return them with what a reader of the numbers has to know."""
    predictions = read_predictions(file)
    prepared, more = found.benchmark.prepare(found, predictions.of_item, file.parent)
    scored = score(replace(found, benchmark=prepared), predictions, str(file))
    return Answered(label, predictions.of_item, scored, str(file)), [f"{label}: {note}" for note in more]


def _common(answered: list[Answered], found: OpenBenchmark) -> tuple[list[Answered], list[str]]:
    """Restrict both to the items that both answer; return them with notes on what was left out."""
    ids = [[item.id for _, item in one.scored.items] for one in answered]
    both = set(ids[0]) & set(ids[1])
    if not both:
        raise UserError("no item that both answer", where=answered[0].where, met=answered[1].where)
    notes = [
        f"left out: {len(own) - len(both):,} items that {one.label} alone answers"
        for one, own in zip(answered, ids, strict=True)
        if len(own) > len(both)
    ]
    kept = [np.array([item in both for item in own]) for own in ids]
    both_answer = []
    for one, keep in zip(answered, kept, strict=True):
        scored = with_whole(one.scored.among(keep), found, Predictions(one.of_item, 0))
        both_answer.append(replace(one, scored=scored))
    return both_answer, notes


def _most_changed(answered: list[Answered]) -> list[Section]:
    change = answered[1].scored.quality - answered[0].scored.quality
    order = np.argsort(-change, kind="stable")
    better = [int(place) for place in order[:SHOWN] if change[place] > 0]
    worse = [int(place) for place in order[::-1][:SHOWN] if change[place] < 0]
    return [Section("B better", better), Section("B worse", worse)]


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {key: None if np.isnan(value) else value for key, value in values.items()}
