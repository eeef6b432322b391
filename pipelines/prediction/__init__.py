"""Prediction of folders: which images, what is written for each, in which order, and what is already done."""
