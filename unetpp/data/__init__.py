"""Prepared splits, crops, augmentation, and batches that are ready before the step needs them."""
