"""Images and masks made visible: contrast stretched, outlines drawn."""

import numpy as np


def display(image: np.ndarray) -> np.ndarray:
    """(H, W, C) of any channels and range to (H, W, 3) uint8, contrast stretched to the middle 99 %."""
    channels = image[..., :3] if image.shape[2] >= 3 else image[..., [0, 0, 0]]
    low, high = np.percentile(channels, [0.5, 99.5])
    # Less than a grey level is no contrast to show; of floats nothing tells what a level is.
    least = 1.0 if channels.dtype.kind == "u" else np.finfo(np.float32).tiny
    stretched = (channels.astype(np.float32) - low) / max(float(high - low), least)
    return (stretched.clip(0, 1) * 255).round().astype(np.uint8)


def outline(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: the foreground pixels that touch another value."""
    padded = np.pad(mask, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return (mask > 0) & np.any([near != mask for near in neighbours], axis=0)
