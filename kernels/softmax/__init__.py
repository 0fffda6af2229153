"""Softmax, its logarithm and softmin, over rows and over columns."""
