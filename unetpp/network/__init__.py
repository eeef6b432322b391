"""The nested network, its pruning, its losses, what masks mean, what a depth costs."""
