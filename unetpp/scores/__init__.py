"""What predictions are worth: overlap, outlines, objects, calibration."""
