"""What there is to know of a GPU on the first day that one is there: `python -m benchmarks.gpu`."""
