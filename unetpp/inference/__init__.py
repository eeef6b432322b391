"""From arbitrary images to masks: scaling, tiles, masks, overlays; in numpy, with any engine."""
