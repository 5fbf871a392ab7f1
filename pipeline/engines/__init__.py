"""Who writes the shards of a plan: processes of this machine, or the tasks of a Ray cluster.

An engine is given shards that are missing, and yields the note of each as it stands. The bytes are the same with all.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from importlib import import_module
from typing import Literal, Protocol

from pipeline.boundary import AGAIN as AGAIN
from pipeline.plan import Plan
from pipeline.task import Done, Watch
from pipeline.work import Work

EngineName = Literal["local", "ray"]


class Engine(Protocol):
    def __call__(
        self, plan: Plan, missing: Sequence[int], work: Work, workers: int | None, watch: Watch
    ) -> Generator[Done, None, None]:
        """Write the missing shards; yield the note of each as it is done.

        Closed before its end, or left by an error, it writes no more.

        Args:
            workers: at a time; None for as many as there are processors.
            watch: called in this process.

        Raises:
            UserError: a worker died and will not be replaced.
            OSError: the store cannot be written.
        """
        ...


def engine_named(name: EngineName) -> Engine:
    engine: Engine = import_module(f"pipeline.engines.{name}").write
    return engine
