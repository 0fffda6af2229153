"""Optimisers: one step of many parameters at once, and the norm of their gradients."""
