from typing import Any

from numpy.typing import NDArray

INTERFACE: int

def count(
    pixels: Any,
    height: int,
    width: int,
    by_columns: bool,
    top: int,
    left: int,
    up: NDArray[Any],
    down: NDArray[Any],
    before: NDArray[Any],
    after: NDArray[Any],
    out: NDArray[Any],
) -> None: ...
def crop(counts: bytes, height: int, width: int) -> tuple[int, int, int, int, bytearray] | None: ...
def cut(values: NDArray[Any], low: float, half: float, high: float, out: NDArray[Any]) -> int: ...
def rounded(values: NDArray[Any], low: float, high: float, out: NDArray[Any]) -> float | None: ...
def sample(
    pixels: Any,
    height: int,
    width: int,
    by_columns: bool,
    top: int,
    left: int,
    rows: NDArray[Any],
    columns: NDArray[Any],
    out: Any,
    size: int,
    packed: bool,
) -> int: ...
