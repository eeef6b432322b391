"""Any image size in, probabilities out; the model file; tiles."""
