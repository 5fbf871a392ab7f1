"""The published benchmarks: raw datasets asked as the papers ask, and measured as they measure."""
