"""Statistics of a tensor: sums and counts over all of it, or over each of its groups."""
