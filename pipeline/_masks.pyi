from typing import Any

from numpy.typing import NDArray

def count(
    pixels: Any,
    height: int,
    width: int,
    by_columns: bool,
    top: NDArray[Any],
    bottom: NDArray[Any],
    left: NDArray[Any],
    right: NDArray[Any],
    out: NDArray[Any],
) -> None: ...
def crop(counts: bytes, height: int, width: int) -> tuple[int, int, int, int, bytearray] | None: ...
def sample(
    pixels: Any,
    height: int,
    width: int,
    by_columns: bool,
    rows: NDArray[Any],
    columns: NDArray[Any],
    out: Any,
    size: int,
    packed: bool,
    top: int,
    left: int,
) -> None: ...
