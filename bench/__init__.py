"""Benchmarks that the wheel leaves out: `python -m bench.NAME` from a checkout."""
