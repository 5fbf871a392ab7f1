"""All benchmarks by their names."""

from __future__ import annotations

from collections.abc import Mapping

from evaluation.published.datasets import Benchmark, gcg, referring, videos

BENCHMARKS: Mapping[str, Benchmark] = {**referring.BENCHMARKS, **videos.BENCHMARKS, **gcg.BENCHMARKS}
