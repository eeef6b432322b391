"""Measurements for the first day on which a GPU is available: `python -m benchmarks.gpu`."""
