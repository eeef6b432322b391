"""Prediction of folders: which images, what is written of each, in which order, and what is done already."""
