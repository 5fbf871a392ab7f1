#!/usr/bin/env python3
"""The command line. It parses and calls; what the verbs do is in the folders beside it.

Heavy imports stand inside the verbs, so that help answers at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import typer

from shards.size import parse_size

if TYPE_CHECKING:
    from inference.predictor import Predictor

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # drawing help with rich takes longer than all the rest
    help="Segmentation data for Sa2VA: raw datasets into shards, shards checked and looked at.",
)

Dtype = Literal["float32", "bfloat16"]
Form = Literal["sa2va", "onnx", "int8"]
Codec = Literal["zstd", "raw", "jpeg"]
Group = Literal["sample", "file", "folder", "picture"]
Engine = Literal["local", "ray"]
Objective = Literal["segment", "dual", "describe", "reverse"]


def say(text: object, file: TextIO | None = None) -> None:
    """Print, with escapes in place of what a terminal would act on: names of files may hold anything."""
    from shards.printable import printable_lines

    print(printable_lines(str(text)), file=file)


@app.command()
def shard(
    source: Annotated[str, typer.Option(help="Dataset to read; docs/datasets/ lists them.")],
    out: Annotated[str, typer.Option(help="Folder that gets a folder named after the source; or s3://, gs://, az://.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the raw data.  [default: data/SOURCE]")] = None,
    recipe: Annotated[str, typer.Option(help="How the tensors are made: default or sa2va.")] = "default",
    prompt_pooling: Annotated[
        str | None,
        typer.Option(help="Pool prompt cells otherwise than the recipe: center, corner or area."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Part of the dataset, where it has several.")] = None,
    split_by: Annotated[str | None, typer.Option(help="Who split it: unc, google or umd (refcoco).")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames a sample, where the source is a video.")] = None,
    void: Annotated[
        int | None,
        typer.Option(min=0, help="Value of mask files that is no object, beside 0 (folder).  [default: VOC's 255]"),
    ] = None,
    mask_slack: Annotated[
        int | None,
        typer.Option(min=0, max=64, help="Pixels by which a mask's sides may differ from its picture's.  [default: 0]"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes.  [default: one a processor, of the cluster with ray]")
    ] = None,
    shard_size: Annotated[str, typer.Option(help="Size that a tar should not exceed.")] = "1GB",
    codec: Annotated[
        Codec,
        typer.Option(
            help="Of the pictures: zstd (a third of the bytes) or raw (the fastest to read), both lossless; or jpeg "
            "(a tenth), which is not."
        ),
    ] = "zstd",
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first N inputs only.")] = None,
    max_bad: Annotated[float, typer.Option(min=0, max=1, help="Share of bad inputs that stops the run.")] = 0.05,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a set that was made otherwise.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Begin even where the disk will not hold it; keep shards whose raw files have new times."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")] = False,
    engine: Annotated[
        Engine, typer.Option(help="local: this machine. ray: the cluster of RAY_ADDRESS, else one on this machine.")
    ] = "local",
    task_index: Annotated[
        int | None, typer.Option(min=0, help="This task's number, from 0, of --task-count; then cli.py merge.")
    ] = None,
    task_count: Annotated[int | None, typer.Option(min=1, help="Tasks that share the shards.")] = None,
) -> None:
    """Decode a raw dataset once into WebDataset shards that hold all four tensors.

    May be stopped at any moment: the same command goes on and ends with the same bytes.
    """
    import shlex
    from collections.abc import Callable
    from tempfile import TemporaryDirectory

    from pipeline.plan import Plan, make_plan
    from pipeline.run import run, run_share
    from pipeline.show import show_plan, show_share, show_summary
    from pipeline.sources import choices_of, source_named
    from pipeline.work import share_of
    from shards.recipe import named_recipe

    dataset, chosen = source_named(source), named_recipe(recipe, prompt_pooling)
    given = {"split": split, "split_by": split_by, "frames": frames, "void": void, "mask_slack": mask_slack}
    choices = choices_of(dataset, given)
    where, most = root or Path("data", source), parse_size(shard_size)
    share, place = share_of(task_index, task_count, engine, overwrite), f"{out.rstrip('/') or '/'}/{source}"

    def make(known: Callable[[str], tuple[int, int] | None], records: Path) -> Plan:
        return make_plan(dataset, where, chosen, most, records, choices, limit, known, codec)

    if dry_run:
        with TemporaryDirectory() as folder:
            show_plan(make(lambda digest: None, Path(folder, "records")), place)
        return
    again = shlex.join(sys.orig_argv)
    if share:
        show_share(run_share(make, place, workers, max_bad, share, force, again))
    else:
        show_summary(run(make, place, workers, max_bad, overwrite, engine, force, again))


@app.command()
def merge(
    path: Annotated[str, typer.Argument(help="Folder, or s3://, gs://, az://, of the set that the tasks wrote.")],
    max_bad: Annotated[float, typer.Option(min=0, max=1, help="Share of bad inputs that is too many.")] = 0.05,
) -> None:
    """Finish a set that tasks wrote (shard --task-index I --task-count N): check that all stands, write the manifest.

    The bytes are those of a set made on one machine. The raw data is not needed.
    """
    from pipeline.run import merge as finish
    from pipeline.show import show_summary

    show_summary(finish(path, max_bad))


@app.command()
def estimate(
    source: Annotated[str, typer.Option(help="As for shard, and so are the others.")],
    out: Annotated[str, typer.Option(help="Folder that would get a folder named after the source.")] = "shards",
    root: Annotated[Path | None, typer.Option(help="[default: data/SOURCE]")] = None,
    recipe: Annotated[str, typer.Option()] = "default",
    prompt_pooling: Annotated[str | None, typer.Option()] = None,
    split: Annotated[str | None, typer.Option()] = None,
    split_by: Annotated[str | None, typer.Option()] = None,
    frames: Annotated[int | None, typer.Option(min=1)] = None,
    void: Annotated[int | None, typer.Option(min=0)] = None,
    mask_slack: Annotated[int | None, typer.Option(min=0, max=64)] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with a core of its own.")] = os.cpu_count() or 1,
    shard_size: Annotated[str, typer.Option()] = "1GB",
    codec: Annotated[Codec, typer.Option()] = "zstd",
    limit: Annotated[int | None, typer.Option(min=1)] = None,
    samples: Annotated[int, typer.Option(min=1, help="To make and encode, spread over the dataset.")] = 64,
) -> None:
    """Say what sharding a dataset would take: samples, shards, bytes, hours, and how sure that is. Writes nothing."""
    from tempfile import TemporaryDirectory

    from pipeline.estimate import estimate as probe
    from pipeline.estimate import free_bytes
    from pipeline.plan import make_plan
    from pipeline.show import show_estimate
    from pipeline.sources import choices_of, source_named
    from shards.recipe import named_recipe

    dataset, chosen = source_named(source), named_recipe(recipe, prompt_pooling)
    given = {"split": split, "split_by": split_by, "frames": frames, "void": void, "mask_slack": mask_slack}
    choices = choices_of(dataset, given)
    where, most = root or Path("data", source), parse_size(shard_size)
    with TemporaryDirectory() as folder:
        plan = make_plan(dataset, where, chosen, most, Path(folder, "records"), choices, limit, codec=codec)
        found = probe(plan, samples)
    free = None if "://" in out else free_bytes(Path(out))
    show_estimate(found, f"{out.rstrip('/')}/{source}", free, workers)


@app.command("verify-shard")
def verify_shard(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Tars, folders of shard sets, or globs.")],
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="ROOT",
            help="Derive every sample again from the raw data in ROOT; compare all bits, or what a lossy set lost.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
    allow_lossy: Annotated[
        bool, typer.Option("--allow-lossy", help="Check sets of lossy pictures too; else each fails.")
    ] = False,
) -> None:
    """Check shards: structure, shape, dtype, range, checksums, and that the four formats agree.

    Exit status 0 only if all holds; each failure names shard, key, field, the value met and the value wanted.
    """
    import json
    from tempfile import TemporaryDirectory

    from pipeline.derive import Against
    from shards.verification import verify

    with TemporaryDirectory() as work:
        raw = Against(against, Path(work)) if against else None
        report = verify(
            paths,
            derive=raw.derive if raw else None,
            same_inputs=raw.same_inputs if raw else None,
            workers=workers,
            allow_lossy=allow_lossy,
        )
    say(json.dumps(report.to_json(), indent=1) if as_json else report.table())
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def recode(
    path: Annotated[Path, typer.Argument(help="Folder of a finished shard set.")],
    out: Annotated[Path, typer.Option(help="A new folder, for the set itself.")],
    codec: Annotated[Codec, typer.Option(help="Of the pictures: zstd or raw, both lossless; or jpeg, which is not.")],
    threads: Annotated[int, typer.Option(min=1, help="Shards at a time.")] = os.cpu_count() or 1,
) -> None:
    """Write a shard set once more with another codec. The raw data is not needed.

    Every tensor is bit-equal, but with jpeg: it loses a little in the pictures, measures it, and the manifest says so.

    May be stopped at any moment: the same command goes on and ends with the same bytes.
    """
    from shards.recode import recode as write

    manifest = write(path, out, codec, threads)
    size = sum(shard.bytes for shard in manifest.shards)
    shards = f"{len(manifest.shards):,} shards, {size / 1e9:,.2f} GB"
    say(f"{out}: {manifest.samples:,} samples in {shards}; pictures {manifest.pictures}")


@app.command()
def split(
    path: Annotated[Path, typer.Argument(help="Folder of a finished shard set.")],
    out: Annotated[Path, typer.Option(help="Folder that gets NAME-train and NAME-val.")],
    share: Annotated[float, typer.Option(min=0, max=1, help="Of the groups, that goes to val.")] = 0.05,
    by: Annotated[
        Group,
        typer.Option(
            help="What stays together: each sample alone, all of a raw file, all of a folder of raw files, or all of a "
            "picture or video."
        ),
    ] = "file",
    shard_size: Annotated[str, typer.Option(help="Size that a tar should not exceed.")] = "1GB",
) -> None:
    """Cut a shard set in two by a hash of names: what is held out stays held out when data is added.

    May be stopped at any moment: the same command goes on and ends with the same bytes.
    """
    from shards.select import split as cut

    for part, manifest in zip(("train", "val"), cut(path, out, share, by, parse_size(shard_size)), strict=True):
        say(f"{out / (path.resolve().name + '-' + part)}: {manifest.samples:,} samples, {manifest.objects:,} objects")


@app.command()
def sample(
    path: Annotated[Path, typer.Argument(help="Folder of a finished shard set.")],
    out: Annotated[Path, typer.Option(help="A new folder, for the set itself.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Samples to take, at random.")],
    seed: Annotated[int, typer.Option(help="Other samples with another seed.")] = 0,
    shard_size: Annotated[str, typer.Option(help="Size that a tar should not exceed.")] = "1GB",
) -> None:
    """Take a small shard set out of a large one."""
    from shards.select import sample as take

    manifest = take(path, out, n, seed, parse_size(shard_size))
    say(f"{out}: {manifest.samples:,} samples, {manifest.objects:,} objects; {manifest.selection}")


@app.command()
def preview(
    path: Annotated[Path, typer.Argument(help="Folder of a shard set, or one of its tars.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the page.  [default: runs/preview/NAME]")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples to show, spread over the set.")] = 8,
) -> None:
    """Draw contact sheets of a shard set and one page that shows them."""
    from shards.preview import preview as draw

    say(f"preview: {draw(path, out or Path('runs', 'preview', path.stem), samples)}")


@app.command()
def stats(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Folders of shard sets.")],
    out: Annotated[Path | None, typer.Option(help="The page.  [default: runs/stats/NAME.html]")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples of each set to look at, spread over it.")] = 2000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Count what shard sets hold: samples, objects, areas, prompt cells, texts, sizes. Text, and a page with plots."""
    import json

    from shards.stats import look_at, table, write_page

    found = look_at(paths, samples)
    page = write_page(found, out or Path("runs", "stats", f"{paths[0].resolve().name}.html"))
    say(json.dumps([one.to_json() for one in found], indent=1) if as_json else f"{table(found)}\npage: {page}")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Option(help="Folder of a run, or a released model folder.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            help="sa2va: the released layout. onnx: SAM 2's image encoder and mask decoder. int8: the released names, "
            "with int8 weights in the language model.",
        ),
    ] = "sa2va",
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of all weights.  [default: as in the files that the run started from]")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures to compare on: needed by onnx, of use to int8.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Questions to compare int8 on: lines of FILE, a tab, a question.")
    ] = None,
) -> None:
    """Write a trained model, adapters merged, for others to use: safetensors, config.json, tokenizer, card; or ONNX."""
    import torch

    chosen = None if dtype is None else getattr(torch, dtype)
    if form == "sa2va":
        from trainer.export import export as write

        say(write(checkpoint, out, chosen))
    else:
        from inference.deploy import export_graphs, export_quantised

        if form == "onnx":
            say(export_graphs(checkpoint, out, images))
        else:
            say(export_quantised(checkpoint, out, images, texts, chosen))


