"""Shard sets checked, rewritten and shown: verify-shard, recode, split, sample, preview, stats, table, join."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option

from commands.options import Codec, FinishedSet, Group, NewFolder, ShardSize, Where, Workers
from commands.output import say
from shards.errors import UserError
from shards.extras import extra
from shards.processors import usable_processors


@extra("pipeline")
def verify_shard(
    paths: Annotated[
        list[str],
        Argument(metavar="PATH", help="Tars, shard sets, folders of sets, or patterns of these."),
    ],
    against: Annotated[
        Path | None,
        Option(
            metavar="ROOT",
            help="Make every sample again from the raw data in ROOT and compare all bits; for a lossy set, compare "
            "its pictures' recorded loss.",
        ),
    ] = None,
    source: Annotated[
        str | None, Option(metavar="MODULE:CLASS", help="With --against: your own source that made the set.")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print the report as JSON.")] = False,
    workers: Workers = None,
    allow_lossy: Annotated[
        bool, Option("--allow-lossy", help="Check sets of lossy pictures too; without it each of them fails.")
    ] = False,
) -> None:
    """Check shards: structure, shape, dtype, range, checksums, and that the four formats agree.

    Exit status 0 only if all holds. Each failure names shard, key, field, the value met and the value wanted.
    """
    import json
    from tempfile import TemporaryDirectory

    from shards.verification import verify

    with TemporaryDirectory() as work:
        raw = None
        if against:
            from pipeline.derive import Deriver
            from pipeline.sources import chosen_source

            raw = Deriver(against, Path(work), chosen_source(source) if source else None)
        report = verify(
            paths,
            derive=raw.derive if raw else None,
            same_inputs=raw.same_inputs if raw else None,
            workers=workers or usable_processors(),
            allow_lossy=allow_lossy,
        )
    say(json.dumps(report.to_json(), indent=1) if as_json else report.table())
    if not report.ok:
        raise Exit(1)


@extra("pipeline")
def recode(
    path: FinishedSet,
    out: NewFolder,
    codec: Annotated[
        Codec, Option(help="Codec of the pictures: gradient, zstd or raw, all lossless; or jpeg, which is not.")
    ],
    threads: Annotated[
        int | None, Option(min=1, help="Shards to write at a time.  [default: one per usable processor]")
    ] = None,
) -> None:
    """Write a shard set once more with another codec. The raw data is not needed.

    Every tensor is bit-equal, except with jpeg: it loses a little in the pictures, measures it, and the manifest says
    so.

    May be stopped at any moment: the same command goes on and ends with the same bytes.
    """
    from shards.recode import recode as write

    manifest = write(path, out, codec, threads or usable_processors())
    size = sum(shard.bytes for shard in manifest.shards)
    shards = f"{len(manifest.shards):,} shards, {size / 1e9:,.2f} GB"
    say(f"{out}: {manifest.samples:,} samples in {shards}; pictures {manifest.pictures}")


@extra("pipeline")
def split(
    path: FinishedSet,
    out: Annotated[Path, Option(help="Folder that gets NAME-train and NAME-val.")],
    share: Annotated[float, Option(min=0, max=1, help="Share of the groups that goes to val.")] = 0.05,
    by: Annotated[
        Group,
        Option(
            help="What stays together: each sample alone, all samples of a raw file, all of a folder of raw files, or "
            "all of a picture or video."
        ),
    ] = "file",
    shard_size: ShardSize = "1GB",
    where: Where = None,
) -> None:
    """Cut a shard set in two by a hash of names: what is held out stays held out when data is added.

    With --where, samples with such an object are taken, and keep all of their objects.

    May be stopped at any moment: the same command goes on and ends with the same bytes.
    """
    from shards.select import split as cut
    from shards.size import parse_size

    parts = cut(path, out, share, by, parse_size(shard_size), where)
    for part, manifest in zip(("train", "val"), parts, strict=True):
        say(f"{out / (path.resolve().name + '-' + part)}: {manifest.samples:,} samples, {manifest.objects:,} objects")


@extra("pipeline")
def sample(
    path: FinishedSet,
    out: NewFolder,
    n: Annotated[int, Option("--n", min=1, help="Samples to take, at random.")],
    seed: Annotated[int, Option(help="Another seed takes other samples.")] = 0,
    shard_size: ShardSize = "1GB",
    where: Where = None,
) -> None:
    """Take a small shard set out of a large one.

    With --where, of the samples with such an object. They keep all of their objects.
    """
    from shards.select import sample as take
    from shards.size import parse_size

    manifest = take(path, out, n, seed, parse_size(shard_size), where)
    say(f"{out}: {manifest.samples:,} samples, {manifest.objects:,} objects; {manifest.selection}")


@extra("pipeline")
def preview(
    paths: Annotated[list[str], Argument(metavar="PATH", help="Shard sets, folders of sets, or one tar of a set.")],
    out: Annotated[
        Path | None,
        Option(help="Folder for the page; of several sets, for a folder per set.  [default: runs/preview/NAME]"),
    ] = None,
    samples: Annotated[int, Option(min=1, help="Samples of each set to show, spread over it.")] = 8,
    where: Where = None,
) -> None:
    """Draw contact sheets of shard sets, and one page per set that shows them."""
    from shards.preview import preview_sets

    for page in preview_sets(paths, out, samples, where):
        say(f"preview: {page}")


@extra("pipeline")
def stats(
    paths: Annotated[list[str], Argument(metavar="PATH", help="Shard sets, folders of sets, or patterns.")],
    out: Annotated[Path | None, Option(help="File for the page.  [default: runs/stats/NAME.html]")] = None,
    samples: Annotated[int, Option(min=1, help="Samples of each set to measure, spread over it.")] = 2000,
    where: Where = None,
    as_json: Annotated[bool, Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Measure shard sets: samples, objects, areas, prompt cells, texts, sizes.

    Prints a table and writes a page with plots.
    """
    import json

    from shards.output_folder import check_output_file
    from shards.stats import measure_sets, table, write_page

    page = out or Path("runs", "stats", f"{Path(paths[0]).resolve().name.strip('*') or 'sets'}.html")
    check_output_file(page)
    found = measure_sets(paths, samples, where)
    write_page(found, page)
    say(json.dumps([one.to_json() for one in found], indent=1) if as_json else f"{table(found)}\npage: {page}")


