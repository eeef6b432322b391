"""The training loop of one process, its checkpoints, and what can go wrong in a step."""
