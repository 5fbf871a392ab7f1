"""Who writes the shards of a plan: processes of this machine, or the tasks of a Ray cluster.

An engine is given the shards that are missing, and yields the note of each when it is done. The bytes are the same with
all engines.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from importlib import import_module
from typing import Literal, Protocol

from pipeline.boundary import AGAIN as AGAIN
from pipeline.dataset import RawDataset
from pipeline.plan import Plan
from pipeline.task import Progress, ShardNote
from pipeline.workspace import Workspace

EngineName = Literal["local", "ray"]


class Engine(Protocol):
    def __call__(
        self,
        dataset: RawDataset,
        plan: Plan,
        missing: Sequence[int],
        workspace: Workspace,
        workers: int | None,
        progress: Progress,
    ) -> Generator[ShardNote, None, None]:
        """Write the missing shards; yield the note of each when it is done.

        Closed before its end, or ended by an error, it writes no more.

        Args:
            workers: number of shards that are written at a time; None for as many as there are processors.
            progress: called in this process.

        Raises:
            UserError: a worker died and will not be replaced.
            OSError: the store cannot be written.
        """
        ...


def engine_named(name: EngineName) -> Engine:
    engine: Engine = import_module(f"pipeline.engines.{name}").write
    return engine
