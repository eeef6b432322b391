"""A stage as a Ray job on a cluster elsewhere, and the Ray cluster of a stage."""
