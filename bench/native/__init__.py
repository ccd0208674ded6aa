"""Native programs of the benchmarks."""
