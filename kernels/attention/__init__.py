"""Attention: dense, few queries, the matrix of weights."""
