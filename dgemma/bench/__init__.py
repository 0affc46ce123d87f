"""Benchmarks that `dgemma bench` runs: a step, an answer, ours beside `transformers`."""
