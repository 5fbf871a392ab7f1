"""All benchmarks by their names."""

from __future__ import annotations

from collections.abc import Mapping

from evaluation.published.datasets import Benchmark, referring, videos

BENCHMARKS: Mapping[str, Benchmark] = {**referring.BENCHMARKS, **videos.BENCHMARKS}
