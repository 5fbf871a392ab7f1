"""Raw datasets into shards: shard, merge, estimate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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
    Workers,
)
from shards.extras import extra
from shards.processors import usable_processors
from shards.program import command, this_command

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
    codec: PictureCodec = "zstd",
    limit: Limit = None,
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

    May be stopped at any moment: the same command goes on and ends with the same bytes.
    """
    from pipeline.plan import trial_plan
    from pipeline.request import make_request
    from pipeline.run import run, run_task
    from pipeline.show import show_plan, show_summary
    from pipeline.workspace import task_share
    from shards.size import parse_size

    request = make_request(
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
    share = task_share(task_index, task_count, engine, overwrite)
    place = f"{out.rstrip('/') or '/'}/{request.source.name}"
    if dry_run:
        with trial_plan(request) as (dataset, plan):
            show_plan(dataset, plan, place)
    elif share:
        show_summary(run_task(request, place, share, workers, max_bad, force=force, command=this_command()))
    else:
        options = {"overwrite": overwrite, "force": force}
        show_summary(run(request, place, workers, max_bad, engine=engine, command=this_command(), **options))


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
    codec: PictureCodec = "zstd",
    limit: Limit = None,
    samples: Annotated[int, Option(min=1, help="Samples to make and encode, spread over the dataset.")] = 64,
) -> None:
    """Estimate what sharding a dataset would take: samples, shards, bytes and hours, with their uncertainty.

    Writes nothing.
    """
    from pipeline.estimate import estimate as probe
    from pipeline.estimate import free_bytes
    from pipeline.request import make_request
    from pipeline.show import show_estimate
    from shards.size import parse_size

    request = make_request(
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
    found = probe(request, samples)
    free = None if "://" in out else free_bytes(Path(out))
    show_estimate(found, f"{out.rstrip('/')}/{request.source.name}", free, workers or usable_processors())
