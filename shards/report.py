"""The result of a verification: a table of fields, and each failure with shard, key, field, value met, value wanted."""

from __future__ import annotations

from array import array
from dataclasses import asdict, dataclass, field
from typing import Any

from shards.printable import printable
from shards.tables import add_row, plain_table, table_text

_KEPT = 50  # failures per shard that are kept; all are counted
_SHOWN = 20  # failures in the text


@dataclass(frozen=True)
class Failure:
    """One check that failed, and where."""

    shard: str
    key: str
    field: str
    what: str
    met: str
    wanted: str

    def __str__(self) -> str:
        place = " ".join(part for part in (self.shard, self.key, self.field) if part)
        return f"{place}: {self.what}; met {self.met or 'nothing'}; wanted {self.wanted or 'a sound one'}"


@dataclass
class FieldRow:
    """Shape, dtype and range of one field over all samples."""

    name: str
    shape: str
    dtype: str
    min: float = float("inf")
    max: float = float("-inf")
    samples: int = 0
    failures: int = 0

    def merge(self, other: FieldRow) -> None:
        """Add the numbers of other samples."""
        self.min = min(self.min, other.min)
        self.max = max(self.max, other.max)
        self.samples += other.samples
        self.failures += other.failures


@dataclass
class Report:
    """Findings in one shard, or in all of them."""

    samples: int = 0
    objects: int = 0
    fields: dict[str, FieldRow] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    failure_count: int = 0
    """Number of failures; greater than `len(failures)` where a shard has too many to keep."""
    lossy: list[str] = field(default_factory=list)
    """One line per lossy set, with its PSNR."""
    psnr: array[float] = field(default_factory=lambda: array("d"))
    """PSNR in dB of each picture of one shard, as recorded in the samples' JSON."""

    @property
    def ok(self) -> bool:
        """Whether all checks hold."""
        return self.failure_count == 0

    def fail(self, failure: Failure) -> None:
        """Record a failure."""
        self.failure_count += 1
        if len(self.failures) < _KEPT:
            self.failures.append(failure)
        if failure.field in self.fields:
            self.fields[failure.field].failures += 1

    def merge(self, other: Report) -> None:
        """Add the report of another shard."""
        self.samples += other.samples
        self.objects += other.objects
        self.failures += other.failures
        self.failure_count += other.failure_count
        for name, row in other.fields.items():
            if name in self.fields:
                self.fields[name].merge(row)
            else:
                self.fields[name] = row

    def to_json(self) -> dict[str, Any]:
        """Return the report for programs."""
        return {
            "ok": self.ok,
            "samples": self.samples,
            "objects": self.objects,
            "fields": [asdict(row) for row in self.fields.values()],
            "lossy": self.lossy,
            "failure_count": self.failure_count,
            "failures": [asdict(failure) for failure in self.failures],
        }

    def table(self) -> str:
        """Return the report as text."""
        table = plain_table(f"{self.samples:,} samples, {self.objects:,} objects")
        for name in ("field", "shape", "dtype", "min", "max", "samples", "failures"):
            table.add_column(name, justify="left" if name in ("field", "shape", "dtype") else "right")
        for row in self.fields.values():
            limits = [f"{v:.4f}" if row.dtype == "float32" else f"{v:.0f}" for v in (row.min, row.max)]
            add_row(table, (row.name, row.shape, row.dtype, *limits, f"{row.samples:,}", f"{row.failures:,}"))
        lines = [table_text(table, 100), *map(printable, self.lossy)]
        lines += (printable(f"FAILED {failure}") for failure in self.failures[:_SHOWN])
        if self.failure_count > _SHOWN:
            lines.append(f"... and {self.failure_count - min(_SHOWN, len(self.failures)):,} more (see --json)")
        lines.append("all checks hold" if self.ok else f"{self.failure_count:,} checks failed")
        return "\n".join(lines)
