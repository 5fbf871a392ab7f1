from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

PICTURE: int
PACKED: int
MASK: int
PACKED_UNION: int
MASK_UNION: int
CELLS: int
COPY: int
INTERFACE: int
MAX_OBJECTS: int
has_zstd: int

def run(
    jobs: Sequence[tuple[int, bytes | memoryview | NDArray[Any], NDArray[Any], int, bytes | None, bytes | None]],
) -> list[int]: ...
def run_rows(
    parts: tuple[tuple[int, Any, NDArray[Any], int, bytes | None, bytes | None], ...],
    rows: Sequence[tuple[int, list[int], bytes | None, list[memoryview], tuple[int, ...]]],
) -> list[tuple[int, int]]: ...
def exact_members(
    view: memoryview,
    offset: int,
    size: int,
    key: bytes,
    rests: tuple[bytes, ...],
    begins: tuple[bytes, ...],
    blank: bytes,
) -> list[memoryview] | None: ...
def filtered(picture: NDArray[Any], side: int, is_gradient: bool, out: NDArray[Any]) -> bool: ...
def shuffled(numbers: Sequence[int], salt: int) -> list[int]: ...
def block_sums(picture: NDArray[Any], side: int, blocks: int, sums: NDArray[Any], ends: NDArray[Any]) -> bool: ...
def shrunk(
    bits: NDArray[Any],
    rows: NDArray[Any],
    first_rows: NDArray[Any],
    columns: NDArray[Any],
    first_columns: NDArray[Any],
    out: NDArray[Any],
) -> bool | None: ...
