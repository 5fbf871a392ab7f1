"""Values that are kept in memory as long as they were used lately and there is room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """The values that were used last, by their keys. For any number of threads.

    Args:
        most: largest sum of the values' sizes. A value that is larger is kept alone, until the next one is made.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = 0
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value], size_of: Callable[[Value], int]) -> Value:
        """Return the value of a key; `make` makes it where it is not kept, in one thread at a time for each key.

        What `make` raises is raised, and not kept.
        """
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._values:  # another thread has made it meanwhile
                    return self._values[key][0]
            try:
                value = make()
                self._keep(key, value, size_of(value))
            finally:
                with self._lock:
                    self._making.pop(key, None)
        return value

    def _keep(self, key: Hashable, value: Value, size: int) -> None:
        with self._lock:
            _, earlier = self._values.pop(key, (None, 0))
            self._values[key] = value, size
            self._size += size - earlier
            while self._size > self._most and len(self._values) > 1:
                _, (_, freed) = self._values.popitem(last=False)
                self._size -= freed

    @property
    def size(self) -> int:
        """Sum of the sizes of the values that are kept."""
        return self._size
