"""What the pipeline adds to a training: `python -m benchmarks.overheads`."""
