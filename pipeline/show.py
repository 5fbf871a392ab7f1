"""What a sharding run tells its user, before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.estimate import Amount, Estimate
from pipeline.plan import Plan
from pipeline.run import ShareSummary, Summary
from pipeline.walk import NOT_READ, OTHER
from shards.printable import printable
from shards.program import command
from shards.size import size_text
from shards.tables import add_row, plain_console, plain_table


def _print(title: str, rows: list[tuple[str, str]]) -> None:
    table = plain_table("", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        add_row(table, row)
    print(printable(title))  # not as the table's: a path is not cut, however narrow the table is
    plain_console().print(table)


def _found(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of all counts of the search for inputs that are not 0: what was left out there is in no ledger."""
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
    return rows


def show_plan(plan: Plan, place: str) -> None:
    """Print what `plan` would write to `place`."""
    rows = [
        ("inputs", f"{len(plan.inputs):,}"),
        ("bytes of inputs", size_text(sum(item.bytes for item in plan.inputs))),
        ("shards", f"{len(plan.shards):,}"),
        ("inputs a shard", f"{plan.per_shard:,}"),
        ("bytes, about", size_text(len(plan.inputs) * plan.sample_bytes)),
        ("recipe", str(plan.job.recipe)),
    ]
    options = plan.job.options
    shown = {name: value for name, value in options.items() if name not in ("limit", "shard_size", "found")}
    rows += [(name, str(value)) for name, value in shown.items() if value is not None]
    rows += _found(options)
    _print(f"{place}: nothing written (dry run)", rows)


def show_summary(summary: Summary) -> None:
    """Print what a run did, what it left out and why."""
    manifest = summary.manifest
    rows = [
        *_found(manifest.options),
        ("inputs", f"{manifest.inputs:,}"),
        ("samples written", f"{manifest.samples:,}"),
        ("objects", f"{manifest.objects:,}"),
        *((f"left out: {reason}", f"{count:,}") for reason, count in manifest.left_out.items()),
        *((note, f"{count:,}") for note, count in manifest.notes.items()),
        ("shards", f"{len(manifest.shards):,} ({summary.written_now:,} by this run)"),
        ("bytes", size_text(sum(shard.bytes for shard in manifest.shards))),
        ("seconds", f"{summary.seconds:.1f}"),
    ]
    _print(summary.place, rows)


def show_share(summary: ShareSummary | Summary) -> None:
    """Print what a task did of a set, what it left out and why."""
    if isinstance(summary, Summary):  # finished already
        return show_summary(summary)
    rows = [
        *_found(summary.options),
        ("inputs", f"{summary.inputs:,}"),
        ("samples written", f"{summary.samples:,}"),
        *((f"left out: {reason}", f"{count:,}") for reason, count in summary.left_out.items()),
        ("shards", f"{summary.shards:,} ({summary.written_now:,} by this run)"),
        ("seconds", f"{summary.seconds:.1f}"),
    ]
    _print(f"{summary.place}: task {summary.share.index} of {summary.share.count}", rows)
    print(printable(f"when all tasks are done: {command('merge')} {summary.place}"))


def show_estimate(estimate: Estimate, place: str, free: int | None, workers: int) -> None:
    """Print what a run into `place` would take with so many processes, and how sure that is."""
    rows = [
        ("inputs", f"{estimate.inputs:,}, of which {estimate.probed:,} were probed"),
        ("samples", _about(estimate.samples, lambda count: f"{count:,.0f}")),
        ("shards", f"{estimate.shards:,}"),
        ("files", f"{estimate.files:,}"),
        ("bytes", _about(estimate.bytes, size_text)),
        ("free", "unknown" if free is None else size_text(free)),
        (f"hours, {workers} processes", _about(estimate.seconds, lambda seconds: f"{seconds / workers / 3600:.3g}")),
    ]
    _print(f"{place}: nothing written (estimate)", rows)
    if free is not None and estimate.bytes.total > free:
        print("the disk will not hold it")


def _about(amount: Amount, text: Callable[[float], str]) -> str:
    """With half of the 95 % interval."""
    return text(amount.total) + (f" +- {100 * amount.error / amount.total:.0f} %" if amount.total else "")
