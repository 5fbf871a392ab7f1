"""Raw datasets into shards: shard, merge, estimate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from commands.options import (
    Frames,
    Limit,
    MaskSlack,
    MaxBad,
    PictureCodec,
    PromptPooling,
    RecipeName,
    Root,
    ShardSize,
    Source,
    SourceSplit,
    SplitBy,
    Void,
    Without,
    Workers,
)
from shards.extras import extra
from shards.processors import usable_processors
from shards.program import command, this_command

if TYPE_CHECKING:
    from pipeline.request import Request
    from pipeline.sa2va_training import Result

Engine = Literal["local", "ray"]


@extra("pipeline")
def shard(
    source: Source,
    out: Annotated[str, Option(help="Folder that gets a folder named after the source; or s3://, gs://, az://.")],
    root: Root = None,
    recipe: RecipeName = "default",
    prompt_pooling: PromptPooling = None,
    split: SourceSplit = None,
    split_by: SplitBy = None,
    frames: Frames = None,
    void: Void = None,
    mask_slack: MaskSlack = None,
    workers: Annotated[
        int | None, Option(min=1, help="Processes.  [default: one per usable processor, of the cluster with ray]")
    ] = None,
    shard_size: ShardSize = "1GB",
    codec: PictureCodec = None,
    limit: Limit = None,
    without: Without = None,
    max_bad: MaxBad = 0.05,
    overwrite: Annotated[
        bool, Option("--overwrite", help="Replace a set that was made with other options or from other data.")
    ] = False,
    force: Annotated[
        bool,
        Option(
            "--force",
            help="Begin even if the disk is too small for the set; keep shards whose raw files have new times.",
        ),
    ] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Print what would be written, and write nothing.")] = False,
    engine: Annotated[
        Engine, Option(help="local: this machine. ray: the cluster of RAY_ADDRESS, else one on this machine.")
    ] = "local",
    task_index: Annotated[
        int | None,
        Option(min=0, help=f"This task's number, from 0, of --task-count; {command('merge')} finishes the set."),
    ] = None,
    task_count: Annotated[int | None, Option(min=1, help="Number of tasks that write the set side by side.")] = None,
) -> None:
    """Decode a raw dataset once into WebDataset shards that hold all four tensors.

    May be stopped at any moment: the same command goes on and ends with the same bytes. --source sa2va-training writes
    one set of each dataset in the folder of Sa2VA's training data.
    """
    from pipeline import show
    from pipeline.plan import trial_plan
    from pipeline.run import run, run_task, with_codec_in_use
    from pipeline.without import sets_besides
    from pipeline.workspace import task_share
    from shards.size import parse_size

    share = task_share(task_index, task_count, engine, overwrite)

    def make(request: Request) -> Result:
        place = _place(out, request.source.name)
        request = replace(request, without=sets_besides(without or (), place))
        if dry_run:
            with trial_plan(with_codec_in_use(request, place, overwrite)) as found:
                show.show_plan(*found, place)
                return found
        if share:
            done = run_task(request, place, share, workers, max_bad, force=force, command=this_command())
        else:
            options = {"overwrite": overwrite, "force": force}
            done = run(request, place, workers, max_bad, engine=engine, command=this_command(), **options)
        show.show_summary(done)
        return done

    _make(
        make,
        out,
        source,
        root,
        recipe=recipe,
        prompt_pooling=prompt_pooling,
        codec=codec,
        limit=limit,
        shard_bytes=parse_size(shard_size),
        split=split,
        split_by=split_by,
        frames=frames,
        void=void,
        mask_slack=mask_slack,
    )


def _make(make: Callable[[Request], Result], out: str, source: str, root: Path | None, **options: Any) -> None:
    """Call `make` with the request of a source, or with one for each dataset of a folder of several."""
    from pipeline.request import make_request
    from pipeline.sa2va_training import NAME, failure, for_each_part
    from pipeline.show import show_outcomes

    if source != NAME:
        make(make_request(source, root, **options))
        return
    outcomes = for_each_part(root or Path("data"), make, **options)
    show_outcomes(outcomes, out)
    if failed := failure(outcomes):
        raise failed


def _place(out: str, name: str) -> str:
    return f"{out.rstrip('/') or '/'}/{name}"


@extra("pipeline")
def merge(
    path: Annotated[str, Argument(help="Folder, or s3://, gs://, az://, of the set that the tasks wrote.")],
    max_bad: Annotated[float, Option(min=0, max=1, help="Largest share of bad inputs.")] = 0.05,
) -> None:
    """Finish a set that tasks wrote (shard --task-index I --task-count N): check its shards, write the manifest.

    The bytes are those of a set made on one machine. The raw data is not needed.
    """
    from pipeline.run import merge as finish
    from pipeline.show import show_summary

    show_summary(finish(path, max_bad))


@extra("pipeline")
def estimate(
    source: Source,
    out: Annotated[str, Option(help="Folder that would get a folder named after the source.")] = "shards",
    root: Root = None,
    recipe: RecipeName = "default",
    prompt_pooling: PromptPooling = None,
    split: SourceSplit = None,
    split_by: SplitBy = None,
    frames: Frames = None,
    void: Void = None,
    mask_slack: MaskSlack = None,
    workers: Workers = None,
    shard_size: ShardSize = "1GB",
    codec: PictureCodec = None,
    limit: Limit = None,
    without: Without = None,
    samples: Annotated[int, Option(min=1, help="Samples to make and encode, spread over the dataset.")] = 64,
) -> None:
    """Estimate what sharding a dataset would take: samples, shards, bytes and hours, with their uncertainty.

    Writes nothing. Takes --source sa2va-training, too.
    """
    from pipeline.estimate import estimate as probe
    from pipeline.estimate import free_bytes
    from pipeline.run import with_codec_in_use
    from pipeline.show import show_estimate
    from pipeline.without import sets_besides
    from shards.size import parse_size

    def make(request: Request) -> Result:
        place = _place(out, request.source.name)
        request = replace(request, without=sets_besides(without or (), place))
        found = probe(with_codec_in_use(request, place), samples)
        free = None if "://" in out else free_bytes(Path(out))
        show_estimate(found, place, free, workers or usable_processors())
        return found

    _make(
        make,
        out,
        source,
        root,
        recipe=recipe,
        prompt_pooling=prompt_pooling,
        codec=codec,
        limit=limit,
        shard_bytes=parse_size(shard_size),
        split=split,
        split_by=split_by,
        frames=frames,
        void=void,
        mask_slack=mask_slack,
    )