@extra("pipeline")
def table(
    paths: Annotated[list[str], Argument(metavar="PATH", help="Shard sets, folders of sets, or patterns.")],
    overwrite: Annotated[bool, Option("--overwrite", help="Write tables again that are there.")] = False,
    threads: Annotated[
        int | None, Option(min=1, help="Samples to read at a time.  [default: one per usable processor]")
    ] = None,
) -> None:
    """Write objects.parquet beside the tars of shard sets: one row per object, for DuckDB, polars, pandas and --where.

    The verbs that write a set write it too: this is for sets of older releases. A table of an earlier state of its set
    is replaced. The tars stay as they are.
    """
    from shards.sets import find_sets
    from shards.table import write_tables

    for folder in map(Path, find_sets(paths)):
        for name, (rows, was_there) in write_tables(folder, threads or usable_processors(), overwrite).items():
            say(f"{folder / name}: {rows:,} rows{', up to date' if was_there else ''}")


@extra("pipeline")
def overlap(
    a: Annotated[str, Argument(metavar="A", help="A shard set, a folder of sets, or a pattern.")],
    b: Annotated[str, Argument(metavar="B", help="Another, or A again for twins within A.")],
    distance: Annotated[
        int, Option(min=0, max=16, help="Bits of 64 in which the hashes of nearly equal pictures may differ.")
    ] = 6,
    show: Annotated[int, Option(min=0, help="Pairs to print and to draw.")] = 20,
    out: Annotated[Path | None, Option(help="File for the page.  [default: runs/overlap/A-B.html]")] = None,
    fail: Annotated[bool, Option("--fail", help="Exit status 1 where there is a pair.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print counts and pairs as JSON.")] = False,
    threads: Annotated[
        int | None, Option(min=1, help="Threads that search.  [default: one per usable processor]")
    ] = None,
) -> None:
    """Find pictures that two shard sets share, exactly or nearly, so that nobody measures on what was trained on.

    Reads the tables pictures.parquet, which cli.py table writes for older sets. Prints the nearest pairs, writes a page
    with their thumbnails, and all pairs as a parquet file beside it.
    """
    import json

    from shards.output_folder import check_output_file
    from shards.overlap_page import compare_sets, list_note, write_page, write_pairs

    names = [Path(side).resolve().name.strip("*") or "sets" for side in (a, b)]
    page = out or Path("runs", "overlap", f"{'-'.join(names)}.html")
    pairs = page.with_suffix(".parquet")
    check_output_file(page)
    check_output_file(pairs)
    compared = compare_sets(a, b, distance, threads or usable_processors())
    note = list_note(compared, pairs)
    write_pairs(compared, pairs)
    write_page(compared, page, [*compared.lines(), note], show)
    say(json.dumps(compared.to_json(show), indent=1) if as_json else f"{compared.text(show)}\n{note}\npage: {page}")
    if fail and compared.pairs:
        raise Exit(1)


@extra("pipeline")
def join(
    path: FinishedSet,
    file: Annotated[
        Path | None, Argument(metavar="[FILE]", help="A parquet file with the column key, and perhaps object or id.")
    ] = None,
    name: Annotated[
        str | None, Option("--as", metavar="NAME", help="Name of the table.  [default: that of the file]")
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace a table of this name.")] = False,
    drop: Annotated[str | None, Option("--drop", metavar="NAME", help="Remove a table that was joined.")] = None,
) -> None:
    """Put columns that were made later beside a set, one row per object, for --where and data.where.

    Rows are found by the sample's key, and by object (its number in the sample) or id where the file has them. Writes
    NAME.parquet; the tars stay as they are. docs/TABLE.md has an example.
    """
    from shards.join import drop as remove
    from shards.join import explain, join_file

    if (file is None) == (drop is None) or (drop is not None and (name is not None or overwrite)):
        raise UserError("a file or --drop", wanted="exactly one: FILE with --as and --overwrite, or --drop NAME")
    if drop is not None:
        say(f"{remove(path, drop)}: removed")
    elif file is not None:
        say(explain(join_file(path, file, name, overwrite)))
