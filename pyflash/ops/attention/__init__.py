"""Attention: dense, packed sequences, few queries over caches, the matrix of weights, several heads."""
