"""Finished shard sets handed on: publish, energon."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from commands.options import FinishedSet
from commands.output import say
from shards.extras import extra
from shards.processors import usable_processors


@extra("pipeline")
def publish(
    path: FinishedSet,
    to: Annotated[
        str,
        Option(
            metavar="PLACE",
            help="hf://datasets/OWNER/NAME, then @BRANCH and /FOLDER where they are needed; a folder; or s3://, gs://, "
            "az://.",
        ),
    ],
    i_may: Annotated[
        bool, Option("--i-may", help="I have the right to pass this set on, although its source's licence forbids it.")
    ] = False,
    private: Annotated[bool, Option("--private", help="Make the dataset on the hub a private one.")] = False,
    licence: Annotated[
        str | None, Option(metavar="ID", help="For the card, such as cc-by-4.0.  [default: that of the source]")
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace another set that stands there.")] = False,
) -> None:
    """Hand a finished set on: its files, its tables and a card go to the Hugging Face hub, a bucket or a folder.

    What stands there already and is right is not sent again; the manifest goes last, and all files are compared.

    May be stopped at any moment: the same command goes on.
    """
    from shards.publish import publish as send

    done = send(
        path,
        to,
        i_may=i_may,
        private=private,
        licence=licence,
        overwrite=overwrite,
        threads=usable_processors(),
    )
    manifest = done.manifest
    say(
        f"{done.place}: {manifest.samples:,} samples in {len(manifest.shards):,} tars; {done.sent:,} files sent "
        f"({done.bytes_sent / 1e9:,.2f} GB), {done.stood:,} stood there already; compared: {done.compared}"
    )
    if manifest.left_out:
        say("ledger.jsonl names the paths of the raw inputs that were left out")
    if done.kept_card:
        say("README.md there was written by somebody else and is kept as it is")


@extra("pipeline")
def energon(
    path: FinishedSet,
    val: Annotated[
        float,
        Option(min=0, max=1, help="Share of the samples that goes into the part val, in whole tars, the last ones."),
    ] = 0.0,
) -> None:
    """Write what Megatron-Energon loads a set by beside its tars: .nv-meta with splits and a sample loader.

    The tars stay as they are. docs/SHARING.md shows how to load it.
    """
    from shards.energon import prepare

    parts = prepare(path, val)
    counts = "; ".join(f"{part}: {len(names):,} tars" for part, names in parts.items() if names)
    say(f"{path}: ready for Megatron-Energon; {counts}")
