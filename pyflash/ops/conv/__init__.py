"""Convolution of one, two and three dimensions, and its two gradients."""
