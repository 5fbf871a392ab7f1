"""What a sharding run tells its user, before and after."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from pipeline.plan import Plan
from pipeline.run import ShareSummary, Summary


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _print(title: str, rows: list[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def show_plan(plan: Plan, place: str) -> None:
    """Print what `plan` would write to `place`."""
    rows = [
        ("inputs", f"{len(plan.inputs):,}"),
        ("bytes of inputs", _size(sum(item.bytes for item in plan.inputs))),
        ("shards", f"{len(plan.shards):,}"),
        ("inputs a shard", f"{plan.per_shard:,}"),
        ("bytes, about", _size(len(plan.inputs) * plan.sample_bytes)),
        ("recipe", f"{plan.job.recipe.name} ({plan.job.recipe.digest})"),
    ]
    options = plan.job.options
    rows += [(name, str(value)) for name, value in options.items() if name not in ("limit", "shard_size", "found")]
    rows += [(f"found: {name}", f"{count:,}") for name, count in options.get("found", {}).items()]
    _print(f"{place}: nothing written (dry run)", rows)


def show_summary(summary: Summary) -> None:
    """Print what a run did, what it left out and why."""
    manifest = summary.manifest
    rows = [
        ("inputs", f"{manifest.inputs:,}"),
        ("samples written", f"{manifest.samples:,}"),
        ("objects", f"{manifest.objects:,}"),
        *((f"left out: {reason}", f"{count:,}") for reason, count in manifest.left_out.items()),
        *((note, f"{count:,}") for note, count in manifest.notes.items()),
        ("shards", f"{len(manifest.shards):,} ({summary.written_now:,} by this run)"),
        ("bytes", _size(sum(shard.bytes for shard in manifest.shards))),
        ("seconds", f"{summary.seconds:.1f}"),
    ]
    _print(summary.place, rows)


def show_share(summary: ShareSummary | Summary) -> None:
    """Print what a task did of a set, what it left out and why."""
    if isinstance(summary, Summary):  # finished already
        return show_summary(summary)
    rows = [
        ("inputs", f"{summary.inputs:,}"),
        ("samples written", f"{summary.samples:,}"),
        *((f"left out: {reason}", f"{count:,}") for reason, count in summary.left_out.items()),
        ("shards", f"{summary.shards:,} ({summary.written_now:,} by this run)"),
        ("seconds", f"{summary.seconds:.1f}"),
    ]
    _print(f"{summary.place}: task {summary.share.index} of {summary.share.count}", rows)
    Console().print(f"when all tasks are done: cli.py merge {summary.place}", soft_wrap=True, markup=False)
