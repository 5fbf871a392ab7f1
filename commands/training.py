"""The verb that runs before a training: doctor."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Exit

from shards.extras import extra


@extra("train")
def doctor(
    arguments: Annotated[
        list[str] | None, Argument(metavar="CONFIG|KEY=VALUE", help="As trainer/train.py takes them.")
    ] = None,
) -> None:
    """Check what a training needs before it starts: data, model, memory, disk, versions. Writes nothing.

    Exit status 0 if all is well. Each failure says what to do; warnings do not count.
    """
    from trainer.doctor.checks import doctor as check

    if not check(arguments or []):
        raise Exit(1)
