"""HTML: the pages of data, search, depths and comparisons, with their templates."""
