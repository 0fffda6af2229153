"""Pooling: windows of an input, and the gradient of windows."""
