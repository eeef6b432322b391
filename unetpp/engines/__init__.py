"""Engines: one interface from images to probabilities, for torch and the runtimes of exported files."""
