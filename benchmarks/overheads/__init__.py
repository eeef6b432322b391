"""What the pipeline adds to a training run: `python -m benchmarks.overheads`."""
