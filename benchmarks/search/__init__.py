"""What it costs to know how accurate each depth is: `python -m benchmarks.search`."""
