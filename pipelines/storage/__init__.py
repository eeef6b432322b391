"""Bytes from elsewhere: sources, archives, HTTP, S3, checkpoints' places, the cache of a node."""