@app.command()
def predict(
    model: Annotated[
        str,
        typer.Option(metavar="DIR", help="Folder of a Sa2VA, released or exported; or OWNER/NAME on the hub."),
    ],
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="A picture; asked about with --text.")] = None,
    text: Annotated[
        str | None, typer.Option(help='The question, such as "Please segment the dog." <image> is put in front.')
    ] = None,
    region: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="MASK",
            help="Describe this region: a mask of the picture's size. Several are region1, region2, ... for --text.",
        ),
    ] = None,
    video: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Frames of a video, in the order of their names.")
    ] = None,
    images: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Many pictures; needs --texts.")] = None,
    texts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Lines of: file name in --images, a tab, a question about it (UTF-8)."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for masks, overlays and answers.")] = Path("runs/predict"),
    tiles: Annotated[
        int, typer.Option(min=1, max=12, help="1: the whole picture at 448 x 448. 12: as the official inference.")
    ] = 1,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Make tensors otherwise than in the model's training: sa2va or default.  [default: the model's own; "
            "sa2va where its folder names none]"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 2048,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the weights.  [default: bfloat16 on a GPU, float32 on a CPU]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...  [default: a GPU if there is one]")] = None,
    official_normalisation: Annotated[
        bool,
        typer.Option("--official-normalisation", help="SAM 2's mean and std rounded to bfloat16, as in official code."),
    ] = False,
    memory_dtype: Annotated[
        Dtype, typer.Option(help="Of what SAM 2 remembers of a video's frames; float32 takes twice the memory.")
    ] = "bfloat16",
) -> None:
    """Segment pictures and videos, or describe regions, with a Sa2VA model.

    Writes masks (PNG, the picture's size), an overlay and the answer (JSON) into --out.
    """
    from inference.run import predict as run
    from shards.recipe import named_recipe

    asked = None if recipe is None else named_recipe(recipe)

    def load() -> Predictor:
        from inference.loading import load as load_model
        from inference.predictor import Predictor
        from inference.recipes import explain

        loaded = load_model(model, device, dtype)
        say(explain(loaded, asked), file=sys.stderr)
        return Predictor(
            loaded,
            recipe=asked,
            most_tiles=tiles,
            max_new_tokens=max_new_tokens,
            official_normalisation=official_normalisation,
            memory_dtype=memory_dtype,
        )

    for line in run(
        load,
        out,
        image=image,
        text=text,
        regions=region or (),
        video=video,
        images=images,
        texts=texts,
        batch_size=batch_size,
    ):
        say(line)


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Option(metavar="DIR", help="Folder of a Sa2VA, released or exported, or of a run (its checkpoint).")
    ],
    shards: Annotated[
        list[str], typer.Option(metavar="PATH", help="A shard set's folder, or its URL; several times for several.")
    ],
    objective: Annotated[
        Objective | None, typer.Option(help="What is asked.  [default: segment if objects have texts, else dual]")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only the sets that were made with this --split.")] = None,
    holdout: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Only what a training with this data.holdout left out. 0: everything.  [default: what the model was "
            "not trained on, where its folder says]",
        ),
    ] = None,
    holdout_by: Annotated[Group, typer.Option(help="data.holdout_by of that training, for --holdout.")] = "picture",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N samples of each set.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 8,
    max_caption_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a caption (dual).")] = 64,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the weights.  [default: bfloat16 on a GPU, float32 on a CPU]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...  [default: a GPU if there is one]")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers here.")] = None,
    cache: Annotated[
        Path, typer.Option(metavar="FOLDER", help="On a disk of this machine, for shards from URLs.")
    ] = Path("~/.cache/sa2va-shards"),
    cache_limit: Annotated[str, typer.Option(metavar="SIZE", help="Size that the cache does not exceed.")] = "200GB",
) -> None:
    """Measure a Sa2VA on shards: cIoU, gIoU, Pr@0.5, Dice, precision, recall, cycle IoU, caption-swap gap.

    Counts every sample once. On several processes: accelerate launch --num_processes N cli.py evaluate ...
    """
    from inference.evaluate import evaluate as run
    from shards.cache import Cache

    shown = run(
        model,
        shards,
        objective=objective,
        split=split,
        holdout=holdout,
        holdout_by=holdout_by,
        limit=limit,
        batch_size=batch_size,
        max_caption_tokens=max_caption_tokens,
        device=device,
        dtype=dtype,
        json_file=json_file,
        cache=Cache(cache, parse_size(cache_limit)),
    )
    if shown:
        say(shown)


@app.command()
def doctor(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="As trainer/train.py takes them.")
    ] = None,
) -> None:
    """Check what a training needs before it starts: data, model, memory, disk, versions. Writes nothing.

    Exit status 0 if all is well; each failure says what to do. Warnings do not count.
    """
    print("...  loading PyTorch and the packages of training", file=sys.stderr, flush=True)
    from trainer.doctor.checks import doctor as check

    if not check(arguments or []):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line. A user's mistake ends in one line and exit status 1, Ctrl-C in 130."""
    from shards.errors import UserError
    from shards.printable import os_error_text, set_up_output

    set_up_output()
    try:
        app()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # a name that is too long, a folder that may not be read, a full disk, ...
        sys.exit(f"error: {os_error_text(error)}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
