"""Raw files to samples: layouts, masks, groups, near-duplicates, splits, the fingerprint of a data set."""
