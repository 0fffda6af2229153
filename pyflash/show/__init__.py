"""What a run shows of itself: a progress bar, and pictures where matplotlib is installed."""
