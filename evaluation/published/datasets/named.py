"""All benchmarks by their names."""

from __future__ import annotations

from collections.abc import Mapping

from evaluation.published.datasets import Benchmark, dlc_bench, gcg, referring, region_caption, videos

BENCHMARKS: Mapping[str, Benchmark] = {
    **referring.BENCHMARKS,
    **videos.BENCHMARKS,
    **gcg.BENCHMARKS,
    **region_caption.BENCHMARKS,
    **dlc_bench.BENCHMARKS,
}
