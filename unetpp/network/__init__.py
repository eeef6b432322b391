"""The nested network, its pruning, its losses, the meaning of masks, the cost of a depth."""
