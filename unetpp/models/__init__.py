"""Trained networks and their files: description, weights, the module that predicts, lists of exports."""
