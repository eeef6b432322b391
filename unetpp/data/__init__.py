"""Prepared splits, crops, augmentation, batches ahead of the step."""
