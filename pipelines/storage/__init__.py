"""Bytes from elsewhere: sources, archives, HTTP, S3, checkpoints' and artifacts' places, the cache of a node."""
