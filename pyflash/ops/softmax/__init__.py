"""Softmax, its logarithm and softmin, over any dimension."""
