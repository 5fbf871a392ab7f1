"""The verbs that run before a training: doctor, rows."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Exit, Option

from shards.extras import extra

Arguments = Annotated[list[str] | None, Argument(metavar="CONFIG|KEY=VALUE", help="As trainer/train.py takes them.")]


@extra("train")
def doctor(arguments: Arguments = None) -> None:
    """Check what a training needs before it starts: data, model, memory, disk, versions. Writes nothing.

    Exit status 0 if all is well. Each failure says what to do; warnings do not count.
    """
    from trainer.doctor.checks import doctor as check

    if not check(arguments or []):
        raise Exit(1)


@extra("train")
def rows(
    arguments: Arguments = None,
    number: Annotated[int, Option("--n", min=1, help="Rows of each objective.")] = 5,
    as_json: Annotated[bool, Option("--json", help="Print the rows as JSON, with ids and labels.")] = False,
) -> None:
    """Show the rows that a training will read, from its first step on, with what of them is trained.

    Trained text is green on a terminal and in {{double braces}} elsewhere. No weights are read, and no GPU is used.
    """
    from trainer.show_rows import show_rows

    show_rows(arguments or [], number, as_json)
