"""Prepared data and the loader: `python -m benchmarks.data`."""
