"""Benchmarks: what a step costs, against what, and how that grows. `dgemma bench` runs them."""
