"""Image and mask files decoded by one policy."""
