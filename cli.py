#!/usr/bin/env python3
"""The command line. It parses and calls: the verbs are in commands/, what they do is in the folders beside it.

Heavy imports stand inside the verbs, so that help answers at once.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Annotated

try:
    import typer
except ModuleNotFoundError:  # an install that only reads shards
    sys.exit('error: the command line is not installed; pip install "sa2va-shards[pipeline]"')

from commands import benchmarks, browsing, models, serving, sets, sharding, sharing, training
from shards.errors import UserError
from shards.printable import os_error_text, set_up_output
from shards.program import program

VERBS: tuple[Callable[..., None], ...] = (
    *(sharding.shard, sharding.merge, sharding.estimate),
    *(sets.verify_shard, sets.recode, sets.split, sets.sample, sets.preview, sets.stats, sets.table, sets.join),
    *(sets.overlap, sharing.publish, sharing.energon, browsing.browse),
    *(models.export, models.predict, models.evaluate, models.annotate, serving.serve),
    *(benchmarks.benchmark, benchmarks.compare),
    *(training.doctor, training.rows),
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # drawing help with rich takes longer than all the rest
)


def _version(requested: bool) -> None:
    if requested:
        from importlib.metadata import PackageNotFoundError, version

        for package in ("sa2va-shards", "torch"):
            try:
                print(package, version(package))
            except PackageNotFoundError:
                print(package, "is not installed")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Segmentation data for Sa2VA: raw datasets into shards, shards checked and shown, models measured and used."""


for verb in VERBS:
    # Named here: the list of commands would cut a long one.
    summary = " ".join((inspect.getdoc(verb) or "").partition("\n\n")[0].split())
    app.command(verb.__name__.replace("_", "-"), short_help=summary)(verb)


def main() -> None:
    """Run the command line. A user's mistake ends in one line and exit status 1, Ctrl-C in 130."""
    set_up_output()
    try:
        app(prog_name=program())
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # a name that is too long, a folder that may not be read, a full disk, ...
        sys.exit(f"error: {os_error_text(error)}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
