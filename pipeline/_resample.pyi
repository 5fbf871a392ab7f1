from typing import Any

from numpy.typing import NDArray

Taps = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]

def resample(
    pixels: bytes, height: int, width: int, size: int, columns: Taps, rows: Taps, out: NDArray[Any]
) -> None: ...
