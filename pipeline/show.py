"""Tables that a sharding run prints, before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.dataset import RawDataset
from pipeline.estimate import Amount, Estimate
from pipeline.plan import Plan
from pipeline.run import RunSummary, TaskSummary
from pipeline.sa2va_training import Outcome
from pipeline.walk import NOT_READ, OTHER
from pipeline.without import OPTION
from shards.printable import printable
from shards.program import command
from shards.size import size_text
from shards.tables import add_row, plain_console, plain_table

_ELSEWHERE = ("limit", "shard_size", "found", OPTION)  # options that are in other rows


def show_plan(dataset: RawDataset, plan: Plan, place: str) -> None:
    """Print what a run would write to `place`."""
    rows = [
        ("inputs", f"{plan.inputs:,}"),
        ("bytes of inputs", size_text(sum(item.bytes for item in dataset.inputs))),
        ("shards", f"{len(plan.shards):,}"),
        ("inputs per shard", f"{plan.per_shard:,}"),
        ("bytes, about", size_text(plan.inputs * plan.sample_bytes)),
        ("recipe", str(plan.recipe)),
    ]
    options = {name: value for name, value in plan.options.items() if name not in _ELSEWHERE}
    rows += [(name, str(value)) for name, value in options.items() if value is not None]
    rows += _found(plan.options)
    _print(f"{place}: nothing written (dry run)", rows)
    _print_remarks(dataset.remarks)


def show_summary(summary: RunSummary | TaskSummary) -> None:
    """Print what a run or a task did, what it left out and why."""
    if isinstance(summary, TaskSummary):
        _show_task(summary)
        return
    manifest = summary.manifest
    rows = [
        *_found(manifest.options),
        ("inputs", f"{manifest.inputs:,}"),
        ("samples written", f"{manifest.samples:,}"),
        ("objects", f"{manifest.objects:,}"),
        *_left_out(manifest.left_out),
        *((note, f"{count:,}") for note, count in manifest.notes.items()),
        ("shards", f"{len(manifest.shards):,} ({summary.written_now:,} by this run)"),
        ("bytes", size_text(sum(shard.bytes for shard in manifest.shards))),
        ("seconds", f"{summary.seconds:.1f}"),
    ]
    _print(summary.place, rows)


def _show_task(summary: TaskSummary) -> None:
    rows = [
        *_found(summary.options),
        ("inputs", f"{summary.inputs:,}"),
        ("samples written", f"{summary.samples:,}"),
        *_left_out(summary.left_out),
        ("shards", f"{summary.shards:,} ({summary.written_now:,} by this run)"),
        ("seconds", f"{summary.seconds:.1f}"),
    ]
    _print(f"{summary.place}: task {summary.share.index} of {summary.share.count}", rows)
    print(printable(f"when all tasks are done: {command('merge')} {summary.place}"))


def show_estimate(estimate: Estimate, place: str, free: int | None, workers: int) -> None:
    """Print what a run into `place` would take, and how sure that is.

    Args:
        free: bytes on the disk; None where it is not known.
        workers: number of processes.
    """
    rows = [
        ("inputs", f"{estimate.inputs:,}, of which {estimate.probed:,} were probed"),
        ("samples", _amount(estimate.samples, lambda count: f"{count:,.0f}")),
        ("shards", f"{estimate.shards:,}"),
        ("files", f"{estimate.files:,}"),
        ("bytes", _amount(estimate.bytes, size_text)),
        ("free", "unknown" if free is None else size_text(free)),
        (f"hours, {workers} processes", _amount(estimate.seconds, lambda seconds: f"{seconds / workers / 3600:.3g}")),
    ]
    _print(f"{place}: nothing written (estimate)", rows)
    _print_remarks(estimate.remarks)
    if free is not None and estimate.bytes.total > free:
        print("the disk will not hold it")


def show_outcomes(outcomes: Sequence[Outcome], out: str) -> None:
    """Print what became of each dataset of a folder of several, one a line, then why those without a set have none."""
    table = plain_table("")
    for name in ("dataset", "state", "samples", "bytes"):
        table.add_column(name, justify="right" if name in ("samples", "bytes") else "left", no_wrap=True)
    for outcome in outcomes:
        samples = "" if outcome.samples is None else f"{outcome.samples:,}"
        size = "" if outcome.bytes is None else size_text(outcome.bytes)
        add_row(table, (outcome.source, outcome.state, samples, size))
    states = Counter(outcome.state for outcome in outcomes)
    total = size_text(sum(outcome.bytes or 0 for outcome in outcomes))
    print(printable(f"{out}: " + ", ".join(f"{count} {state}" for state, count in states.items()) + f"; {total}"))
    plain_console().print(table)
    for outcome in outcomes:
        if outcome.detail:
            print(printable(f"{outcome.source} {outcome.state}: {outcome.detail}"))


def _print(title: str, rows: list[tuple[str, str]]) -> None:
    table = plain_table("", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        add_row(table, row)
    print(printable(title))  # not as the table's title: a path is not cut, however narrow the table is
    plain_console().print(table)


def _print_remarks(remarks: Sequence[str]) -> None:
    for remark in remarks:
        print(printable(remark))


def _found(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of all counts of the search for inputs that are not 0: what was left out there is in no ledger."""
    held = options.get(OPTION, {}).get("inputs", 0)
    counts = {name: count for name, count in options.get("found", {}).items() if count}
    prefixes = (OTHER, NOT_READ[0])
    rows = [(f"found: {name}", f"{count:,}") for name, count in counts.items() if not name.startswith(prefixes)]
    suffixes: Counter[str] = Counter()
    for name, count in counts.items():
        if name.startswith(prefixes):
            suffixes[name.partition(":")[2].removeprefix(" *").strip()] += count
    if suffixes:
        each = ", ".join(f"{suffix} {count:,}" for suffix, count in suffixes.most_common())
        rows.append(("left out: files with other suffixes", f"{suffixes.total():,}: {each}"))
    return [*rows, ("left out: in other sets", f"{held:,}")] if held else rows


def _left_out(reasons: Mapping[str, int]) -> list[tuple[str, str]]:
    return [(f"left out: {reason}", f"{count:,}") for reason, count in reasons.items()]


def _amount(amount: Amount, text: Callable[[float], str]) -> str:
    """The total, with half of its 95 % interval in percent."""
    return text(amount.total) + (f" +- {100 * amount.error / amount.total:.0f} %" if amount.total else "")
