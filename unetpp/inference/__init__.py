"""From images as one has them to masks: scaling, tiles, masks, overlays; numpy, over any engine."""
