"""Who writes the shards of a plan: processes of this machine, or the tasks of a Ray cluster.

An engine is given shards that are missing, and yields the note of each as it stands. The bytes are the same with all.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from importlib import import_module
from typing import Literal, Protocol

from pipeline.plan import Plan
from pipeline.task import Done
from pipeline.work import Work

EngineName = Literal["local", "ray"]
AGAIN = "mend it and give the same command: it goes on where it stopped"


class Engine(Protocol):
    def __call__(
        self, plan: Plan, missing: Sequence[int], work: Work, workers: int | None, tick: Callable[[int], object]
    ) -> Generator[Done, None, None]:
        """Write the missing shards; yield the note of each as it is done.

        Closed before its end, or left by an error, it writes no more.

        Args:
            workers: at a time; None for as many as there are processors.
            tick: called with the number of inputs done since it was called last.

        Raises:
            UserError: a worker died and will not be replaced.
            OSError: the store cannot be written.
        """
        ...


def engine_named(name: EngineName) -> Engine:
    engine: Engine = import_module(f"pipeline.engines.{name}").write
    return engine
