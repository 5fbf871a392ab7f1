"""Calls that a pool makes ahead of the one whose result is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import TypeVar

Result = TypeVar("Result")


def run_ahead(pool: Executor, groups: Iterable[Sequence[Callable[[], Result]]], ahead: int) -> Iterator[list[Result]]:
    """Yield the results of one group of calls after the other, while `ahead` more groups are in the pool."""
    waiting: deque[list[Future[Result]]] = deque()
    for group in groups:
        waiting.append([pool.submit(call) for call in group])
        if len(waiting) > ahead:
            yield [future.result() for future in waiting.popleft()]
    while waiting:
        yield [future.result() for future in waiting.popleft()]
