"""Look-ups in a table, sums over them, and rotations by position."""
